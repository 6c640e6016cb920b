"""Runs: configurations of the published ones, and the functions that carry them out."""

from visionmlp.recipes.classify import ClassifyConfig, TrainResult, evaluate, read_config, train
from visionmlp.recipes.published import RECIPES

__all__ = ["RECIPES", "ClassifyConfig", "TrainResult", "evaluate", "read_config", "train"]
