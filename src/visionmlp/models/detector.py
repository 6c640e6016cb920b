"""Detectors: RetinaNet, Faster, Mask and Cascade Mask R-CNN over a feature pyramid of any family.

Definitions are mmdet 2.11's, from which the papers' numbers come; those of detectron2 and torchvision are options.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes

from visionmlp.errors import DataError, InvalidConfig
from visionmlp.heads.detection.mask_stage import pasted
from visionmlp.heads.detection.matching import objects_of
from visionmlp.heads.detection.rcnn import RCNN
from visionmlp.heads.detection.retinanet import RetinaNet
from visionmlp.heads.detection.settings import Definition, DetectionSettings, Head, settings_of
from visionmlp.heads.detection.targets import checked_targets
from visionmlp.heads.fpn import FPN
from visionmlp.models.backbone import Backbone
from visionmlp.models.config import size_text
from visionmlp.models.dense import PYRAMID_STRIDES, DenseFeatures, dense_features
from visionmlp.models.dense_network import DenseNetwork, dense_backbone
from visionmlp.models.mmdet_layout import mmdet_name

_UNIT = 32
"""Pixels: batches are padded to multiples of it."""
_MIN_SIZE, _MAX_SIZE = 800, 1333


class Detector(DenseNetwork):
    """Levels, neck and head, with torchvision's call and results.

    Args:
        levels: of a backbone.
        options: see `DenseNetwork`.
        neck: on the levels.
        head: on the neck's.
        transform: normalises, resizes and batches images.
    """

    task: ClassVar[str] = "detect"

    def __init__(
        self,
        levels: DenseFeatures,
        options: Mapping[str, Any],
        *,
        neck: FPN,
        head: RetinaNet | RCNN,
        transform: GeneralizedRCNNTransform,
    ) -> None:
        super().__init__(levels, options)
        self.transform, self.neck, self.head = transform, neck, head

    @property
    def num_classes(self) -> int:
        """Without background; labels are from 1 to this."""
        return self.options["num_classes"]

    @property
    def settings(self) -> DetectionSettings:
        """What the head computes."""
        return self.head.settings

    @property
    def layout(self) -> Hashable:
        """See `DenseNetwork.layout`; the background is the first class, or the last."""
        return self.options["head"], self.settings.background

    @property
    def has_masks(self) -> bool:
        """Whether it is trained on masks and finds them."""
        return isinstance(self.head, RCNN) and len(self.head.mask_stages) > 0

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Images to losses, in training mode, or to detections, in evaluation.

        Args:
            images: (C, H, W) each, values from 0 to 1.
            targets: read in training mode: for each image ``boxes`` (N, 4) as x1, y1, x2, y2 in its pixels, ``labels``
                (N,) int64 from 1, ``masks`` (N, H, W) of 0 and 1 for heads that find them, and ``iscrowd`` (N,) where
                there are crowds, which are no positives, and within which nothing is a negative.

        Returns:
            In training mode losses by name: scalars with gradients, already weighted, to be added up. In evaluation for
            each image ``boxes`` (N, 4) in its pixels, ``labels`` (N,), ``scores`` (N,), best first, and where there are
            masks ``masks`` (N, 1, H, W), probabilities.

        Raises:
            InvalidConfig: in training mode without targets.
            DataError: for images or targets that cannot be, naming their place.
        """
        checked = self._checked(images)
        if not self.training:
            return self._found(checked)
        if targets is None:
            raise InvalidConfig("a detector in training mode needs targets; call detector.eval() for detections")
        read = checked_targets(targets, checked, num_classes=self.num_classes, masks=self.has_masks)
        batch, read = self.transform(checked, read)
        dtype = torch.promote_types(batch.tensors.dtype, torch.float32)
        objects = [objects_of(target, dtype) for target in read]
        _, losses = self.head(batch, self.neck(self.levels(batch.tensors)), objects)
        return losses

    def official_name(self, name: str) -> str | None:
        """As in mmdet's files, where the background is the last class; None for the pyramid, and for other orders."""
        if self.settings.background != "last":
            return name if name.startswith("neck.") else None
        return mmdet_name(name, staged=self.options["head"] == "cascade_mask_rcnn")

    def _checked(self, images: Sequence[Tensor]) -> list[Tensor]:
        channels = self.backbone.in_chans
        if not len(images):
            raise DataError("a detector needs at least one image")
        for index, image in enumerate(images):
            if image.dim() != 3 or image.shape[0] != channels or not image.is_floating_point():
                raise DataError(
                    f"image {index} must be floating-point ({channels}, H, W) with values from 0 to 1, "
                    f"got {image.dtype} {tuple(image.shape)}"
                )
            if (reason := self.refusal((image.shape[1], image.shape[2]))) is not None:
                raise DataError(f"image {index} of {size_text(image.shape[1:])} is {reason}")
        return list(images)

    def refusal(self, size: tuple[int, int]) -> str | None:
        """Why an image of a height and width cannot be looked at; None if it can."""
        short, long = sorted(size)
        sizes, longest = self.options["min_size"], self.options["max_size"]
        # the longer side is cut to max_size, and what is left of the shorter one may be nothing
        if short < 1 or int(short * min(min(sizes) / short, longest / long)) < 1:
            return f"too thin: with a longer side of {longest} its shorter one has no pixel; crop it, or leave it out"
        return None

    def _found(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        batch, _ = self.transform(images)
        found, _ = self.head(batch, self.neck(self.levels(batch.tensors)), None)
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        return [self._restored(*args) for args in zip(found, batch.image_sizes, sizes, strict=True)]

    def _restored(
        self, found: dict[str, Tensor], size: tuple[int, int], original: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Detections in an image's own pixels."""
        boxes = resize_boxes(found["boxes"], list(size), list(original))
        restored = {**found, "boxes": boxes}
        if "masks" in found:
            restored["masks"] = pasted(found["masks"], boxes, original, self.settings)
        return restored


def create_detector(
    backbone: Backbone | str,
    *,
    head: Head,
    num_classes: int,
    definition: Definition = "mmdet",
    settings: Mapping[str, Any] | None = None,
    min_size: int | Sequence[int] | None = None,
    max_size: int | None = None,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    fpn_channels: int = 256,
    img_size: int | tuple[int, int] | None = None,
    tile_overlap: int | None = None,
) -> Detector:
    """A network that finds objects, with fresh neck and head.

    Args:
        backbone: its weights are copied; a name is built with fresh ones, without classifier and with a norm on each
            level where the family's authors have one (``feature_norms``).
        head: ``retinanet``, ``faster_rcnn``, ``mask_rcnn`` or ``cascade_mask_rcnn``.
        num_classes: classes of objects, without background.
        definition: whose losses, targets and results: ``mmdet`` (2.11), ``asmlp`` (mmdet, with the Cascade head of
            AS-MLP's runs), ``detectron2`` or ``torchvision``.
        settings: single changes, see `visionmlp.heads.detection.settings.DetectionSettings`.
        min_size: pixels of the shorter side that images are resized to; of several, one at random in training and the
            last in evaluation. 800 if None, and the model's own size where it takes one only.
        max_size: pixels that the longer side then has at most. 1333 if None, or the model's own size.
        image_mean: of the channels; the backbone's if None.
        image_std: of the channels; the backbone's if None.
        fpn_channels: width of the neck and of the heads' convolutions.
        img_size: side or height and width that a name is built for; None is its native size.
        tile_overlap: cut images into windows of the size that the model takes, see `dense_features`. Without it a model
            of one size sees images of at most this size, with zeros on the right and at the bottom.

    Raises:
        UnknownModel: with the nearest names.
        InvalidConfig: for options that cannot work, naming those that can.
    """
    model = dense_backbone(backbone, img_size=img_size)
    chosen = settings_of(head, definition, settings)
    for name, value in (("num_classes", num_classes), ("fpn_channels", fpn_channels)):
        if type(value) is not int or value < 1:
            raise InvalidConfig(f"{name} must be a whole number of at least 1, got {value!r}")
    if tile_overlap is not None and type(tile_overlap) is not int:
        raise InvalidConfig(f"tile_overlap must be a whole number of pixels, got {tile_overlap!r}")
    side = _only_side(model) if tile_overlap is None else None
    sizes = _sizes("min_size", min_size, side or _MIN_SIZE)
    (longest,) = _sizes("max_size", None if max_size is None else [max_size], side or _MAX_SIZE)
    if side is not None and longest > side:
        raise InvalidConfig(
            f"{model.name} as built takes {size_text(model.config.img_size)} only, so max_size can be at most {side}; "
            "build it with a larger img_size, or cut images into windows: tile_overlap=0"
        )
    mean, std = (
        _channels(name, model.pretrained_cfg[name.removeprefix("image_")] if value is None else value, model.in_chans)
        for name, value in (("image_mean", image_mean), ("image_std", image_std))
    )
    dense = head == "retinanet"
    strides = PYRAMID_STRIDES[1:] if dense else PYRAMID_STRIDES
    levels = dense_features(model, tile_overlap=tile_overlap, strides=strides)
    widths = levels.feature_info.channels()
    network_head: RetinaNet | RCNN
    if dense:
        neck = FPN(
            widths, fpn_channels, extra_levels=2, extra_from=chosen.pyramid_from, relu_between=chosen.pyramid_relu
        )
        network_head = RetinaNet(fpn_channels, (*strides, 64, 128), num_classes, chosen)
    else:
        neck = FPN(widths, fpn_channels, extra_levels=1)
        masks = head != "faster_rcnn"
        network_head = RCNN(fpn_channels, (*strides, 64), num_classes, masks=masks, settings=chosen)
    options = {
        "head": head,
        "num_classes": num_classes,
        "definition": definition,
        "settings": dict(settings or {}),
        "min_size": sizes,
        "max_size": longest,
        "image_mean": mean,
        "image_std": std,
        "fpn_channels": fpn_channels,
        "tile_overlap": tile_overlap,
    }
    transform = GeneralizedRCNNTransform(sizes, longest, mean, std, size_divisible=side or _UNIT)  # type: ignore[arg-type]
    return Detector(levels, options, neck=neck, head=network_head, transform=transform)


def _only_side(model: Backbone) -> int | None:
    """The side of the one image that a model takes; None if it takes others too.

    Raises:
        InvalidConfig: if that image is not square.
    """
    if model.input_sizes != "fixed":
        return None
    height, width = model.config.img_size
    if height != width or height % _UNIT:
        raise InvalidConfig(
            f"{model.name} takes {size_text((height, width))} only; build it for squares of a multiple of {_UNIT} "
            "pixels (img_size), or cut images into windows: tile_overlap=0"
        )
    return height


def _sizes(name: str, given: int | Sequence[int] | None, default: int) -> list[int]:
    sizes = [default] if given is None else [given] if isinstance(given, int) else list(given)
    if not sizes or not all(type(size) is int and size >= 1 for size in sizes):
        raise InvalidConfig(f"{name} must be whole numbers of pixels, got {given!r}")
    return sizes


def _channels(name: str, given: Sequence[float], count: int) -> list[float]:
    values = [float(value) for value in given]
    if len(values) != count or (name == "image_std" and min(values) <= 0):
        raise InvalidConfig(f"{name} must be {count} numbers, one a channel, positive for image_std; got {values}")
    return values
