"""Options of DINO runs. Defaults are the authors' for 100 epochs with the batch size of one node, scaled to 256."""

import dataclasses
from typing import ClassVar, Literal

from visionmlp.engine.config import option
from visionmlp.tasks.self_supervised.config import SelfSupervisedConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class DinoConfig(SelfSupervisedConfig):
    """Options of a run. ``lr`` is for the whole batch: the authors' is 5e-4 for each 256 images."""

    task: ClassVar[str] = "dino"

    batch_size: int = option(256, "images of one step, over all devices and accumulated parts", group="optimisation")
    lr: float = option(5e-4, "highest learning rate, for the whole batch_size", group="optimisation")
    weight_decay: float = option(0.04, "of matrices and kernels; biases and vectors have none", group="optimisation")
    weight_decay_end: float | None = option(
        0.4, "weight decay at the end, on a cosine from weight_decay", group="optimisation"
    )
    warmup_epochs: float = option(10.0, "of linear rise to lr, at the start of the schedule", group="optimisation")
    warmup_lr: float = option(0.0, "learning rate that warm-up starts from", group="optimisation")
    min_lr: float = option(1e-6, "learning rate at the end of cosine and linear", group="optimisation")
    clip_grad: float | None = option(3.0, "largest norm of the gradient", group="optimisation")
    clip_grad_each: bool = option(
        True, "clip_grad holds for the gradient of each parameter, not of all together", group="optimisation"
    )
    drop_path_rate: float | None = option(
        0.1, "probability that the student skips a residual branch in training", group="model"
    )

    out_dim: int = option(65536, "prototypes", group="head")
    hidden_dim: int = option(2048, "width of the head's hidden layers", group="head")
    bottleneck_dim: int = option(256, "width before the prototypes", group="head")
    head_layers: int = option(3, "linear layers before the prototypes", group="head")
    head_batch_norm: bool = option(False, "BatchNorm in the head", group="head")
    norm_last_layer: bool = option(True, "prototypes keep length one", group="head")
    freeze_last_layer: int = option(1, "epochs in which the prototypes rest", group="head")

    teacher_momentum: float = option(
        0.996, "of the teacher's average at the start; it rises to 1 (0.9995 at batch_size 256)", group="teacher"
    )
    teacher_temperature: float = option(0.04, "of the teacher's softmax", group="teacher")
    warmup_teacher_temperature: float = option(0.04, "teacher_temperature in the first epoch", group="teacher")
    warmup_teacher_temperature_epochs: int = option(
        0, "in which it rises, epoch by epoch, to teacher_temperature", group="teacher"
    )
    student_temperature: float = option(0.1, "of the student's softmax", group="teacher")
    center_momentum: float = option(0.9, "of the centre's average", group="teacher")

    global_scale: tuple[float, float] = option(
        (0.4, 1.0), "least and largest area of the two global crops; (0.14, 1) without local crops", group="crops"
    )
    local_crops: int = option(8, "local crops of each image", group="crops")
    local_scale: tuple[float, float] = option((0.05, 0.4), "least and largest area of local crops", group="crops")
    local_size: int = option(96, "side of local crops in pixels", group="crops")
    local_fit: Literal["auto", "native", "resize"] = option(
        "auto",
        "how local crops meet the model: at local_size, resized to its input, or whichever it can take",
        group="crops",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("out_dim", "hidden_dim", "bottleneck_dim", "head_layers", "local_size"):
            self.require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("freeze_last_layer", "warmup_teacher_temperature_epochs", "local_crops"):
            self.require(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("teacher_temperature", "warmup_teacher_temperature", "student_temperature"):
            self.require(getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name)}")
        for name in ("teacher_momentum", "center_momentum"):
            self.require(0 <= getattr(self, name) <= 1, f"{name} must be in [0, 1], got {getattr(self, name)}")
        for name in ("global_scale", "local_scale"):
            low, high = getattr(self, name)
            self.require(0 < low <= high <= 1, f"{name} must be two areas in (0, 1], the smaller first")
