"""Options that self-supervised tasks share."""

import dataclasses

from visionmlp.engine.config import option
from visionmlp.tasks.image_config import LabelledImagesConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelfSupervisedConfig(LabelledImagesConfig):
    """Options of a run that learns without classes; classes only score it."""

    sync_batch_norm: bool = option(
        True, "BatchNorm takes its statistics over all devices, where there are several", group="optimisation"
    )
    knn_k: int = option(20, "nearest neighbours that vote in an evaluation", group="evaluation")
    knn_temperature: float = option(0.07, "of their weights", group="evaluation")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.knn_k >= 1, f"knn_k must be at least 1, got {self.knn_k}")
        self.require(self.knn_temperature > 0, f"knn_temperature must be positive, got {self.knn_temperature}")
        self.require(self.ema_decay is None, "the method has a moving average of its own; leave out ema_decay")
