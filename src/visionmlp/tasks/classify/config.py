"""Options of classification runs, each with its rule."""

# ruff: noqa: RUF009 (option() is a dataclass field)

import dataclasses
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from visionmlp.engine.config import option
from visionmlp.errors import InvalidConfig
from visionmlp.tasks.image_config import LabelledImagesConfig

if TYPE_CHECKING:
    from visionmlp.data.transforms import Augmentation

DEFAULT_TEACHER = "regnety_160.deit_in1k"
"""DeiT's: timm's RegNetY-16GF for the 1000 classes of ImageNet."""

# timm's, which skips a part that it cannot read, such as zzz in rand-m9-zzz
_NUMBER = r"\d+(\.\d*)?"
_POLICIES = {
    "rand": rf"(m|n|mmax|inc)\d+|(p|mstd){_NUMBER}|t(weights|3aw|3a)",
    "augmix": rf"(m|w|d|b)\d+|(a|mstd){_NUMBER}",
    **dict.fromkeys(("original", "originalr", "v0", "v0r", "3a"), rf"mstd{_NUMBER}"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixing:
    """How the images of a batch are mixed in training, by ``timm.data.Mixup``."""

    mixup: float = 0.0
    """Alpha of mixup; 0 leaves it out."""
    cutmix: float = 0.0
    """Alpha of cutmix; 0 leaves it out."""
    probability: float = 1.0
    """Of mixing at all."""
    switch_probability: float = 0.5
    """Of cutmix, where both are on."""
    mode: Literal["batch", "pair", "elem"] = "batch"
    """What shares one draw: a batch, a pair of images, or nothing."""

    @property
    def enabled(self) -> bool:
        """Whether anything is mixed."""
        return (self.mixup > 0 or self.cutmix > 0) and self.probability > 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifyConfig(LabelledImagesConfig):
    """Options of a classification run."""

    task: ClassVar[str] = "classify"

    frozen: Literal["nothing", "backbone"] = option(
        "nothing", "what is not trained: with backbone a linear classifier learns on its features", group="model"
    )
    head_bias: float | None = option(None, "initial bias of the classifier, such as -6.9 for bce_sum", group="model")

    compile: bool = option(
        False,
        "compile the network by torch.compile, for GPUs: on CPUs its float32 products are slower than eager mode's; "
        "needs a C++ compiler, and a minute before the first step",
        group="run",
    )

    crop: Literal["resized", "pad", "center"] = option(
        "resized",
        "training crops: a random area, resized; the image shifted within a border; or as in evaluation",
        group="augmentation",
    )
    crop_scale: tuple[float, float] = option(
        (0.08, 1.0), "least and largest area of a resized crop", group="augmentation"
    )
    crop_ratio: tuple[float, float] = option(
        (3 / 4, 4 / 3), "least and largest aspect ratio of a resized crop", group="augmentation"
    )
    crop_padding: int = option(4, "border of a pad crop, in pixels", group="augmentation")
    hflip: float = option(0.5, "probability of a left-right flip", group="augmentation")
    rotation: float = option(0.0, "largest rotation either way, in degrees", group="augmentation")
    color_jitter: float = option(0.0, "strength of random brightness, contrast, saturation", group="augmentation")
    auto_augment: str | None = option(None, "timm's notation, such as rand-m9-mstd0.5-inc1", group="augmentation")
    erasing: float = option(0.0, "probability of erasing a rectangle", group="augmentation")
    erasing_mode: Literal["const", "rand", "pixel"] = option(
        "pixel", "fill of erased rectangles: zeros, one colour, noise", group="augmentation"
    )
    repeated_augmentation: int = option(
        1, "augmented views of an image within an epoch, which then sees fewer images", group="augmentation"
    )
    mixup: float = option(0.0, "alpha of mixup; 0 is off", group="augmentation")
    cutmix: float = option(0.0, "alpha of cutmix; 0 is off", group="augmentation")
    mix_probability: float = option(1.0, "of mixup or cutmix", group="augmentation")
    mix_switch: float = option(0.5, "probability of cutmix, where mixup is on too", group="augmentation")
    mix_mode: Literal["batch", "pair", "elem"] = option(
        "batch", "what shares a draw of mixup or cutmix", group="augmentation"
    )

    loss: Literal["cross_entropy", "bce", "bce_sum"] = option(
        "cross_entropy", "or sigmoid cross-entropy, averaged or summed over classes", group="optimisation"
    )
    label_smoothing: float = option(0.0, "share of the target that goes to all classes evenly", group="optimisation")

    teacher: str | None = option(
        None,
        f"trained model to learn from: a name, whose published weights are fetched, such as {DEFAULT_TEACHER} (DeiT's) "
        "or another of timm's; or a run folder or checkpoint",
        group="distillation",
        may_change=True,
    )
    distill: Literal["soft", "hard"] = option(
        "hard", "learn the teacher's probabilities, or its first choice as a label", group="distillation"
    )
    distill_alpha: float = option(
        0.5, "share of the teacher in the loss; the labels have the rest", group="distillation"
    )
    distill_temperature: float = option(
        1.0, "divides the logits of soft distillation; DeiT's code has 1, its paper 3", group="distillation"
    )
    distill_reduction: Literal["deit", "batchmean"] = option(
        "deit",
        "soft distillation divides by images and classes as DeiT's code does, or by images only",
        group="distillation",
    )
    teacher_checkpoint: Path | None = option(
        None, "weights for a teacher's name; nothing is fetched then", group="distillation", may_change=True
    )
    teacher_precision: Literal["32-true", "bf16"] = option(
        "32-true", "of the teacher; bf16 is faster on GPUs", group="distillation"
    )
    teacher_cache: Path | None = option(
        None,
        "folder that keeps what the teacher says, for this run and others that show it the same images",
        group="distillation",
        may_change=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("hflip", "erasing", "mix_probability", "mix_switch"):
            value = getattr(self, name)
            self.require(0 <= value <= 1, f"{name} is a probability, in [0, 1], got {value}")
        for name in ("crop_padding", "rotation", "color_jitter", "mixup", "cutmix"):
            self.require(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")
        self.require(0 <= self.label_smoothing < 1, f"label_smoothing must be in [0, 1), got {self.label_smoothing}")
        self.require(
            self.repeated_augmentation >= 1,
            f"repeated_augmentation must be at least 1, got {self.repeated_augmentation}",
        )
        self.require(
            0 < self.crop_scale[0] <= self.crop_scale[1] <= 1,
            f"crop_scale must be two areas in (0, 1], the smaller first, got {self.crop_scale}",
        )
        self.require(
            0 < self.crop_ratio[0] <= self.crop_ratio[1],
            f"crop_ratio must be two positive ratios, the smaller first, got {self.crop_ratio}",
        )
        self.require(
            not self.mixing.enabled or self.part_size % 2 == 0,
            f"mixup and cutmix pair images, so batch_size / devices / accumulate must be even, got {self.part_size}",
        )
        self.require(
            not self.compile or self.strategy == "ddp", "compile goes with strategy ddp alone; leave one of both out"
        )
        if self.auto_augment is not None:
            _check_policy(self.auto_augment)
        self._check_distillation()

    def _check_distillation(self) -> None:
        changed = {
            field.name
            for field in dataclasses.fields(self)
            if field.metadata["group"] == "distillation" and getattr(self, field.name) != field.default
        }
        lonely = sorted(changed) if self.teacher is None else []
        self.require(not lonely, f"{' and '.join(lonely)} without teacher; give one, such as {DEFAULT_TEACHER}")
        self.require(0 <= self.distill_alpha <= 1, f"distill_alpha must be in [0, 1], got {self.distill_alpha}")
        self.require(
            0 < self.distill_temperature < math.inf,
            f"distill_temperature must be positive, got {self.distill_temperature}",
        )
        soft_only = sorted(changed & {"distill_temperature", "distill_reduction"}) if self.distill == "hard" else []
        self.require(not soft_only, f"{' and '.join(soft_only)} without distill soft; give it, or leave this out")

    @property
    def mixing(self) -> Mixing:
        """Mixup and cutmix."""
        return Mixing(
            mixup=self.mixup,
            cutmix=self.cutmix,
            probability=self.mix_probability,
            switch_probability=self.mix_switch,
            mode=self.mix_mode,
        )

    @property
    def augmentation(self) -> "Augmentation":
        """What training does to an image."""
        from visionmlp.data.transforms import Augmentation

        return Augmentation(
            crop=self.crop,
            crop_scale=self.crop_scale,
            crop_ratio=self.crop_ratio,
            crop_padding=self.crop_padding,
            hflip=self.hflip,
            rotation=self.rotation,
            color_jitter=self.color_jitter,
            auto_augment=self.auto_augment,
            erasing=self.erasing,
            erasing_mode=self.erasing_mode,
        )


def _check_policy(policy: str) -> None:
    kind, *parts = policy.split("-")
    if kind not in _POLICIES or not all(re.fullmatch(_POLICIES[kind], part) for part in parts):
        raise InvalidConfig(
            f"auto_augment {policy!r} is not in timm's notation, such as rand-m9-mstd0.5-inc1 or augmix-m5-w4-d2"
        )
