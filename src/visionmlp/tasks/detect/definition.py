"""Detection as the command line knows it."""

# ruff: noqa: RUF009 (`option` returns a dataclass field)

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from visionmlp.errors import DataError
from visionmlp.tasks.definition import DataCheck, Scores, TaskDefinition, TrainResult
from visionmlp.tasks.detect.config import DetectConfig
from visionmlp.tasks.options import option

if TYPE_CHECKING:
    from visionmlp.bench.input_pipeline import InputBenchmark
    from visionmlp.tasks.detect.checking import AnnotatedSplit
    from visionmlp.tasks.detect.predict import Objects


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectorOptions:
    """Which detector, and what runs it."""

    model: str = option("run folder or checkpoint file (.safetensors)", metavar="MODEL", positional=True)
    device: str = option("cpu, cuda, cuda:1, ...", "cpu", metavar="NAME")
    threads: int | None = option("CPU threads; default: PyTorch's choice", None)
    batch_size: int = option("images per step", 4)
    exif_orientation: Literal["apply", "ignore"] | None = option(
        "whether images are turned as their EXIF says; default: as in the detector's training, else apply", None
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectEvalOptions(DetectorOptions):
    """Options of ``eval`` for a detector."""

    data: str | None = option("folder of the dataset, as in training; default: that of the run", None)
    data_root: Path | None = option("where a relative data folder starts", None, metavar="FOLDER")
    split: Literal["validation", "train", "test"] = option("part of the dataset", "validation")
    annotations: Path | None = option(
        "JSON file, or list of VOC's, if not found by the split's name; a relative one starts in the data folder",
        None,
        metavar="FILE",
    )
    num_workers: int = option("processes that load images", 0)
    on_bad_image: Literal["skip", "stop"] = option(
        "an image that cannot be read is named, then skipped or fatal", "stop"
    )
    json: bool = option("JSON instead of a table", False)
    output: Path | None = option("write all detections to this file, as COCO's results", None, metavar="FILE.json")
    force: bool = option("overwrite that file if it exists", False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectPredictOptions(DetectorOptions):
    """Options of ``predict`` for a detector."""

    inputs: tuple[str, ...] = option(
        "image files, folders (searched with their sub-folders), videos (all frames), or - for an image on standard "
        "input",
        metavar="INPUT",
        positional=True,
    )
    score: float = option("least score of an object, in [0, 1]", 0.3)
    json: bool = option("one JSON object a line for each image, instead of text", False)
    output: Path | None = option(
        "folder for each image with boxes, masks, names and scores as NAME.png, each video as NAME.mp4, and for "
        "objects.csv, a row an object",
        None,
        metavar="FOLDER",
    )
    force: bool = option("overwrite these files if they exist", False)


def _train(config: DetectConfig, *, resume: bool) -> TrainResult:
    from visionmlp.tasks.detect.run import train

    return train(config, resume=resume)


def _evaluate(options: DetectEvalOptions) -> Scores:
    from visionmlp.tasks.detect.evaluation import scores

    return scores(options)


def _predict(options: DetectPredictOptions) -> "Iterator[Objects]":
    from visionmlp.tasks.detect.predict import predictions

    return predictions(options)


def _measure_input(config: DetectConfig, *, num_workers: Sequence[int], steps: int) -> "InputBenchmark":
    from visionmlp.tasks.detect.input_bench import measure_input

    return measure_input(config, num_workers=num_workers, steps=steps)


def _recognises(folder: Path) -> bool:
    from visionmlp.tasks.detect.dataset import annotation_files

    return bool(annotation_files(folder))


def _splits(data: str, root: Path | None) -> "dict[str, AnnotatedSplit]":
    from visionmlp.tasks.detect.checking import splits

    folder = (root or Path()) / data
    if not folder.is_dir():
        raise DataError(f"no folder {folder}; data of this task is a folder, see docs/detection.md")
    return splits(folder)


TASK = TaskDefinition(
    summary="objects in images: boxes, classes and masks",
    config=DetectConfig,
    train=_train,
    eval_options=DetectEvalOptions,
    evaluate=_evaluate,
    predict_options=DetectPredictOptions,
    predict=_predict,
    answer_columns=(),
    measure_input=_measure_input,
    data_check=DataCheck(recognises=_recognises, splits=_splits),
)
