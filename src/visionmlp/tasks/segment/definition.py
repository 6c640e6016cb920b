"""Semantic segmentation as the command line knows it."""

# ruff: noqa: RUF009 (`option` returns a dataclass field)

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from visionmlp.errors import DataError
from visionmlp.tasks.definition import DataCheck, Scores, TaskDefinition, TrainResult
from visionmlp.tasks.options import option
from visionmlp.tasks.segment.config import SegmentConfig

if TYPE_CHECKING:
    from visionmlp.bench.input_pipeline import InputBenchmark
    from visionmlp.tasks.segment.checking import MaskedSplit
    from visionmlp.tasks.segment.predict import Prediction


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmenterOptions:
    """Which network, and how it looks at images."""

    model: str = option(
        "run folder, checkpoint file (.safetensors) or exported file (.onnx, .xml, .pt2)",
        metavar="MODEL",
        positional=True,
    )
    runtime: Literal["torch", "onnxruntime", "openvino", "aotinductor"] | None = option(
        "what runs an exported file; default: what it was exported for; machine code runs only where aotinductor is "
        "given",
        None,
    )
    device: str = option("cpu, cuda, cuda:1, ...; exported files run on cpu", "cpu", metavar="NAME")
    threads: int | None = option("CPU threads; default: the runtime's choice", None)
    inference: Literal["whole", "slide"] | None = option(
        "whole images or sliding windows; default: as in the network's training", None
    )
    window: tuple[int, int] | None = option("height and width of sliding windows, such as 512 512", None)
    stride: tuple[int, int] | None = option(
        "pixels from one window to the next, such as 341 341; default: as in the network's training, or two thirds of "
        "a window that is smaller than that",
        None,
    )
    scales: tuple[float, ...] = option(
        "sizes that each image is looked at, as factors; probabilities are averaged; the papers' are "
        "0.5 0.75 1 1.25 1.5 1.75",
        (1.0,),
    )
    flip: bool = option("look at mirrored images too", False)
    resize: tuple[int, int] | None = option(
        "long and short side that images are resized to fit into; default: as in the network's training", None
    )
    exif_orientation: Literal["apply", "ignore"] | None = option(
        "whether images are turned as their EXIF says; default: as in the network's training", None
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentEvalOptions(SegmenterOptions):
    """Options of ``eval`` for segmentation."""

    data: str | None = option("dataset: a folder as in training; default: that of the run", None)
    data_root: Path | None = option("where a relative folder starts", None, metavar="FOLDER")
    split: Literal["validation", "train", "test"] = option("part of the dataset", "validation")
    mask_values: tuple[int, ...] | None = option("value of each class in the masks; default: as the data says", None)
    max_images: int | None = option("take at most so many images, the first ones", None)
    num_workers: int = option("processes that load images", 0)
    on_bad_image: Literal["skip", "stop"] = option(
        "an image that cannot be read is named, then skipped or fatal", "stop"
    )
    output: Path | None = option("also write the scores of each class to this file", None, metavar="FILE.csv")
    force: bool = option("overwrite that file if it exists", False)
    json: bool = option("JSON instead of a table", False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentPredictOptions(SegmenterOptions):
    """Options of ``predict`` for segmentation."""

    inputs: tuple[str, ...] = option(
        "image files, folders (searched with their sub-folders), videos (all frames), or - for an image on standard "
        "input",
        metavar="INPUT",
        positional=True,
    )
    json: bool = option("one JSON object a line for each image, instead of text", False)
    output: Path | None = option(
        "folder for pictures: NAME.png holds class numbers with their colours, NAME_overlay.png the image below them; "
        "of a video NAME_overlay.mp4",
        None,
        metavar="FOLDER",
    )
    force: bool = option("overwrite pictures that exist", False)


def _train(config: SegmentConfig, *, resume: bool) -> TrainResult:
    from visionmlp.tasks.segment.run import train

    return train(config, resume=resume)


def _evaluate(options: SegmentEvalOptions) -> Scores:
    from visionmlp.tasks.segment.evaluation import scores

    return scores(options)


def _predict(options: SegmentPredictOptions) -> "Iterator[Prediction]":
    from visionmlp.tasks.segment.predict import predictions

    return predictions(options)


def _measure_input(config: SegmentConfig, *, num_workers: Sequence[int], steps: int) -> "InputBenchmark":
    from visionmlp.tasks.segment.input_bench import measure_input

    return measure_input(config, num_workers=num_workers, steps=steps)


def _recognises(folder: Path) -> bool:
    from visionmlp.tasks.segment.layouts import part_names

    return bool(part_names(folder))


def _splits(data: str, root: Path | None) -> "dict[str, MaskedSplit]":
    from visionmlp.tasks.segment.checking import splits

    folder = (root or Path()) / data
    if not folder.is_dir():
        raise DataError(f"no folder {folder}; data of this task is a folder, see docs/segmentation.md")
    return splits(folder)


TASK = TaskDefinition(
    summary="a class for each pixel of an image",
    config=SegmentConfig,
    train=_train,
    eval_options=SegmentEvalOptions,
    evaluate=_evaluate,
    predict_options=SegmentPredictOptions,
    predict=_predict,
    answer_columns=(),
    measure_input=_measure_input,
    data_check=DataCheck(recognises=_recognises, splits=_splits),
)
