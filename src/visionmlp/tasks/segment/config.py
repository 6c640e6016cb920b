"""Options of segmentation runs. Defaults are those that the families' dense results were obtained with, by AdamW."""

import dataclasses
from typing import ClassVar, Literal

from visionmlp.engine.config import about, option
from visionmlp.tasks.image_config import ImageTrainingConfig

_MOST_CLASSES = 255
"""Masks have 8 bits, and one value is ignored."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentConfig(ImageTrainingConfig):
    """Options of a run."""

    task: ClassVar[str] = "segment"

    batch_size: int = option(16, "images of one step, over all devices and accumulated parts", group="optimisation")
    lr: float = option(1e-4, "highest learning rate, for the whole batch_size", group="optimisation")
    weight_decay: float = option(0.01, "of matrices and kernels; biases and vectors have none", group="optimisation")
    schedule: Literal["cosine", "linear", "poly", "step", "constant"] = option(
        "poly", "how the learning rate falls, at every step", group="optimisation"
    )
    power: float = option(
        1.0,
        "of poly: the rate is min_lr + (lr - min_lr) * (1 - step / steps) ** power; 1 for AdamW, 0.9 for SGD",
        group="optimisation",
    )
    sync_batch_norm: bool = option(
        True, "BatchNorm takes its statistics over all devices, where there are several", group="optimisation"
    )

    head: Literal["upernet", "semantic_fpn"] = option("upernet", "what makes classes of the levels", group="head")
    head_channels: int | None = option(
        None, "width of the head; by default 512 of UperNet, 128 of Semantic FPN", group="head"
    )
    auxiliary_channels: int | None = option(
        None,
        "width of the auxiliary head, 0 for none; by default 256 with UperNet, none with Semantic FPN",
        group="head",
    )
    neck_channels: int | None = option(None, "width of Semantic FPN's neck, by default 256", group="head")
    head_dropout: float = option(0.1, "rate of whole channels before the classifiers", group="head")
    tile_overlap: int | None = option(
        None, "pixels that windows share into which images are cut, for models of one image size", group="head"
    )
    out_indices: tuple[int, ...] | None = option(
        None, "the model's levels; by default all stages or four evenly spaced blocks", group="head"
    )
    out_channels: int | None = option(None, "width of all levels, by a 1x1 convolution", group="head")

    data: str = dataclasses.field(
        metadata=about(
            "folder of ADE20K, Cityscapes or CamVid, or with images and masks in train and val (docs/segmentation.md)",
            "data",
        )
    )
    num_classes: int | None = option(
        None, "of data that does not say its classes: the masks hold 0 to num_classes - 1", group="data"
    )
    mask_values: tuple[int, ...] | None = option(
        None, "value of each class in the masks, such as 0 255, in place of what the data says", group="data"
    )
    resize: tuple[int, int] | None = option(
        None,
        "long and short side that images are resized to fit into, such as 2048 512; by default they keep their size",
        group="images",
    )
    size_divisor: int = option(
        1, "sides of evaluated images are rounded up to multiples of this, by resizing", group="images"
    )

    crop_size: tuple[int, int] | None = option(
        None,
        "height and width of training crops; by default 512 512, or the model's size where it takes no other",
        group="augmentation",
    )
    scale_range: tuple[float, float] = option(
        (0.5, 2.0), "least and largest factor that training images are resized by", group="augmentation"
    )
    max_class_share: float = option(
        0.75,
        "a crop is drawn again, up to 10 times, while one class has a larger share; 1 takes any",
        group="augmentation",
    )
    hflip: float = option(0.5, "probability of a left-right flip", group="augmentation")
    brightness: float = option(
        32.0, "largest change of brightness, of 255, in half of the images; 0 is off", group="augmentation"
    )
    contrast: float = option(0.5, "largest relative change of contrast, likewise", group="augmentation")
    saturation: float = option(0.5, "largest relative change of saturation, likewise", group="augmentation")
    hue: float = option(18.0, "largest turn of the hue, in 180ths of the circle, likewise", group="augmentation")

    loss_normaliser: Literal["all_pixels", "valid_pixels"] = option(
        "all_pixels",
        "what the sum over pixels is divided by: all, ignored ones too (mmsegmentation's), or valid ones",
        group="loss",
    )
    auxiliary_weight: float = option(0.4, "of the auxiliary head's loss", group="loss")
    dice_weight: float = option(0.0, "of the Dice loss, beside the cross-entropy; 0 is off", group="loss")
    ohem_threshold: float | None = option(
        None, "leave out pixels whose class has at least this probability, such as 0.7", group="loss"
    )
    ohem_min_kept: int = option(
        100_000, "pixels of an image that ohem_threshold keeps at least, the hardest", group="loss"
    )

    inference: Literal["whole", "slide"] | None = option(
        None,
        "evaluate whole images, or sliding windows; by default windows where the model takes one size only",
        group="evaluation",
    )
    window: tuple[int, int] | None = option(
        None, "height and width of sliding windows, by default those of crops", group="evaluation"
    )
    stride: tuple[int, int] | None = option(
        None, "pixels from one window to the next, by default two thirds of the window", group="evaluation"
    )
    eval_batch_size: int = option(
        1, "images that a device loads at a time to evaluate", group="evaluation", may_change=True
    )
    pictures: int = option(
        4,
        "evaluated images that are shown with their predictions, evenly spaced; 0 for none",
        group="evaluation",
        may_change=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("size_divisor", "eval_batch_size"):
            self.require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        self.require(
            self.num_classes is None or 1 <= self.num_classes <= _MOST_CLASSES,
            f"num_classes must be at least 1 and at most {_MOST_CLASSES}, or left out, got {self.num_classes}",
        )
        for name in ("head_channels", "neck_channels", "out_channels"):
            value = getattr(self, name)
            self.require(value is None or value >= 1, f"{name} must be at least 1, or left out, got {value}")
        for name in ("resize", "crop_size", "window", "stride"):
            value = getattr(self, name)
            self.require(value is None or min(value) >= 1, f"{name} must be two sides of at least 1 pixel, got {value}")
        for name in (
            "brightness", "hue", "auxiliary_weight", "dice_weight", "ohem_min_kept", "pictures",
        ):  # fmt: skip
            self.require(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("contrast", "saturation", "hflip"):
            self.require(0 <= getattr(self, name) <= 1, f"{name} must be in [0, 1], got {getattr(self, name)}")
        self.require(
            self.auxiliary_channels is None or self.auxiliary_channels >= 0,
            f"auxiliary_channels must not be negative, got {self.auxiliary_channels}",
        )
        self.require(0 <= self.head_dropout < 1, f"head_dropout must be in [0, 1), got {self.head_dropout}")
        self.require(
            0 < self.scale_range[0] <= self.scale_range[1],
            f"scale_range must be two positive factors, the smaller first, got {self.scale_range}",
        )
        self.require(0 < self.max_class_share <= 1, f"max_class_share must be in (0, 1], got {self.max_class_share}")
        self.require(
            self.ohem_threshold is None or 0 < self.ohem_threshold <= 1,
            f"ohem_threshold must be in (0, 1], got {self.ohem_threshold}",
        )
        self.require(
            self.neck_channels is None or self.head == "semantic_fpn",
            f"{self.head} has no neck; leave neck_channels out",
        )
        self.require(
            self.mask_values is None or all(0 <= value <= 255 for value in self.mask_values),
            f"mask_values must be in 0 to 255, got {self.mask_values}",
        )
        slides = self.inference != "whole"
        for name in ("window", "stride"):
            self.require(
                slides or getattr(self, name) is None,
                f"{name} is of sliding windows; give inference slide, or leave it out",
            )
