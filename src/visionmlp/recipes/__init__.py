"""Runs: configurations of the published ones, and the functions that carry them out."""

from typing import TYPE_CHECKING

from visionmlp.lazy import lazy_names
from visionmlp.recipes.register import RECIPES
from visionmlp.recipes.scale import scaled
from visionmlp.tasks.classify.config import ClassifyConfig

if TYPE_CHECKING:
    from visionmlp.tasks.classify.run import TrainResult, evaluate, read_config, train

__all__ = ["RECIPES", "ClassifyConfig", "TrainResult", "evaluate", "read_config", "scaled", "train"]

# the command line reads the recipes without torch
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "TrainResult": "visionmlp.tasks.classify.run",
        "evaluate": "visionmlp.tasks.classify.run",
        "read_config": "visionmlp.tasks.classify.run",
        "train": "visionmlp.tasks.classify.run",
    },
)
