"""What training does to an image and its objects, by one draw: torchvision's transforms, in torch's generator."""

import dataclasses
from typing import Any

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from visionmlp.tasks.detect.samples import Annotated, clipped


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectionAugmentation:
    """Flip, a second look at a part of the image, colours. The network itself resizes, to one of several sizes.

    The crop is the second branch of DETR, Sparse R-CNN and AS-MLP's Cascade: the image is resized, a part of it cut
    out, and the network resizes that. It may hold no object.
    """

    hflip: float = 0.5
    """Probability of a left-right flip."""
    crop: float = 0.0
    """Probability of the crop."""
    crop_resize: tuple[int, ...] = (400, 500, 600)
    """Short sides, one of which the image is resized to before the crop."""
    crop_range: tuple[int, int] = (384, 600)
    """Least and largest side of the crop; height and width are drawn one by one, and no larger than the image."""
    longest: int = 1333
    """Of the resized image's long side."""
    photometric: bool = False
    """Random brightness, contrast, saturation, hue and order of channels, as SSD has them."""

    def __call__(self, item: Annotated) -> Annotated:
        """An item with Pillow's image to another such."""
        width, height = item.image.size
        boxes = tv_tensors.BoundingBoxes(
            item.target["boxes"], format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=(height, width)
        )  # type: ignore[call-overload]
        parts: tuple[Any, ...] = (item.image, boxes)
        if "masks" in item.target:
            parts = (*parts, tv_tensors.Mask(item.target["masks"]))
        if torch.rand(()) < self.hflip:
            parts = tuple(functional.horizontal_flip(part) for part in parts)
        if torch.rand(()) < self.crop:
            parts = self._cropped(v2.RandomShortestSize(list(self.crop_resize), self.longest)(*parts))
        if self.photometric:
            parts = (v2.RandomPhotometricDistort()(parts[0]), *parts[1:])
        image, boxes, *masks = parts
        target = {**item.target, "boxes": boxes.as_subclass(torch.Tensor)}
        if masks:
            target["masks"] = masks[0].as_subclass(torch.Tensor)
        return Annotated(image, clipped(target, image.height, image.width))

    def _cropped(self, parts: tuple[Any, ...]) -> tuple[Any, ...]:
        width, height = parts[0].size
        tall, wide = (_drawn(*(min(side, most) for side in self.crop_range)) for most in (height, width))
        top, left = _drawn(0, height - tall), _drawn(0, width - wide)
        return tuple(functional.crop(part, top, left, tall, wide) for part in parts)


def _drawn(least: int, most: int) -> int:
    return int(torch.randint(least, most + 1, ()))
