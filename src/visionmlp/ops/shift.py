"""Moving maps by whole positions: what gives a linear layer over channels its neighbours. Layout (B, H, W, C)."""

from torch import Tensor
from torch.nn import functional as F

Step = tuple[int, int]
"""Positions down and to the right."""


def displaced(x: Tensor, step: Step) -> Tensor:
    """The map (B, H, W, C) that holds at each position what ``x`` has a ``step`` away; zero outside."""
    down, right = step
    if down == 0 and right == 0:
        return x
    height, width = x.shape[1:3]
    padded = F.pad(x, (0, 0, max(-right, 0), max(right, 0), max(-down, 0), max(down, 0)))
    return padded.narrow(1, max(down, 0), height).narrow(2, max(right, 0), width)


def write_displaced(target: Tensor, x: Tensor, step: Step) -> None:
    """`displaced` into existing memory.

    Args:
        target: (B, H, W, C), any strides; overwritten.
        x: (B, H, W, C), any strides.
        step: positions down and to the right.
    """
    batch, height, width, channels = x.shape
    down, right = (max(-side, min(way, side)) for side, way in zip((height, width), step, strict=True))
    if down == right == 0:
        target.copy_(x)
        return
    # one view each instead of a chain of slices: there are dozens of small moves in a model
    size = (batch, height - abs(down), width - abs(right), channels)
    starts, ends = (max(-down, 0), max(-right, 0)), (max(down, 0), max(right, 0))
    _window(target, size, starts).copy_(_window(x, size, ends))
    # what comes in from outside stands at the end where a step is positive
    if down:
        _window(target, (batch, abs(down), width, channels), (size[1] if down > 0 else 0, 0)).zero_()
    if right:
        _window(target, (batch, height, abs(right), channels), (0, size[2] if right > 0 else 0)).zero_()


def _window(x: Tensor, size: tuple[int, ...], corner: tuple[int, int]) -> Tensor:
    stride = x.stride()
    return x.as_strided(size, stride, x.storage_offset() + corner[0] * stride[1] + corner[1] * stride[2])
