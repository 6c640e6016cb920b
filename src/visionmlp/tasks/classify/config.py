"""Options of classification runs, each with its rule."""

# ruff: noqa: RUF009 (option() is a dataclass field)

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from visionmlp.engine.config import TrainingConfig, about, option
from visionmlp.errors import InvalidConfig

if TYPE_CHECKING:
    from visionmlp.data.transforms import Augmentation, Preprocessing
    from visionmlp.models.backbone import Backbone
    from visionmlp.tasks.classify.task import Mixing

INTERPOLATIONS = ("bilinear", "bicubic", "nearest", "lanczos")

# timm's, which skips a part that it cannot read, such as zzz in rand-m9-zzz
_NUMBER = r"\d+(\.\d*)?"
_POLICIES = {
    "rand": rf"(m|n|mmax|inc)\d+|(p|mstd){_NUMBER}|t(weights|3aw|3a)",
    "augmix": rf"(m|w|d|b)\d+|(a|mstd){_NUMBER}",
    **dict.fromkeys(("original", "originalr", "v0", "v0r", "3a"), rf"mstd{_NUMBER}"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifyConfig(TrainingConfig):
    """Options of a classification run."""

    task: ClassVar[str] = "classify"

    model: str = dataclasses.field(
        metadata=about("model name; or a run folder or checkpoint of a training form, to continue from", "model")
    )
    model_args: dict[str, Any] = dataclasses.field(
        default_factory=dict,
        metadata=about("fields of the model's family, such as {'kernel_sizes': [1, 3]}", "model"),
    )
    checkpoint: Path | None = option(None, "weights to start from: ours or the authors' (.pth, .npz)", group="model")
    checkpoint_prefix: str | None = option(
        None, "what leads to the weights in a trainer's file, if it holds several: teacher, base_encoder", group="model"
    )
    pretrained: bool = option(False, "start from the authors' weights, downloaded if need be", group="model")
    img_size: int | None = option(None, "side of the input in pixels, if not the model's own", group="model")
    drop_path_rate: float | None = option(None, "probability that training skips a residual branch", group="model")
    head_bias: float | None = option(None, "initial bias of the classifier, such as -6.9 for bce_sum", group="model")

    data: str = dataclasses.field(
        metadata=about(
            "folder with train/ and val/ (or valid/, validation/, test/) of class folders; or sklearn/digits, "
            "torch/cifar100, hfds/NAME, wds/NAME",
            "data",
        )
    )
    data_root: Path | None = option(
        None, "where a named dataset lies; a relative folder starts here", group="data", may_change=True
    )
    download: bool = option(
        False, "fetch a named dataset that is not there; otherwise nothing is fetched", group="data", may_change=True
    )
    num_workers: int = option(2, "processes that load images, for each device", group="data", may_change=True)
    on_bad_image: Literal["stop", "skip"] = option(
        "stop", "an image that cannot be read ends the run, or is skipped and named in bad_images.txt", group="data"
    )

    mean: tuple[float, ...] | None = option(None, "of the channels in [0, 1], if not the model's own", group="images")
    std: tuple[float, ...] | None = option(None, "of the channels in [0, 1], if not the model's own", group="images")
    interpolation: Literal["bilinear", "bicubic", "nearest", "lanczos"] | None = option(
        None, "of all resizing, if not the model's own", group="images"
    )
    crop_pct: float | None = option(
        None, "side of evaluation's central crop over the resized side, if not the model's own", group="images"
    )
    exif_orientation: bool = option(
        True, "turn images as their EXIF says, here and wherever the model is used", group="images"
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

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("hflip", "erasing", "mix_probability", "mix_switch"):
            value = getattr(self, name)
            self.require(0 <= value <= 1, f"{name} is a probability, in [0, 1], got {value}")
        for name in ("num_workers", "crop_padding", "rotation", "color_jitter", "mixup", "cutmix"):
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
            self.crop_pct is None or 0 < self.crop_pct <= 1, f"crop_pct must be in (0, 1], got {self.crop_pct}"
        )
        self.require(
            self.interpolation is None or self.interpolation in INTERPOLATIONS,
            f"interpolation must be one of {', '.join(INTERPOLATIONS)}, got {self.interpolation!r}",
        )
        self.require(
            not self.mixes or self.part_size % 2 == 0,
            f"mixup and cutmix pair images, so batch_size / devices / accumulate must be even, got {self.part_size}",
        )
        self.require(
            self.std is None or all(value > 0 for value in self.std), f"std must be positive numbers, got {self.std}"
        )
        if self.auto_augment is not None:
            _check_policy(self.auto_augment)

    @property
    def mixes(self) -> bool:
        """Whether training mixes images."""
        return (self.mixup > 0 or self.cutmix > 0) and self.mix_probability > 0

    @property
    def mixing(self) -> "Mixing":
        """Mixup and cutmix."""
        from visionmlp.tasks.classify.task import Mixing

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

    def preprocessing(self, model: "Backbone") -> "Preprocessing":
        """What evaluation does to an image: the model's own, where nothing else is given."""
        from visionmlp.data.transforms import Preprocessing
        from visionmlp.models.checkpoint import default_preprocessing

        own = default_preprocessing(model)
        names = ("mean", "std", "interpolation", "crop_pct", "exif_orientation")
        given = {name: getattr(self, name) for name in names}
        result = Preprocessing(**{**own, **{name: value for name, value in given.items() if value is not None}})
        channels = result.input_size[0]
        for name in ("mean", "std"):
            count = len(getattr(result, name))
            self.require(count == channels, f"{name} needs one number for each of {channels} channels, got {count}")
        return result


def _check_policy(policy: str) -> None:
    kind, *parts = policy.split("-")
    if kind not in _POLICIES or not all(re.fullmatch(_POLICIES[kind], part) for part in parts):
        raise InvalidConfig(
            f"auto_augment {policy!r} is not in timm's notation, such as rand-m9-mstd0.5-inc1 or augmix-m5-w4-d2"
        )
