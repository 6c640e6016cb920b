"""Detection as the command line knows it."""

# ruff: noqa: RUF009 (`option` returns a dataclass field)

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from visionmlp.tasks.definition import Scores, TaskDefinition, TrainResult
from visionmlp.tasks.detect.config import DetectConfig
from visionmlp.tasks.options import EvalOptions, PredictOptions, option

if TYPE_CHECKING:
    from visionmlp.tasks.detect.predict import Objects


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectEvalOptions(EvalOptions):
    """Options of ``eval`` for a detector."""

    model: str = option("run folder or checkpoint file (.safetensors)", metavar="MODEL", positional=True)
    data: str | None = option("folder of the dataset, as in train; default: that of the run", None)
    data_root: Path | None = option("where a relative data folder starts", None, metavar="FOLDER")
    annotations: Path | None = option(
        "JSON file, or list of VOC's, if not found by the split's name; a relative one starts in the data folder",
        None,
        metavar="FILE",
    )
    batch_size: int = option("images per step", 4)
    output: Path | None = option("write all detections to this file, as COCO's results", None, metavar="FILE.json")
    force: bool = option("overwrite the output if it exists", False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectPredictOptions(PredictOptions):
    """Options of ``predict`` for a detector."""

    model: str = option("run folder or checkpoint file (.safetensors)", metavar="MODEL", positional=True)
    score: float = option("least score of an object, in [0, 1]", 0.3)
    pictures: Path | None = option(
        "write each image with boxes, masks, names and scores into this folder, as PNG", None, metavar="FOLDER"
    )
    batch_size: int = option("images per step", 4)


def _train(config: DetectConfig, *, resume: bool) -> TrainResult:
    from visionmlp.tasks.detect.run import train

    return train(config, resume=resume)


def _evaluate(options: DetectEvalOptions) -> Scores:
    from visionmlp.tasks.detect.evaluation import scores

    return scores(options)


def _predict(options: DetectPredictOptions) -> "Iterator[Objects]":
    from visionmlp.tasks.detect.predict import predictions

    return predictions(options)


TASK = TaskDefinition(
    summary="objects in images: boxes, classes and masks",
    config=DetectConfig,
    train=_train,
    eval_options=DetectEvalOptions,
    evaluate=_evaluate,
    predict_options=DetectPredictOptions,
    predict=_predict,
    answer_columns=("image", "label", "score", "left", "top", "right", "bottom"),
)
