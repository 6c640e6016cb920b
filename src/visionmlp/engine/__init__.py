"""The training loop on Lightning Fabric. Knows no model, dataset or loss; a `Task` brings them together."""

from typing import TYPE_CHECKING

from visionmlp.lazy import lazy_names

if TYPE_CHECKING:
    from visionmlp.engine.config import TrainingConfig
    from visionmlp.engine.evaluation import evaluate
    from visionmlp.engine.loop import FitResult, fit
    from visionmlp.engine.metrics import Collected, Metric, Sums
    from visionmlp.engine.processes import Processes
    from visionmlp.engine.run_folder import RunFolder
    from visionmlp.engine.task import EpochData, RunContext, Task, TrainingLoss

__all__ = [
    "Collected",
    "EpochData",
    "FitResult",
    "Metric",
    "Processes",
    "RunContext",
    "RunFolder",
    "Sums",
    "Task",
    "TrainingConfig",
    "TrainingLoss",
    "evaluate",
    "fit",
]

# configurations and run folders are read without torch
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Collected": "visionmlp.engine.metrics",
        "EpochData": "visionmlp.engine.task",
        "FitResult": "visionmlp.engine.loop",
        "Metric": "visionmlp.engine.metrics",
        "Processes": "visionmlp.engine.processes",
        "RunFolder": "visionmlp.engine.run_folder",
        "RunContext": "visionmlp.engine.task",
        "Sums": "visionmlp.engine.metrics",
        "Task": "visionmlp.engine.task",
        "TrainingConfig": "visionmlp.engine.config",
        "TrainingLoss": "visionmlp.engine.task",
        "evaluate": "visionmlp.engine.evaluation",
        "fit": "visionmlp.engine.loop",
    },
)
