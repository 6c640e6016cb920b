"""The training loop on Lightning Fabric. Knows no model, dataset or loss; a `Task` brings them together."""

from visionmlp.engine.config import TrainingConfig
from visionmlp.engine.evaluation import evaluate
from visionmlp.engine.launch import launch, on_rank_zero
from visionmlp.engine.loop import FitResult, fit
from visionmlp.engine.metrics import Collected, Metric, Sums
from visionmlp.engine.processes import Processes
from visionmlp.engine.run_folder import RunFolder
from visionmlp.engine.task import EpochData, Task, TrainingLoss

__all__ = [
    "Collected",
    "EpochData",
    "FitResult",
    "Metric",
    "Processes",
    "RunFolder",
    "Sums",
    "Task",
    "TrainingConfig",
    "TrainingLoss",
    "evaluate",
    "fit",
    "launch",
    "on_rank_zero",
]
