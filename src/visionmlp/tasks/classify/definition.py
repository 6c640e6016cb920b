"""Image classification as the command line knows it."""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from visionmlp.tasks.classify.config import ClassifyConfig
from visionmlp.tasks.definition import Scores, TaskDefinition
from visionmlp.tasks.options import EvalOptions, PredictOptions, option

if TYPE_CHECKING:
    from visionmlp.tasks.classify.predict import Prediction
    from visionmlp.tasks.classify.run import TrainResult


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifyPredictOptions(PredictOptions):
    """Options of ``predict`` for a classifier."""

    top_k: int = option("classes per image", 5)


def _train(config: ClassifyConfig, *, resume: bool) -> "TrainResult":
    from visionmlp.tasks.classify.run import train

    return train(config, resume=resume)


def _evaluate(options: EvalOptions) -> Scores:
    from visionmlp.tasks.classify.served import scores

    return scores(options)


def _predict(options: ClassifyPredictOptions) -> "Iterator[Prediction]":
    from visionmlp.tasks.classify.served import predictions

    return predictions(options)


TASK = TaskDefinition(
    summary="one class for an image",
    config=ClassifyConfig,
    train=_train,
    eval_options=EvalOptions,
    evaluate=_evaluate,
    predict_options=ClassifyPredictOptions,
    predict=_predict,
    answer_columns=("image", "rank", "index", "class", "probability"),
)
