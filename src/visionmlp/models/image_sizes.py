"""Which images a model takes, and what it says of others."""

import dataclasses
from typing import Any, Literal

import torch
from torch import Tensor, nn

from visionmlp.errors import InvalidConfig, InvalidImageSize
from visionmlp.models.config import size_text
from visionmlp.ops.eager import is_symbolic

InputSizes = Literal["fixed", "multiples", "any"]
"""Image sizes that a model takes: ``img_size`` alone, its multiples, or all that are not too small."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageRule:
    """The images (B, in_chans, H, W) that a model takes."""

    name: str
    """Of the model."""
    in_chans: int
    """Channels."""
    img_size: tuple[int, int]
    """Height and width that the model is built for, in pixels."""
    input_sizes: InputSizes
    """Which other sizes it takes."""
    least_side: int
    """Pixels of the smallest side that leaves a map, for ``input_sizes="any"``."""
    stride: int
    """Pixels that a model built for another size needs a multiple of."""

    def check(self, x: Tensor) -> None:
        """Raise InvalidImageSize, naming sizes that work, or InvalidConfig for the wrong channels.

        In a symbolic trace the rules become assertions of the graph.
        """
        if is_symbolic(x):
            for side, name, size in ((2, "height", self.img_size[0]), (3, "width", self.img_size[1])):
                torch._assert(self._holds(x.shape[side], size), f"{self.name} does not take images of this {name}")
            return
        if x.dim() != 4 or x.shape[1] != self.in_chans:
            raise InvalidConfig(f"{self.name} takes (B, {self.in_chans}, H, W), got {tuple(x.shape)}")
        given = (x.shape[2], x.shape[3])
        if not all(self._holds(side, size) for side, size in zip(given, self.img_size, strict=True)):
            raise InvalidImageSize(self._message(given))

    def _holds(self, side: Any, size: int) -> Any:
        """Whether a side may have so many pixels; symbolic if ``side`` is."""
        if self.input_sizes == "any":
            return side >= self.least_side
        return side % size == 0 if self.input_sizes == "multiples" else side == size

    def _message(self, given: tuple[int, int]) -> str:
        if self.input_sizes == "any":
            least = size_text((self.least_side, self.least_side))
            return f"{self.name} takes any size from {least} on, got {size_text(given)}"
        height, width = self.img_size
        works = f"exactly {size_text(self.img_size)}"
        if self.input_sizes == "multiples":
            works = f"multiples of {size_text(self.img_size)}, such as {size_text((2 * height, 2 * width))}"
        return (
            f"{self.name} as built takes {works}, got {size_text(given)}; resize the images "
            f"or build the model with img_size (any multiple of {self.stride})"
        )


class CheckedImages(nn.Module):
    """Images as they are, or the error that says what the model takes."""

    def __init__(self, rule: ImageRule) -> None:
        super().__init__()
        self.rule = rule

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) to itself."""
        self.rule.check(x)
        return x
