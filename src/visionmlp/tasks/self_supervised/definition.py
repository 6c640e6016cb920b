"""What self-supervised methods tell the command line: they differ in their options and their training."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from visionmlp.tasks.definition import Scores, TaskDefinition
from visionmlp.tasks.options import PredictOptions
from visionmlp.tasks.protocols.options import ProtocolOptions
from visionmlp.tasks.self_supervised.config import SelfSupervisedConfig

if TYPE_CHECKING:
    from visionmlp.tasks.protocols.served import Features


def self_supervised_task(
    *, summary: str, config: type[SelfSupervisedConfig], train: Callable[..., Any]
) -> TaskDefinition:
    """A task whose features are judged by nearest neighbours or a linear layer, and given by ``predict``."""
    return TaskDefinition(
        summary=summary,
        config=config,
        train=train,
        eval_options=ProtocolOptions,
        evaluate=_evaluate,
        predict_options=PredictOptions,
        predict=_predict,
        answer_columns=("image", "index", "value"),
    )


def _evaluate(options: ProtocolOptions) -> Scores:
    from visionmlp.tasks.protocols.served import scores

    return scores(options)


def _predict(options: PredictOptions) -> "Iterator[Features]":
    from visionmlp.tasks.protocols.served import features

    return features(options)
