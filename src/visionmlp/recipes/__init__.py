"""Runs: configurations of the published ones, and the functions that carry them out."""

from visionmlp.recipes.published import RECIPES
from visionmlp.tasks.classify.run import ClassifyConfig, TrainResult, evaluate, read_config, train

__all__ = ["RECIPES", "ClassifyConfig", "TrainResult", "evaluate", "read_config", "train"]
