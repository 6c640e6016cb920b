"""Several random views of one image, as self-supervised methods compare them."""

import dataclasses
from collections.abc import Sequence

import torch
from PIL import Image, ImageFilter
from timm.data.transforms import str_to_interp_mode
from torch import Tensor
from torchvision import transforms

from visionmlp.data.transforms import Preprocessing, Transform

_SOLARIZE_FROM = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewAugmentation:
    """How one view is drawn. Values are those that DINO and MoCo v3 share (BYOL, arXiv 2006.07733, appendix B)."""

    size: tuple[int, int]
    """Height and width."""
    scale: tuple[float, float]
    """Least and largest area of the crop, over the image's."""
    interpolation: str
    blur: float
    """Probability of a Gaussian blur with a radius of 0.1 to 2 pixels."""
    solarize: float
    """Probability that values from 128 are inverted."""
    hflip: float = 0.5
    jitter: float = 0.8
    """Probability of random brightness and contrast (0.4), saturation (0.2) and hue (0.1)."""
    grey: float = 0.2
    """Probability of a grey image."""

    def transform(self, preprocessing: Preprocessing) -> Transform:
        """Image to (C, H, W). Draws from PyTorch's global generator."""
        mode: object = str_to_interp_mode(self.interpolation)
        return transforms.Compose(
            [
                transforms.RandomResizedCrop(self.size, self.scale, interpolation=mode),  # type: ignore[arg-type]
                transforms.RandomHorizontalFlip(self.hflip),
                transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.2, 0.1)], self.jitter),
                transforms.RandomGrayscale(self.grey),
                transforms.RandomApply([_Blur()], self.blur),
                transforms.RandomSolarize(_SOLARIZE_FROM, self.solarize),
                transforms.ToTensor(),
                transforms.Normalize(preprocessing.mean, preprocessing.std),
            ]
        )


class Views:
    """Image to a tuple of views, each by its own transform."""

    def __init__(self, transforms: Sequence[Transform]) -> None:
        self.transforms = tuple(transforms)

    def __call__(self, image: Image.Image) -> tuple[Tensor, ...]:
        """Draw all views, one after the other."""
        return tuple(transform(image) for transform in self.transforms)


class _Blur(torch.nn.Module):
    def forward(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(torch.empty(()).uniform_(0.1, 2.0).item()))
