"""Options of MoCo v3 runs. Defaults are the authors' for transformers, which Sparse-MLP's paper uses too."""

import dataclasses
from typing import ClassVar

from visionmlp.engine.config import option
from visionmlp.tasks.self_supervised.config import SelfSupervisedConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class MocoConfig(SelfSupervisedConfig):
    """Options of a run. ``lr`` is for the whole batch: the authors' is 1.5e-4 for each 256 images."""

    task: ClassVar[str] = "moco"

    epochs: int = option(300, "passes over the training images", group="optimisation")
    batch_size: int = option(4096, "images of one step, over all devices and accumulated parts", group="optimisation")
    lr: float = option(2.4e-3, "highest learning rate, for the whole batch_size", group="optimisation")
    weight_decay: float = option(0.1, "of every parameter, biases and norms too", group="optimisation")
    warmup_epochs: float = option(40.0, "of linear rise to lr, at the start of the schedule", group="optimisation")
    warmup_lr: float = option(0.0, "learning rate that warm-up starts from", group="optimisation")

    temperature: float = option(0.2, "of the softmax over keys", group="contrast")
    momentum_encoder: float = option(
        0.99, "momentum of the key encoder's average at the start; it rises to 1", group="contrast"
    )
    momentum_rises: bool = option(True, "off keeps momentum_encoder as it is", group="contrast")
    projector_dim: int = option(256, "width of queries and keys", group="head")
    projector_hidden: int = option(4096, "width of the hidden layers of both heads", group="head")
    projector_layers: int = option(3, "linear layers of the projector", group="head")
    predictor_norm: bool = option(True, "BatchNorm at the predictor's end; off for ResNets", group="head")
    freeze_stem: bool = option(True, "the patch embedding stays as it was drawn, for stability", group="model")
    crop_scale: tuple[float, float] = option((0.08, 1.0), "least and largest area of the two crops", group="crops")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("projector_dim", "projector_hidden", "projector_layers"):
            self.require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        self.require(self.temperature > 0, f"temperature must be positive, got {self.temperature}")
        self.require(
            0 <= self.momentum_encoder <= 1, f"momentum_encoder must be in [0, 1], got {self.momentum_encoder}"
        )
        low, high = self.crop_scale
        self.require(0 < low <= high <= 1, "crop_scale must be two areas in (0, 1], the smaller first")
        self.require(
            self.accumulate == 1,
            "the keys of other parts would be no negatives, which changes the method; lower batch_size in place of "
            f"accumulate {self.accumulate}",
        )
        self.require(self.part_size >= 2, "a batch on one device needs two images to contrast")
