"""What happens to an image and its mask, by one draw: scale, crop, flip, colours, padding; as mmsegmentation does it.

The order is fixed, and draws come from Python's global generator. Sizes are (height, width) but for ``resize``, which
holds a long and a short side.
"""

import dataclasses
import random
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from visionmlp.tasks.segment.classes import IGNORE
from visionmlp.tasks.segment.data import Masked, Prepared, Viewed

_TRIES = 10
"""Crops that are drawn until none of the classes has too large a share."""
_CHANCE = 0.5
"""Of each of the changes of colour."""
_HUES = 180
"""Steps around the circle of hues that mmsegmentation counts in."""


def resized_size(
    size: tuple[int, int], resize: Sequence[int] | None, ratio: float = 1.0, divisor: int = 1
) -> tuple[int, int]:
    """Height and width that an image is resized to, keeping its aspect ratio.

    Args:
        size: of the image.
        resize: long and short side that it must fit into, whichever way it lies; None for its own size.
        ratio: factor of both.
        divisor: both sides are rounded up to multiples of this.
    """
    height, width = size
    factor = ratio
    if resize is not None:
        long, short = int(max(resize) * ratio), int(min(resize) * ratio)  # as mmsegmentation cuts them
        factor = min(long / max(size), short / min(size))
    sides = (max(1, int(side * factor + 0.5)) for side in (height, width))
    height, width = (-(-side // divisor) * divisor for side in sides)
    return height, width


@dataclasses.dataclass(frozen=True, kw_only=True)
class Normalise:
    """To a tensor (C, H, W), less the mean over the standard deviation of values in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, image: Image.Image) -> Tensor:
        """See the class."""
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return (pixels - mean) / std


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingTransform:
    """A `Masked` to a `Prepared` of ``crop_size``.

    Resizing is Pillow's: bilinear with antialiasing for the image, nearest for the mask. Where the image is smaller
    than the crop, zeros are added behind the normalisation, and `IGNORE` to the labels, on the right and at the bottom.
    """

    normalise: Callable[[Image.Image], Tensor]
    crop_size: tuple[int, int]
    resize: tuple[int, int] | None = None
    scale_range: tuple[float, float] = (0.5, 2.0)
    max_class_share: float = 0.75
    hflip: float = 0.5
    brightness: float = 32.0
    contrast: float = 0.5
    saturation: float = 0.5
    hue: float = 18.0

    def __call__(self, item: Masked) -> Prepared:
        """See the class."""
        image, mask = item.image, Image.fromarray(item.labels)
        height, width = resized_size((image.height, image.width), self.resize, random.uniform(*self.scale_range))
        if (width, height) != image.size:
            image = image.resize((width, height), Image.Resampling.BILINEAR)
            mask = mask.resize((width, height), Image.Resampling.NEAREST)
        labels = np.asarray(mask)
        top, left = self._corner(labels)
        bottom, right = min(top + self.crop_size[0], height), min(left + self.crop_size[1], width)
        image, labels = image.crop((left, top, right, bottom)), labels[top:bottom, left:right]
        if random.random() < self.hflip:
            image, labels = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), labels[:, ::-1]
        pixels = self.normalise(self._recoloured(image))
        padding = (0, self.crop_size[1] - labels.shape[1], 0, self.crop_size[0] - labels.shape[0])
        given = torch.from_numpy(labels.copy())  # PIL lends its memory
        return Prepared(F.pad(pixels, padding), F.pad(given, padding, value=IGNORE))

    def _corner(self, labels: np.ndarray) -> tuple[int, int]:
        """Of the crop: the first that shows two classes or more, none of them nearly alone; else the last one drawn."""
        top = left = 0
        for _ in range(_TRIES + 1 if self.max_class_share < 1 else 1):
            top, left = (
                random.randint(0, max(side - crop, 0)) for side, crop in zip(labels.shape, self.crop_size, strict=True)
            )
            seen = labels[top : top + self.crop_size[0], left : left + self.crop_size[1]]
            counts = np.bincount(seen.ravel(), minlength=256)
            counts[IGNORE] = 0
            if np.count_nonzero(counts) > 1 and counts.max() / counts.sum() < self.max_class_share:
                break
        return top, left

    def _recoloured(self, image: Image.Image) -> Image.Image:
        """Brightness, contrast, saturation, hue, each in half of the images; contrast first or last."""
        if self.brightness and random.random() < _CHANCE:
            image = _linear(image, 1.0, random.uniform(-self.brightness, self.brightness))
        first = random.random() < _CHANCE
        if first:
            image = self._contrasted(image)
        image = self._of_other_hue(image)
        return image if first else self._contrasted(image)

    def _contrasted(self, image: Image.Image) -> Image.Image:
        if not self.contrast or random.random() >= _CHANCE:
            return image
        return _linear(image, random.uniform(1 - self.contrast, 1 + self.contrast), 0.0)

    def _of_other_hue(self, image: Image.Image) -> Image.Image:
        saturate = bool(self.saturation) and random.random() < _CHANCE
        factor = random.uniform(1 - self.saturation, 1 + self.saturation) if saturate else 1.0
        turn = bool(self.hue) and random.random() < _CHANCE
        shift = random.uniform(-self.hue, self.hue) if turn else 0.0
        if not saturate and not turn:
            return image
        values = np.asarray(image.convert("HSV")).astype(np.float32)
        values[..., 1] = (values[..., 1] * factor).round().clip(0, 255)
        values[..., 0] = (values[..., 0] + shift * 256 / _HUES).round() % 256
        return Image.fromarray(values.astype(np.uint8), "HSV").convert("RGB")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationTransform:
    """The whole image in each of the sizes that the network sees; labels stay as they are."""

    normalise: Callable[[Image.Image], Tensor]
    resize: tuple[int, int] | None = None
    size_divisor: int = 1
    scales: tuple[float, ...] = (1.0,)

    def __call__(self, item: Masked) -> Viewed:
        """See the class."""
        return Viewed(self.views(item.image), torch.from_numpy(item.labels.copy()))

    def views(self, image: Image.Image) -> tuple[Tensor, ...]:
        """(1, C, H, W) for each scale."""
        return tuple(self.normalise(self._resized(image, scale))[None] for scale in self.scales)

    def _resized(self, image: Image.Image, scale: float) -> Image.Image:
        height, width = resized_size((image.height, image.width), self.resize, scale, self.size_divisor)
        return image if (width, height) == image.size else image.resize((width, height), Image.Resampling.BILINEAR)


def _linear(image: Image.Image, factor: float, offset: float) -> Image.Image:
    table = [min(255, max(0, round(value * factor + offset))) for value in range(256)]
    return image.point(table * len(image.getbands()))
