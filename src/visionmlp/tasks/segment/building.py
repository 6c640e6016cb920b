"""What a run is made of, each a function of its options: network, transforms, loss, and how images are evaluated."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch

from visionmlp.data import BadImageLog
from visionmlp.data.batches import EpochOrder
from visionmlp.data.loading import EvaluationLoader, TrainingLoader
from visionmlp.errors import InvalidConfig
from visionmlp.models.backbone import Backbone
from visionmlp.models.checkpoint import default_preprocessing
from visionmlp.models.segmenter import Segmenter, create_segmenter
from visionmlp.tasks.building import build_dense_network
from visionmlp.tasks.segment.classes import Classes, Colour, colour_map
from visionmlp.tasks.segment.config import SegmentConfig
from visionmlp.tasks.segment.data import MaskedImages, check_masks, collate, collate_evaluation, require_same_classes
from visionmlp.tasks.segment.inference import Inference
from visionmlp.tasks.segment.layouts import Pairs, open_pairs
from visionmlp.tasks.segment.loss import SegmentationLoss
from visionmlp.tasks.segment.transforms import EvaluationTransform, Normalise, TrainingTransform

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_CROP = (512, 512)
_LARGEST = 1 << 16
"""Pixels of a side that a checkpoint may ask for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preparation:
    """How the images of a trained network are prepared and evaluated, saved with its weights."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    palette: tuple[Colour, ...]
    """Colours of the classes."""
    inference: Inference
    resize: tuple[int, int] | None = None
    size_divisor: int = 1
    exif_orientation: bool = True

    @property
    def normalise(self) -> Normalise:
        """Of an image behind its geometry."""
        return Normalise(mean=self.mean, std=self.std)

    def transform(self, scales: Sequence[float] = (1.0,)) -> EvaluationTransform:
        """The image in the sizes that the network sees."""
        return EvaluationTransform(
            normalise=self.normalise, resize=self.resize, size_divisor=self.size_divisor, scales=tuple(scales)
        )

    def to_saved(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "mean": list(self.mean),
            "std": list(self.std),
            "exif_orientation": self.exif_orientation,
            "palette": [list(colour) for colour in self.palette],
            "resize": None if self.resize is None else list(self.resize),
            "size_divisor": self.size_divisor,
            "inference": self.inference.mode,
            "window": list(self.inference.window),
            "stride": list(self.inference.stride),
        }

    @classmethod
    def from_saved(cls, values: Mapping[str, Any], own: "Preparation") -> "Preparation":
        """The inverse.

        Args:
            values: saved with the weights.
            own: stands for what these do not say.

        Raises:
            InvalidConfig: for values that `to_saved` does not give.
        """
        known = {
            "mean",
            "std",
            "exif_orientation",
            "palette",
            "resize",
            "size_divisor",
            "inference",
            "window",
            "stride",
        }
        if unknown := sorted(set(values) - known):
            raise InvalidConfig(f"the preprocessing saved with the weights has an unknown {', '.join(unknown)}")
        try:
            given = dict(values)
            inference = dataclasses.replace(
                own.inference,
                mode=given.pop("inference", own.inference.mode),
                **{name: _pair(given.pop(name)) for name in ("window", "stride") if name in given},
            )
            if given.get("resize") is not None:
                given["resize"] = _pair(given["resize"])
            if "palette" in given:
                given["palette"] = tuple((int(r), int(g), int(b)) for r, g, b in given["palette"])
            tuples = {name: tuple(given.pop(name)) for name in ("mean", "std") if name in given}
            result = dataclasses.replace(own, inference=inference, **tuples, **given)
        except (TypeError, ValueError) as error:
            raise InvalidConfig(f"the preprocessing saved with the weights cannot be used: {error}") from error
        if not result._can_be(own):
            raise InvalidConfig("the preprocessing saved with the weights does not fit the network")
        return result

    def _can_be(self, own: "Preparation") -> bool:
        """Whether training gives such values."""
        inference, divisor = self.inference, self.size_divisor
        sides = (*inference.window, *inference.stride, *(self.resize or ()))
        return (
            inference.mode in ("whole", "slide")
            and len(self.palette) == len(own.palette)
            and all(0 <= part <= 255 for colour in self.palette for part in colour)
            and len(self.mean) == len(self.std) == len(own.mean)
            and type(divisor) is int
            and all(1 <= side <= _LARGEST for side in (divisor, *sides))
        )


def _pair(values: Sequence[int]) -> tuple[int, int]:
    height, width = values
    return int(height), int(width)


def own_preparation(backbone: Backbone, num_classes: int) -> Preparation:
    """What is done to images where a checkpoint says nothing."""
    own = default_preprocessing(backbone)
    size = backbone.config.img_size
    return Preparation(
        mean=tuple(own["mean"]),
        std=tuple(own["std"]),
        palette=colour_map(num_classes),
        inference=Inference(window=size, stride=size, least=backbone.least_side),
    )


def build_network(config: SegmentConfig, num_classes: int, class_names: Sequence[str] | None = None) -> Segmenter:
    """The network of a run before training.

    Args:
        config: of the run.
        num_classes: of the data.
        class_names: which of the classes a network to begin with may know; None if nothing is known of them.

    Raises:
        VisionMLPError: for a backbone that cannot be built or loaded, or a head that does not fit it.
    """
    return build_dense_network(config, lambda backbone: _with_head(config, backbone, num_classes), class_names)


def _with_head(config: SegmentConfig, backbone: Backbone, num_classes: int) -> Segmenter:
    channels = len(default_preprocessing(backbone)["mean"])
    config.require(channels == 3, f"{backbone.name} takes {channels} channels, but images have 3; leave in_chans out")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed + 1)  # the backbone has drawn from the seed itself
        return create_segmenter(
            backbone,
            head=config.head,
            num_classes=num_classes,
            channels=config.head_channels,
            auxiliary_channels=config.auxiliary_channels,
            neck_channels=config.neck_channels,
            dropout=config.head_dropout,
            tile_overlap=config.tile_overlap,
            out_indices=config.out_indices,
            out_channels=config.out_channels,
        )


def crop_size_of(config: SegmentConfig, backbone: Backbone) -> tuple[int, int]:
    """Height and width of training crops.

    Raises:
        InvalidConfig: for crops that a model of one size does not take.
    """
    size = cast("tuple[int, int]", tuple(backbone.config.img_size))
    if backbone.input_sizes != "fixed" or config.tile_overlap is not None:
        return config.crop_size or _CROP
    if config.crop_size not in (None, size):
        height, width = config.crop_size or size
        raise InvalidConfig(
            f"{backbone.name} as built takes {size[0]}x{size[1]} only, so crops cannot be {height}x{width}; give "
            f"crop_size {size[0]} {size[1]}, img_size, or tile_overlap 0 to cut crops into windows"
        )
    return size


def preparation_of(config: SegmentConfig, network: Segmenter, classes: Classes) -> Preparation:
    """How a run's images are prepared and evaluated.

    Raises:
        InvalidConfig: for whole images with a model of one size, or windows that it does not take.
    """
    backbone = network.backbone
    own = default_preprocessing(backbone)
    crop = crop_size_of(config, backbone)
    fixed = backbone.input_sizes == "fixed" and config.tile_overlap is None
    mode = config.inference or ("slide" if fixed else "whole")
    window = config.window or crop
    if fixed and (mode == "whole" or window != crop):
        raise InvalidConfig(
            f"{backbone.name} as built takes {crop[0]}x{crop[1]} only; evaluate by inference slide with that window, "
            "or give tile_overlap 0 to cut whole images into windows"
        )
    stride = config.stride or (max(1, window[0] * 2 // 3), max(1, window[1] * 2 // 3))
    mean, std = (tuple(getattr(config, name) or own[name]) for name in ("mean", "std"))
    config.require(len(mean) == len(std) == 3, "mean and std need one number for each of 3 channels")
    return Preparation(
        mean=mean,
        std=std,
        palette=classes.palette,
        inference=Inference(mode=mode, window=window, stride=stride, least=backbone.least_side),
        resize=config.resize,
        size_divisor=config.size_divisor,
        exif_orientation=config.exif_orientation,
    )


def loss_of(config: SegmentConfig) -> SegmentationLoss:
    """What a run learns by."""
    return SegmentationLoss(
        normaliser=config.loss_normaliser,
        auxiliary_weight=config.auxiliary_weight,
        dice_weight=config.dice_weight,
        ohem_threshold=config.ohem_threshold,
        ohem_min_kept=config.ohem_min_kept,
    )


def open_data(config: SegmentConfig) -> tuple[Pairs, Pairs]:
    """The images of a run, to train and to evaluate on.

    Raises:
        DataError: see `open_pairs` and `check_masks`.
    """
    folder = config.data if config.data_root is None else str(config.data_root / config.data)
    splits = [
        open_pairs(folder, split, num_classes=config.num_classes, mask_values=config.mask_values).first(
            config.max_images
        )
        for split in ("train", "validation")
    ]
    for pairs in splits:
        check_masks(pairs)
    require_same_classes(splits[0].classes, splits[1].classes, splits[1].title)
    return splits[0], splits[1]


def training_batches(
    config: SegmentConfig,
    fabric: "Fabric",
    pairs: Pairs,
    crop: tuple[int, int],
    preparation: Preparation,
    log: BadImageLog,
) -> TrainingLoader:
    """Augmented batches of this process."""
    transform = TrainingTransform(
        normalise=preparation.normalise,
        crop_size=crop,
        resize=config.resize,
        scale_range=config.scale_range,
        max_class_share=config.max_class_share,
        hflip=config.hflip,
        brightness=config.brightness,
        contrast=config.contrast,
        saturation=config.saturation,
        hue=config.hue,
    )
    order = EpochOrder(len(pairs), config.part_size, seed=config.seed, rank=fabric.global_rank, ranks=fabric.world_size)
    return TrainingLoader(
        MaskedImages(pairs, exif_orientation=config.exif_orientation),
        transform,
        order,
        collate=collate,
        bad_images=log,
        num_workers=config.num_workers,
        pin_memory=fabric.device.type == "cuda",
    )


def evaluation_batches(
    pairs: Pairs,
    transform: EvaluationTransform,
    *,
    exif_orientation: bool,
    batch_size: int,
    num_workers: int,
    log: BadImageLog,
    rank: int = 0,
    ranks: int = 1,
) -> EvaluationLoader:
    """A process's share of all images."""
    return EvaluationLoader(
        MaskedImages(pairs, exif_orientation=exif_orientation),
        transform,
        batch_size=batch_size,
        collate=collate_evaluation,
        bad_images=log,
        rank=rank,
        ranks=ranks,
        num_workers=num_workers,
    )


def shown_numbers(count: int, images: int) -> list[int]:
    """Numbers of ``count`` of the images, or of all if there are fewer, evenly spaced."""
    count = min(count, images)
    return [(2 * place + 1) * images // (2 * count) for place in range(count)]
