"""Options of detection runs, each with its rule."""

# ruff: noqa: RUF009 (option() is a dataclass field)

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from visionmlp.engine.config import about, option
from visionmlp.tasks.image_config import ImageTrainingConfig

if TYPE_CHECKING:
    from visionmlp.tasks.detect.augmentation import DetectionAugmentation

MAX_SIZE = 1333
"""Of the long side of COCO's images, in the papers."""
MASK_HEADS = ("mask_rcnn", "cascade_mask_rcnn")
"""Heads that also find masks."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectConfig(ImageTrainingConfig):
    """Options of a run on objects in images."""

    task: ClassVar[str] = "detect"

    head: Literal["retinanet", "faster_rcnn", "mask_rcnn", "cascade_mask_rcnn"] = option(
        "retinanet", "the detector on the feature pyramid; the last two also find masks", group="model"
    )
    definition: Literal["mmdet", "torchvision", "detectron2", "asmlp"] = option(
        "mmdet", "whose version of the head, where they differ in losses, sampling and pooling", group="model"
    )
    settings: dict[str, Any] = dataclasses.field(
        default_factory=dict,
        metadata=about("what of the definition is to be otherwise; see docs/detection.md", "model"),
    )
    fpn_channels: int = option(256, "width of the feature pyramid", group="model")
    tile_overlap: int | None = option(
        None,
        "overlap, in pixels, of the windows that a model for one size of image sees the images through",
        group="model",
    )
    frozen_stages: int = option(
        -1, "what of the backbone rests: -1 nothing, 0 the stem, N also the first N feature levels", group="model"
    )

    data: str = dataclasses.field(
        metadata=about(
            "folder with images and COCO's JSON (annotations/instances_train2017.json and train2017/, or "
            "instances_train.json, train.json, train/_annotations.coco.json), or in VOC's layout",
            "data",
        )
    )
    train_annotations: Path | None = option(
        None, "JSON file, or list of VOC's, to train on, if not found by its name; from the data folder", group="data"
    )
    val_annotations: Path | None = option(None, "the same to evaluate on; may be the one to train on", group="data")
    empty_images: Literal["leave_out", "keep"] = option(
        "leave_out", "whether images without objects are trained on; mmdet leaves them out", group="data"
    )

    min_size: tuple[int, ...] | None = option(
        None,
        "short sides, one of which each training image is resized to; evaluation takes the last one; default: 800, or "
        "the side of the only image that the model takes",
        group="images",
    )
    max_size: int | None = option(
        None,
        "most of the long side, which a smaller short side then follows; default: 1333, or that only side",
        group="images",
    )

    hflip: float = option(0.5, "probability of a left-right flip", group="augmentation")
    crop: float = option(
        0.0,
        "probability that an image is resized, cropped and resized again, as in AS-MLP",
        group="augmentation",
    )
    crop_resize: tuple[int, ...] = option(
        (400, 500, 600), "short sides, one of which is the image's before the crop", group="augmentation"
    )
    crop_range: tuple[int, int] = option(
        (384, 600), "least and largest side of the crop, in pixels", group="augmentation"
    )
    photometric: bool = option(
        False, "random brightness, contrast, saturation, hue and order of channels, as in SSD", group="augmentation"
    )

    max_detections: int = option(
        100, "of an image, which the network gives and the score counts; COCO has 100", group="run"
    )
    pictures: int = option(8, "images of the evaluation data that are drawn behind each evaluation", group="run")

    epochs: int = option(12, "passes over the training images", group="optimisation")
    batch_size: int = option(16, "images of one step, over all devices and accumulated parts", group="optimisation")
    lr: float = option(1e-4, "highest learning rate, for the whole batch_size", group="optimisation")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("hflip", "crop"):
            value = getattr(self, name)
            self.require(0 <= value <= 1, f"{name} is a probability, in [0, 1], got {value}")
        for name in ("min_size", "crop_resize"):
            sizes = getattr(self, name)
            self.require(
                sizes is None or (len(sizes) > 0 and all(size >= 1 for size in sizes)),
                f"{name} must be sizes in pixels, got {sizes}",
            )
        self.require(self.max_size is None or self.max_size >= 1, f"max_size must be at least 1, got {self.max_size}")
        self.require(
            self.max_size is None or self.min_size is None or self.max_size >= max(self.min_size),
            f"max_size {self.max_size} must be at least the largest of min_size {self.min_size}",
        )
        self.require(
            0 < self.crop_range[0] <= self.crop_range[1],
            f"crop_range must be two sizes in pixels, the smaller first, got {self.crop_range}",
        )
        self.require(self.frozen_stages >= -1, f"frozen_stages must be at least -1, got {self.frozen_stages}")
        for name in ("max_detections", "fpn_channels"):
            self.require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        self.require(
            "detections_per_img" not in self.settings,
            "settings has detections_per_img, which is max_detections here; give that",
        )
        self.require(self.pictures >= 0, f"pictures must not be negative, got {self.pictures}")
        self.require(
            self.precision != "bf16-true",
            "precision bf16-true rounds boxes to whole steps of 4 pixels at 1000; use bf16-mixed",
        )

    @property
    def masks(self) -> bool:
        """Whether the head finds masks."""
        return self.head in MASK_HEADS

    @property
    def augmentation(self) -> "DetectionAugmentation":
        """What training does to an image and its objects."""
        from visionmlp.tasks.detect.augmentation import DetectionAugmentation

        return DetectionAugmentation(
            hflip=self.hflip,
            crop=self.crop,
            crop_resize=self.crop_resize,
            crop_range=self.crop_range,
            longest=self.max_size or MAX_SIZE,
            photometric=self.photometric,
        )
