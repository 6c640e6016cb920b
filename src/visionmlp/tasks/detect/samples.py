"""Images with their boxes, labels and masks: read, augmented together, in batches."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from visionmlp.data.loading import Reading, Sample, read_image
from visionmlp.data.policy import BadImage
from visionmlp.tasks.detect.annotations import AnnotatedImage, AnnotatedSet

Target = dict[str, Tensor]
"""Of an image: ``boxes`` (N, 4), x and y of two corners in pixels, ``labels`` (N,), ``iscrowd`` (N,), and ``masks``
(N, H, W) of 0 and 1 for a network that learns them. N may be 0. Crowds are not learnt, nor taken for background."""


class Annotated(NamedTuple):
    """An image with its objects and crowds."""

    image: Any
    """Pillow's; (C, H, W) in [0, 1] behind the transform."""
    target: Target


class DetectionBatch(NamedTuple):
    """Images (C, H, W) in [0, 1], each of its own size, and their targets.

    ``keys`` (B, 3), int64, are as in `visionmlp.data.batches.Batch`; the last column is the image's index in the set.
    """

    images: list[Tensor]
    targets: list[Target]
    keys: Tensor


class AnnotatedImages:
    """Decoded images of a set with their targets.

    Boxes refer to pixels as they are stored, so an image is not turned as its EXIF says, unless only that gives it the
    size that the annotations are of.

    Args:
        images: the set.
        mode: Pillow's mode that images are decoded to.
        masks: whether targets have masks.
        exif_orientation: whether an image may be turned at all.
    """

    def __init__(
        self, images: AnnotatedSet, *, mode: Literal["L", "RGB"], masks: bool, exif_orientation: bool = True
    ) -> None:
        self.images, self.masks, self.exif_orientation = images.images, masks, exif_orientation
        self.mode: Literal["L", "RGB"] = mode

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> Reading:
        """See `visionmlp.data.loading.Reader.read`."""
        image = self.images[index]
        reading = self.pixels(image)
        if isinstance(reading.item, BadImage):
            return reading
        return Reading(Annotated(reading.item, target_of(image, masks=self.masks)), reading.notes)

    def pixels(self, image: AnnotatedImage) -> Reading:
        """The image in the position that its annotations refer to."""
        stored = None
        for turned in (False, True) if self.exif_orientation else (False,):
            reading = read_image(lambda: image.path, image.name, self.mode, exif_orientation=turned)
            if isinstance(reading.item, BadImage) or reading.item.size == image.size:
                return reading
            stored = stored or reading.item.size
        assert stored is not None
        sizes = [f"{width} x {height}" for width, height in (stored, image.size)]
        return Reading(BadImage(image.name, f"it is {sizes[0]} pixels, but its annotations are of {sizes[1]}"))


def target_of(image: AnnotatedImage, *, masks: bool) -> Target:
    """Boxes within the image, labels and masks of its objects and crowds."""
    width, height = image.size
    corners = [(x, y, x + w, y + h) for x, y, w, h in (one.box for one in image.instances)]
    target = {
        "boxes": torch.tensor(corners, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor([one.label for one in image.instances], dtype=torch.int64),
        "iscrowd": torch.tensor([one.crowd for one in image.instances], dtype=torch.int64),
    }
    if masks:
        drawn = np.zeros((len(image.instances), height, width), np.uint8)
        for mask, one in zip(drawn, image.instances, strict=True):
            if one.outline is not None:
                mask[:] = one.outline.mask()
        target["masks"] = torch.from_numpy(drawn)
    return clipped(target, height, width)


def clipped(target: Target, height: int, width: int) -> Target:
    """Objects with their boxes cut at the image's edge; those with a side under one pixel are left out."""
    limits = torch.tensor([width, height, width, height], dtype=torch.float32)
    boxes = target["boxes"].clamp(min=0).minimum(limits)
    kept = (boxes[:, 2:] - boxes[:, :2] >= 1).all(1)
    return {name: value[kept] for name, value in {**target, "boxes": boxes}.items()}


def mode_of(channels: int) -> Literal["L", "RGB"]:
    """Pillow's mode of images with so many channels."""
    return "L" if channels == 1 else "RGB"


def to_tensor(image: Image.Image) -> Tensor:
    """(C, H, W) in [0, 1]."""
    pixels = np.asarray(image)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy()).float() / 255


class ForTraining:
    """An augmentation, then a tensor."""

    def __init__(self, augment: Callable[[Annotated], Annotated]) -> None:
        self.augment = augment

    def __call__(self, item: Annotated) -> Annotated:
        """An item with Pillow's image to one with a tensor."""
        item = self.augment(item)
        return item._replace(image=to_tensor(item.image))


def for_evaluation(item: Annotated) -> Annotated:
    """A tensor only; the network resizes."""
    return item._replace(image=to_tensor(item.image))


def collate(samples: Sequence[Sample]) -> DetectionBatch:
    """Images of any sizes side by side."""
    return DetectionBatch(
        images=[sample.item.image for sample in samples],
        targets=[sample.item.target for sample in samples],
        keys=torch.tensor([sample.key for sample in samples]),
    )
