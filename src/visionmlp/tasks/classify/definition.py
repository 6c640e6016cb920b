"""Image classification as the command line knows it."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from visionmlp.tasks.classify.config import ClassifyConfig
from visionmlp.tasks.definition import Scores, TaskDefinition
from visionmlp.tasks.options import PredictOptions, option
from visionmlp.tasks.protocols.options import ProtocolOptions

if TYPE_CHECKING:
    from visionmlp.bench.input_pipeline import InputBenchmark
    from visionmlp.tasks.classify.predict import Prediction
    from visionmlp.tasks.classify.run import TrainResult


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifyPredictOptions(PredictOptions):
    """Options of ``predict`` for a classifier."""

    top_k: int = option("classes per image", 5)


def _train(config: ClassifyConfig, *, resume: bool) -> "TrainResult":
    from visionmlp.tasks.classify.run import train

    return train(config, resume=resume)


def _evaluate(options: ProtocolOptions) -> Scores:
    if options.protocol is not None:
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


TASK = TaskDefinition(
    summary="one class for an image",
    config=ClassifyConfig,
    train=_train,
    eval_options=ProtocolOptions,
    evaluate=_evaluate,
    predict_options=ClassifyPredictOptions,
    predict=_predict,
    answer_columns=("image", "rank", "index", "class", "probability"),
    measure_input=_measure_input,
)
