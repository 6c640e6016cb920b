"""From decoded images to normalised tensors, by timm's transforms."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from PIL import Image
from timm.data import auto_augment, create_transform
from timm.data.transforms import str_to_interp_mode
from torch import Tensor
from torchvision import transforms

from visionmlp.errors import InvalidConfig

Transform = Callable[[Image.Image], Tensor]

_THIN = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What evaluation does to an image, saved with the weights."""

    input_size: tuple[int, int, int]
    """Channels, height, width."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    """Side of the central crop over the side that the image is resized to."""
    exif_orientation: bool = True
    """Whether images are turned as their EXIF says."""

    @classmethod
    def from_saved(cls, values: Mapping[str, Any]) -> "Preprocessing":
        """What a checkpoint or an exported file says; older ones say nothing of ``exif_orientation``.

        Raises:
            InvalidConfig: for one that says too little, or what this version does not know.
        """
        known = {field.name: field for field in dataclasses.fields(cls)}
        missing = {name for name, field in known.items() if field.default is dataclasses.MISSING}.difference(values)
        strange = sorted(missing) or sorted(set(values).difference(known))
        if strange:
            word = "lacks" if missing else "has an unknown"
            raise InvalidConfig(f"the preprocessing saved with the weights {word} {', '.join(strange)}")
        # JSON has no tuples
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        return cls(**fields)

    def to_saved(self) -> dict[str, Any]:
        """Arguments of ``timm.data.create_transform``, and ``exif_orientation`` where it is off."""
        return self._timm_arguments() if self.exif_orientation else dataclasses.asdict(self)

    def transform(self) -> Transform:
        """Resize, central crop, normalise: image to (C, H, W). timm's, behind a step that bounds its memory."""
        steps: Any = create_transform(**self._timm_arguments())
        return transforms.Compose([_WithoutEnds(self.input_size[1:]), *steps.transforms])

    def ten_crop(self) -> Transform:
        """Image to (10, C, H, W): the four corners and the centre of `transform`'s resized image, and these mirrored.

        The image is resized as in `transform`, its short side to the input's over ``crop_pct``, and each crop has the
        input's size. Krizhevsky et al. (2012) have 256 and 224, a ``crop_pct`` of 0.875.

        Raises:
            InvalidConfig: if ``crop_pct`` leaves no room between the crops.
        """
        if any(math.floor(side / self.crop_pct) <= side for side in self.input_size[1:]):
            raise InvalidConfig(
                f"ten crops need an image that is larger than a crop, but crop_pct is {self.crop_pct:g}: "
                "give a smaller one, such as --crop-pct 0.875"
            )
        steps: Any = self.transform()
        *resize, centre, to_tensor, normalise = steps.transforms
        assert isinstance(centre, transforms.CenterCrop)
        each = transforms.Compose([to_tensor, normalise])
        return transforms.Compose([*resize, transforms.TenCrop(self.input_size[1:]), _Stacked(each)])

    def _timm_arguments(self) -> dict[str, Any]:
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "exif_orientation"}

    @property
    def mode(self) -> Literal["L", "RGB"]:
        """Pillow's name of the channels."""
        return "L" if self.input_size[0] == 1 else "RGB"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What training does to an image beside normalising it."""

    crop: Literal["resized", "pad", "center"] = "resized"
    """A random area resized to the input, a shift within a black border, or the same crop as in evaluation."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Least and largest area of a ``resized`` crop, over the image's."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Least and largest aspect ratio of a ``resized`` crop."""
    crop_padding: int = 4
    """Border in pixels for a ``pad`` crop."""
    hflip: float = 0.5
    """Probability of a left-right flip."""
    rotation: float = 0.0
    """Largest rotation either way, in degrees."""
    color_jitter: float = 0.0
    """Strength of random brightness, contrast and saturation, after ``auto_augment``."""
    auto_augment: str | None = None
    """Policy in timm's notation, such as ``rand-m9-mstd0.5-inc1``."""
    erasing: float = 0.0
    """Probability that a rectangle is erased."""
    erasing_mode: Literal["const", "rand", "pixel"] = "pixel"
    """Fill of an erased rectangle: zeros, one random colour, or noise."""

    def transform(self, preprocessing: Preprocessing) -> Transform:
        """Image to (C, H, W). Draws from the global generators; see `visionmlp.data.seeding.seeded`."""
        stages: Any = create_transform(
            input_size=preprocessing.input_size,
            is_training=True,
            separate=True,
            scale=self.crop_scale,
            ratio=self.crop_ratio,
            hflip=self.hflip,
            color_jitter=None,  # type: ignore[arg-type] (below, as timm drops it beside auto_augment)
            auto_augment=self.auto_augment,
            interpolation=preprocessing.interpolation,
            mean=preprocessing.mean,
            std=preprocessing.std,
            re_prob=self.erasing,
            re_mode=self.erasing_mode,
        )
        crop, colour, normalise = stages
        for operation in _operations(colour):
            if operation.aug_fn is auto_augment.posterize:
                operation.aug_fn = _posterize
        size = preprocessing.input_size[1:]
        interpolation: Any = str_to_interp_mode(preprocessing.interpolation)
        steps = [crop]
        if self.crop != "resized":
            # evaluation's transform without its two last steps, to tensor and normalise
            steps = preprocessing.transform().transforms[:-2]  # type: ignore[attr-defined]
            if self.crop == "pad":
                steps = [
                    transforms.Resize(size, interpolation),
                    transforms.RandomCrop(size, padding=self.crop_padding),
                ]
            steps = [*steps, transforms.RandomHorizontalFlip(self.hflip)]
        if self.rotation:
            steps.append(transforms.RandomRotation(self.rotation, transforms.InterpolationMode.BILINEAR))
        steps.append(colour)
        if self.color_jitter:
            steps.append(transforms.ColorJitter(*[self.color_jitter] * 3))
        return transforms.Compose([*steps, normalise])


class _WithoutEnds:
    """Takes the ends off images that are more than 32 times as long as wide; others stay as they are.

    Resizing the short side to the input's would make the long side huge, of which the central crop leaves next to
    nothing. With the centre in place, the crop shows the same to within half a pixel, since sizes are whole numbers.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.ratio = _THIN * max(size) / min(size)

    def __call__(self, image: Image.Image) -> Image.Image:
        short, long = sorted(image.size)
        kept = math.ceil(short * self.ratio)
        kept += (long - kept) % 2
        if long <= kept:
            return image
        start, end = (long - kept) // 2, (long + kept) // 2
        return image.crop((start, 0, end, short) if image.width > image.height else (0, start, short, end))


class _Stacked:
    """Several crops to tensors in one."""

    def __init__(self, each: Transform) -> None:
        self.each = each

    def __call__(self, crops: Sequence[Image.Image]) -> Tensor:
        return torch.stack([self.each(crop) for crop in crops])


def _operations(colour: transforms.Compose) -> Iterator[auto_augment.AugmentOp]:
    """The operations of timm's auto-augment policy among these steps, if there is one."""
    for step in colour.transforms:
        if isinstance(step, auto_augment.AutoAugment):
            for operations in step.policy:
                yield from operations
        elif isinstance(step, auto_augment.RandAugment | auto_augment.AugMixAugment):
            yield from step.ops


def _posterize(image: Image.Image, bits: int, **options: Any) -> Image.Image:
    """timm's, but black at no bits, which its policies ask for at magnitude 10 and Pillow refuses since version 13."""
    if bits < 1:
        return Image.new(image.mode, image.size)
    return auto_augment.posterize(image, bits, **options)
