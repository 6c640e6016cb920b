"""Image classification: one class for an image."""

from typing import TYPE_CHECKING

from visionmlp.lazy import lazy_names

if TYPE_CHECKING:
    from visionmlp.tasks.classify.config import ClassifyConfig
    from visionmlp.tasks.classify.evaluation import Evaluation, evaluate
    from visionmlp.tasks.classify.run import TrainResult, read_config, train

__all__ = ["ClassifyConfig", "Evaluation", "TrainResult", "evaluate", "read_config", "train"]

# the command line reads the definition without torch
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "ClassifyConfig": "visionmlp.tasks.classify.config",
        "Evaluation": "visionmlp.tasks.classify.evaluation",
        "TrainResult": "visionmlp.tasks.classify.run",
        "evaluate": "visionmlp.tasks.classify.evaluation",
        "read_config": "visionmlp.tasks.classify.run",
        "train": "visionmlp.tasks.classify.run",
    },
)
