"""Image classification as the command line knows it."""

# ruff: noqa: RUF009 (`option` returns a dataclass field)

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from visionmlp.errors import InvalidConfig
from visionmlp.tasks.classify.config import ClassifyConfig
from visionmlp.tasks.definition import DataCheck, Scores, TaskDefinition, TrainResult
from visionmlp.tasks.options import PredictOptions, option
from visionmlp.tasks.protocols.options import ProtocolOptions

if TYPE_CHECKING:
    from visionmlp.bench.input_pipeline import InputBenchmark
    from visionmlp.data.check import LabelledSplit
    from visionmlp.tasks.classify.predict import Prediction


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifyEvalOptions(ProtocolOptions):
    """Options of ``eval`` for a classifier."""

    real_labels: Path | None = option(
        "also score ImageNet's validation images by their ReaL labels: the authors' real.json. Images are found by the "
        "number in their names, and may then lie in one folder, without classes",
        None,
        metavar="FILE",
    )
    ten_crop: bool = option(
        "average the probabilities of four corners and the centre, and mirrored; --crop-pct says how far apart", False
    )
    crop_pct: float | None = option(
        "side of a crop over the short side that the image is resized to; default: the model's own", None
    )
    output: str | None = option(
        "folder for scores, confusion matrix and reliability diagram (eval.json, confusion.csv and .png, "
        "calibration.csv, reliability.png); default: nothing is written. Of --protocol linear the run folder; default: "
        "the folder linear beside the weights",
        None,
        metavar="FOLDER",
    )
    force: bool = option("overwrite these files if they exist", False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifyPredictOptions(PredictOptions):
    """Options of ``predict`` for a classifier."""

    top_k: int = option("classes per image", 5)


def _train(config: ClassifyConfig, *, resume: bool) -> TrainResult:
    from visionmlp.tasks.classify.run import train

    return train(config, resume=resume)


def _evaluate(options: ClassifyEvalOptions) -> Scores:
    if options.protocol is not None:
        for name in ("real_labels", "ten_crop", "crop_pct", "force"):
            if getattr(options, name):
                raise InvalidConfig(f"--{name.replace('_', '-')} is about a model's own classes; leave out --protocol")
        if options.protocol == "knn" and options.output is not None:
            raise InvalidConfig("--protocol knn writes nothing; leave out --output")
        from visionmlp.tasks.protocols.served import scores as protocol_scores

        return protocol_scores(options)

    from visionmlp.tasks.classify.served import scores

    return scores(options)


def _predict(options: ClassifyPredictOptions) -> "Iterator[Prediction]":
    from visionmlp.tasks.classify.served import predictions

    return predictions(options)


def _measure_input(config: ClassifyConfig, *, num_workers: Sequence[int], steps: int) -> "InputBenchmark":
    from visionmlp.tasks.classify.input_bench import measure_input

    return measure_input(config, num_workers=num_workers, steps=steps)


def _splits(data: str, root: Path | None) -> "dict[str, LabelledSplit]":
    from visionmlp.data.check import LabelledSplit
    from visionmlp.data.sources import open_splits

    return {name: LabelledSplit(source) for name, source in open_splits(data, root=root).items()}


TASK = TaskDefinition(
    summary="one class for an image",
    config=ClassifyConfig,
    train=_train,
    eval_options=ClassifyEvalOptions,
    evaluate=_evaluate,
    predict_options=ClassifyPredictOptions,
    predict=_predict,
    answer_columns=("image", "rank", "index", "class", "probability"),
    measure_input=_measure_input,
    data_check=DataCheck(recognises=lambda _folder: False, splits=_splits),
)
