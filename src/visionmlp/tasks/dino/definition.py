"""DINO as the command line knows it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from visionmlp.tasks.definition import Scores, TaskDefinition
from visionmlp.tasks.dino.config import DinoConfig
from visionmlp.tasks.options import PredictOptions
from visionmlp.tasks.protocols.options import ProtocolOptions

if TYPE_CHECKING:
    from visionmlp.tasks.protocols.served import Features
    from visionmlp.tasks.self_supervised.run import SelfSupervisedResult


def _train(config: DinoConfig, *, resume: bool) -> "SelfSupervisedResult":
    from visionmlp.tasks.dino.run import train

    return train(config, resume=resume)


def _evaluate(options: ProtocolOptions) -> Scores:
    from visionmlp.tasks.protocols.served import scores

    return scores(options)


def _predict(options: PredictOptions) -> "Iterator[Features]":
    from visionmlp.tasks.protocols.served import features

    return features(options)


TASK = TaskDefinition(
    summary="features without labels, by self-distillation",
    config=DinoConfig,
    train=_train,
    eval_options=ProtocolOptions,
    evaluate=_evaluate,
    predict_options=PredictOptions,
    predict=_predict,
    answer_columns=("image", "index", "value"),
)
