"""The options of commands that know no task: a field is the option, its type, its default and its help.

Those of ``train``, ``eval`` and ``predict`` are the task's, see `visionmlp.tasks.definition`.
"""

# ruff: noqa: RUF009 (`option` returns a dataclass field)

import dataclasses
from pathlib import Path
from typing import Literal

from visionmlp.tasks.options import MODEL_HELP, ModelOptions, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelsOptions:
    """Options of ``models``."""

    pattern: str = option("part of a name, or a pattern such as 'resmlp_*_p8'", "", metavar="PATTERN", positional=True)
    family: str | None = option("only this family: repmlpnet, resmlp, mlpmixer, ...", None, metavar="NAME")
    json: bool = option("JSON instead of a table", False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckDataOptions:
    """Options of ``check-data``."""

    data: str = option("dataset: a folder, or a name as in train --data", metavar="DATA", positional=True)
    data_root: Path | None = option("where a named dataset lies", None, metavar="FOLDER")
    task: str | None = option(
        "what the data is for: classify, segment or detect; default: by the folder's layout", None, metavar="NAME"
    )
    num_workers: int = option("processes that read", 0)
    json: bool = option("JSON with every name, instead of a report", False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackOptions:
    """Options of ``pack``."""

    folder: str = option(
        "folder with train/ and val/ of class folders, or of class folders alone; with --verify what to compare with",
        "",
        metavar="FOLDER",
        positional=True,
    )
    output: Path | None = option("folder to create, with shards and their index", None, metavar="DIR")
    images_per_shard: int | None = option("images in each shard; default: 1000", None)
    seed: int | None = option("of the order in which images are mixed; default: 0", None)
    verify: Path | None = option("instead, read every image of this packed folder", None, metavar="DIR")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainTokenizerOptions:
    """Options of ``train-tokenizer``."""

    data: str = option(
        "folder with parallel text, or hfds/NAME, as in train --task translate", metavar="DATA", positional=True
    )
    data_root: Path | None = option("where a relative folder starts, or hfds datasets lie", None, metavar="FOLDER")
    download: bool = option("fetch a dataset hfds/NAME that is not there; otherwise nothing is fetched", False)
    source: str = option("one language, as files are called", "en")
    target: str = option("the other", "de")
    split: str = option("name of the files to learn from", "train")
    vocab_size: int = option("symbols, of both languages; 260 of them are special ones and bytes", 8000)
    max_pairs: int | None = option("learn from at most so many pairs, the first ones", None)
    output: Path = option("file to write", metavar="FILE.model")
    force: bool = option("overwrite it if it exists", False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AverageOptions:
    """Options of ``average``."""

    run: str = option("folder of a run of --task translate", metavar="RUN", positional=True)
    checkpoints: int | None = option("how many, the newest; default: all that are there", None)
    output: Path = option("file to write", metavar="FILE.safetensors")
    force: bool = option("overwrite it if it exists", False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Options of ``compare``."""

    runs: tuple[str, ...] = option(
        "run folders, two to twelve; or the eval.json of several models on two datasets each",
        metavar="RUN",
        positional=True,
    )
    output: Path | None = option(
        "page to write, or of eval.json the figure; default: comparison.html, comparison.png", None, metavar="FILE"
    )
    metric: str | None = option(
        "column of metrics.csv; default: the first that all runs have; of eval.json: top1, top5, real, loss or ece; "
        "default: top1",
        None,
        metavar="NAME",
    )
    x_data: str | None = option(
        "dataset of the x axis, as in eval.json; default: that of the first file", None, metavar="DATA"
    )
    force: bool = option("overwrite the output if it exists", False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """Options of ``convert``."""

    source: Path = option(
        "the authors' file (.pth, .npz, .safetensors); with --to official a checkpoint of ours or a run folder",
        metavar="SOURCE",
        positional=True,
    )
    model: str | None = option("which model the authors' file holds; files of ours say it", None, metavar="NAME")
    output: Path = option(
        ".safetensors for a checkpoint of ours; for the authors' format .pth (.npz for MLP-Mixer), or .safetensors "
        "without their wrapper",
        metavar="FILE",
    )
    to: Literal["visionmlp", "official"] = option("format to write", "visionmlp")
    checkpoint_prefix: str | None = option(
        "what leads to the weights in the file, if it holds several: teacher, base_encoder", None, metavar="PREFIX"
    )
    ema: bool = option("take the moving average from the authors' file, not the weights", False)
    img_size: tuple[int, ...] | None = option(
        "side, or height and width, that the authors' file was made for; default: the model's own", None
    )
    force: bool = option("overwrite the output if it exists", False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeployOptions(ModelOptions):
    """Options of ``deploy``."""

    output: Path | None = option(
        "deploy checkpoint (.safetensors) to write; default: deploy.safetensors in the run folder, or "
        "NAME-deploy.safetensors beside the checkpoint (in this folder for a model name)",
        None,
        metavar="FILE",
    )
    force: bool = option("overwrite the output if it exists", False)
    batch_size: int = option("images per step of the latency measurement", 1)
    seconds: float = option("time to measure each of the two forms", 2.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions(ModelOptions):
    """Options of ``export``."""

    output: Path = option(
        "file to write: .onnx, .xml for OpenVINO (with its weights in .bin beside it), .pt2 for torch.export and "
        "AOTInductor, or .safetensors; of a translator the folder to write",
        metavar="FILE",
    )
    format: Literal["onnx", "openvino", "pt2", "aotinductor", "safetensors"] | None = option(
        "what to write; default: what the output's suffix says; aotinductor is machine code for processors like this "
        "one, and needs a C++ compiler",
        None,
    )
    form: Literal["deploy", "training"] = option(
        "the re-parameterised form, or the one with all its branches", "deploy"
    )
    batch: str = option("'dynamic', or the one batch size that the graph takes", "dynamic", metavar="dynamic|N")
    dynamic_size: bool = option(
        "a graph for images of many sizes, for AS-MLP, CycleMLP and Hire-MLP; the command says which", False
    )
    input_size: tuple[int, ...] | None = option(
        "side, or height and width, of the images that a graph of one size is for; default: what the model is built "
        "for, of a segmentation run the size of its crops",
        None,
    )
    dtype: Literal["float32", "bf16", "fp16", "int8"] = option(
        "precision: fp16 and bf16 halve files and weights (in OpenVINO fp16 is of the stored weights, bf16 of the "
        "products); int8 is for OpenVINO and ONNX and needs --calibration",
        "float32",
    )
    calibration: str | None = option("dataset that int8 takes its ranges from, as --data of eval", None, metavar="DATA")
    calibration_split: Literal["train", "validation", "test"] = option("part of that dataset", "train")
    calibration_images: int = option("images taken from it", 300)
    data_root: Path | None = option("where a named dataset lies", None, metavar="FOLDER")
    opset: int | None = option("ONNX operator set; default: PyTorch's choice", None)
    force: bool = option("overwrite the output if it exists", False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Options of ``bench``."""

    models: tuple[str, ...] = option(MODEL_HELP + "; several are compared", metavar="MODEL", positional=True)
    batch_size: tuple[int, ...] = option("images per call; several are a sweep", (1, 8))
    input_size: tuple[int, ...] = option(
        "side of the images in pixels, several are a sweep; models that do not take it as they are get built for it; "
        "default: each model's own",
        (),
    )
    dtype: tuple[Literal["float32", "tf32", "bfloat16", "float16", "int8"], ...] = option(
        "of weights and images, whatever the checkpoint holds; tf32 (float32 multiplied by matrix units) and float16 "
        "on CUDA only, int8 in openvino only",
        ("float32",),
    )
    form: tuple[Literal["training", "deploy"], ...] = option(
        "forms to measure; a deploy checkpoint has only the second", ("training", "deploy")
    )
    head: tuple[Literal["classifier", "levels", "upernet", "semantic_fpn"], ...] = option(
        "what stands on the backbone: its classifier, nothing but feature levels, or a segmentation head of 150 "
        "classes; models of one size then take others in windows",
        ("classifier",),
    )
    runtime: tuple[
        Literal[
            "eager", "packed", "compile", "cuda-graphs", "compile-cuda-graphs", "onnxruntime", "openvino", "aotinductor"
        ],
        ...,
    ] = option(
        "plain PyTorch, deploy forms with packed weights, torch.compile, CUDA graphs of plain or compiled calls, "
        "exported graphs (aotinductor compiles each for 10 to 60 seconds)",
        ("eager",),
    )
    training: bool = option("also measure a training step, forward and backward, eager or compiled", False)
    compare: tuple[Literal["timm", "peers"], ...] = option(
        "also measure timm's model of the same architecture, and well-known models of other kinds", ()
    )
    profile: bool = option("instead, show where the time goes layer by layer, against the roofline", False)
    seconds: float = option("time to measure each contender", 2.0)
    threads: int | None = option("CPU threads; default: PyTorch's choice", None)
    device: str = option("cpu, cuda, cuda:1, ...", "cpu", metavar="NAME")
    channels_last: bool = option("store images and convolution kernels channels last", False)
    data: str | None = option(
        "instead, measure how fast images come from this dataset, and how long training waits for them; with it, the "
        "options are those of train: bench MODEL --data FOLDER --help",
        None,
    )
    csv: Path | None = option("also write the table to this file", None, metavar="FILE")
    plot: Path | None = option("also draw speed and accuracy, or the sweeps, to this file", None, metavar="FILE.png")
    force: bool = option("overwrite the files if they exist", False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputBenchSwitches:
    """Options of ``bench --data`` beside those of training."""

    num_workers: tuple[int, ...] = option("processes that load images; several are several rows", (1, 2))
    steps: int = option("batches of each measurement, behind five that are not counted", 40)
    json: bool = option("JSON instead of a table", False)
    csv: Path | None = option("also write the table to this file", None, metavar="FILE")
    force: bool = option("overwrite the file if it exists", False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Options of ``demo``."""

    output: Path = option("folder for everything that the demo writes", Path("demo"), metavar="FOLDER")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskSwitch:
    """Option of ``eval`` and ``predict`` beside those of the task."""

    task: str = option("what the model was trained for, where neither run nor checkpoint says it", metavar="NAME")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecipesOptions:
    """Options of ``recipes``."""

    name: str = option(
        "all that one recipe says, and its configuration; default: a table of all", "", metavar="NAME", positional=True
    )
    json: bool = option("JSON instead of text", False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSwitches:
    """Options of ``train`` beside the configuration."""

    task: str = option("what to train for; decides all other options but these", metavar="NAME")
    recipe: str | None = option(
        "take the defaults from this published recipe; visionmlp recipes lists them", None, metavar="NAME"
    )
    scale: Literal["smoke", "small", "full"] | None = option(
        "shrink data, model and epochs of --recipe together: seconds, hours on two CPU cores, or as published", None
    )
    resume: bool = option("continue the run in the output folder from its last checkpoint, with its own config", False)
    print_config: bool = option("print the configuration that would be used, as YAML for --config, and stop", False)
