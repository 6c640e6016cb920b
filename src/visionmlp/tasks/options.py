"""Options that tasks share: which model, what runs it, on which data or images.

A field is the option, its type, its default and its help. Those of training are fields of the task's configuration.
"""

# ruff: noqa: RUF009 (`option` returns a dataclass field)

import dataclasses
from pathlib import Path
from typing import Any, Literal

MODEL_HELP = "model name, run folder or checkpoint file (.safetensors)"


def option(
    help: str, default: Any = dataclasses.MISSING, *, metavar: str | None = None, positional: bool = False
) -> Any:
    """A dataclass field that is a command-line option.

    Args:
        help: the text behind the option, without the default.
        default: left out for an option that must be given.
        metavar: placeholder of the value.
        positional: without a leading ``--``.
    """
    metadata = {"help": help, "metavar": metavar, "positional": positional}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model, and with which weights."""

    model: str = option(MODEL_HELP, metavar="MODEL", positional=True)
    checkpoint: Path | None = option(
        "weights for a model name: the authors' file (.pth, .npz) or a checkpoint; "
        "to have the authors' file downloaded, see --pretrained",
        None,
        metavar="FILE",
    )
    checkpoint_prefix: str | None = option(
        "what leads to the weights in a trainer's file, if it holds several: teacher, base_encoder, model_ema",
        None,
        metavar="PREFIX",
    )
    pretrained: bool = option(
        "download the authors' weights for a model name, where they have an address; NAME.TAG chooses among several",
        False,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServedOptions(ModelOptions):
    """Which model, and what runs it."""

    model: str = option(MODEL_HELP + " or exported file (.onnx, .xml, .pt2)", metavar="MODEL", positional=True)
    runtime: Literal["torch", "onnxruntime", "openvino", "aotinductor"] | None = option(
        "what runs the model; the last three export a model or checkpoint in memory; default: torch, or for an "
        "exported file what it was exported for; machine code runs only where aotinductor is given",
        None,
    )
    threads: int | None = option("CPU threads; default: the runtime's choice", None)
    device: str = option("cpu, cuda, cuda:1, ...; exported models run on cpu", "cpu", metavar="NAME")
    exif_orientation: Literal["apply", "ignore"] | None = option(
        "whether images are turned as their EXIF says; default: as in the model's training, else apply", None
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalOptions(ServedOptions):
    """Options of ``eval``."""

    data: str | None = option(
        "dataset: a folder of class folders, or a name such as sklearn/digits, torch/cifar100 or hfds/...; "
        "default: that of the run",
        None,
    )
    data_root: Path | None = option("where a named dataset lies or is downloaded to", None, metavar="FOLDER")
    split: Literal["validation", "train", "test"] = option("part of the dataset", "validation")
    batch_size: int = option("images per step", 64)
    num_workers: int = option("processes that load images", 0)
    on_bad_image: Literal["skip", "stop"] = option(
        "an image that cannot be read is named, then skipped or fatal", "stop"
    )
    json: bool = option("JSON instead of a table", False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictOptions(ServedOptions):
    """Options of ``predict``."""

    inputs: tuple[str, ...] = option(
        "image files, folders (searched with their sub-folders), videos (all frames), or - for an image on standard "
        "input",
        metavar="INPUT",
        positional=True,
    )
    batch_size: int = option("images per step", 16)
    json: bool = option("one JSON object a line for each image, instead of text", False)
    output: Path | None = option("write a table to this file, instead of text", None, metavar="FILE.csv")
    force: bool = option("overwrite the output if it exists", False)
