"""Options that tasks on images share, each with its rule: the model, the dataset, how images are prepared."""

# ruff: noqa: RUF009 (option() is a dataclass field)

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from visionmlp.engine.config import TrainingConfig, about, option

if TYPE_CHECKING:
    from visionmlp.data.transforms import Preprocessing
    from visionmlp.models.backbone import Backbone

INTERPOLATIONS = ("bilinear", "bicubic", "nearest", "lanczos")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageTrainingConfig(TrainingConfig):
    """Options of a run on images."""

    sync_batch_norm: bool = option(
        False, "BatchNorm takes its statistics over all devices, where there are several", group="optimisation"
    )

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

    data: str = dataclasses.field(metadata=about("folder of the dataset", "data"))
    data_root: Path | None = option(None, "where a relative data folder starts", group="data", may_change=True)
    max_images: int | None = option(
        None, "take at most so many images to train, and as many to evaluate, the first ones", group="data"
    )
    num_workers: int = option(2, "processes that load images, for each device", group="data", may_change=True)
    on_bad_image: Literal["stop", "skip"] = option(
        "stop",
        "an image that cannot be read ends the run, or is skipped and named in bad_images.txt",
        group="data",
        may_change=True,
    )

    mean: tuple[float, ...] | None = option(None, "of the channels in [0, 1], if not the model's own", group="images")
    std: tuple[float, ...] | None = option(None, "of the channels in [0, 1], if not the model's own", group="images")
    exif_orientation: bool = option(
        True, "turn images as their EXIF says, here and wherever the model is used", group="images"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.num_workers >= 0, f"num_workers must not be negative, got {self.num_workers}")
        self.require(
            self.max_images is None or self.max_images >= 1,
            f"max_images must be at least 1, or left out, got {self.max_images}",
        )
        self.require(
            self.std is None or all(value > 0 for value in self.std), f"std must be positive numbers, got {self.std}"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledImagesConfig(ImageTrainingConfig):
    """Options of a run on images with classes, or on such images without a look at their classes."""

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
    max_images: int | None = option(
        None,
        "take at most so many images to train and as many to evaluate, the first of each class, as even as it goes",
        group="data",
    )

    interpolation: Literal["bilinear", "bicubic", "nearest", "lanczos"] | None = option(
        None, "of all resizing, if not the model's own", group="images"
    )
    crop_pct: float | None = option(
        None, "side of evaluation's central crop over the resized side, if not the model's own", group="images"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            self.crop_pct is None or 0 < self.crop_pct <= 1, f"crop_pct must be in (0, 1], got {self.crop_pct}"
        )
        self.require(
            self.interpolation is None or self.interpolation in INTERPOLATIONS,
            f"interpolation must be one of {', '.join(INTERPOLATIONS)}, got {self.interpolation!r}",
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
