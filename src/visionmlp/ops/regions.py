"""Regions of neighbouring rows or columns, whose channels are joined.

Source: Hire-MLP (arXiv 2108.13341), section 3: cross-region rearrangement moves the content, inner-region rearrangement
joins the channels of neighbours. Functions of plain arguments: symbolic tracers keep them whole, and
TorchScript, which reads no constants of a module, compiles them.
"""

from typing import NamedTuple

import torch
from timm.layers import register_notrace_function
from torch import Tensor

ROWS, COLUMNS = 1, 2
"""Axes of a (B, H, W, C) map."""


class Regions(NamedTuple):
    """How a map (B, H, W, C) is cut along one axis into regions: the arguments of the functions here."""

    axis: int
    """`ROWS` or `COLUMNS`."""
    size: int
    """Neighbours of a region."""
    step: int
    """Positions that the content moves before it is cut."""
    step_padding: str
    """What a moved map is filled up with: "circular" or "zero", where it is not moved back either."""
    region_padding: str
    """What fills up the last region: "circular", "zero" or "replicate"."""

    @property
    def pads_zeros(self) -> bool:
        """Whether zeros may stand among the gathered values."""
        return "zero" in (self.step_padding, self.region_padding)


@register_notrace_function
def gather_regions(x: Tensor, axis: int, size: int, step: int, step_padding: str, region_padding: str) -> Tensor:
    """(B, H, W, C) to (B, W, H/size, size*C) along rows, or (B, H, W/size, size*C) along columns, rounded up.

    The joined channels run over (place in region, channel).
    """
    lines = x.transpose(1, 2) if axis == 1 else x
    side = lines.shape[2]
    length = -(-side // size) * size
    if step_padding == "circular" and region_padding == "circular":
        # the first rows of the moved map follow its last ones, as before it was moved
        lines = wrapped(lines, 2, -effective_step(step, side, size), length)
    else:
        lines = _filled(_moved(lines, step, size, step_padding), length, region_padding)
    return lines.unflatten(2, [-1, size]).flatten(3)


@register_notrace_function
def scatter_regions(regions: Tensor, side: int, axis: int, size: int, step: int, step_padding: str) -> Tensor:
    """Undo `gather_regions`, for a map of ``side`` positions along the axis: (B, H, W, C), contiguous."""
    lines = regions.unflatten(3, [size, -1]).flatten(2, 3)
    x = (lines.transpose(1, 2) if axis == 1 else lines).narrow(axis, 0, side)
    if step_padding == "circular":
        x = wrapped(x, axis, effective_step(step, side, size), side)
    return x.contiguous()


def effective_step(step: int, side: int, size: int) -> int:
    """Positions that the content really moves."""
    while step >= side:
        step -= side
    # where all regions are full, moving by whole regions only renames them
    return step if side % size else step % size


def wrapped(x: Tensor, axis: int, start: int, length: int) -> Tensor:
    """``length`` positions along an axis, around its end, from ``start`` on; a view where nothing wraps.

    A negative ``start`` counts from the end. Of min() and modulo, symbolic sizes would keep nested expressions, with
    which a compiler takes minutes; comparisons they decide.
    """
    side = x.shape[axis]
    if start < 0:
        start += side
    parts = [x][:0]  # a list of tensors, to TorchScript too
    while length > 0:
        taken = length if length < side - start else side - start
        parts.append(x.narrow(axis, start, taken))
        start, length = 0, length - taken
    return parts[0] if len(parts) == 1 else torch.cat(parts, axis)


def _moved(lines: Tensor, step: int, size: int, step_padding: str) -> Tensor:
    side = lines.shape[2]
    if step_padding == "circular":
        return wrapped(lines, 2, -effective_step(step, side, size), side)
    if step >= side:
        return torch.zeros_like(lines)
    return torch.cat([_zeros(lines, step), lines.narrow(2, 0, side - step)], 2)


def _filled(lines: Tensor, length: int, region_padding: str) -> Tensor:
    missing = length - lines.shape[2]
    if region_padding == "circular":
        return wrapped(lines, 2, 0, length)
    if region_padding == "zero":
        return torch.cat([lines, _zeros(lines, missing)], 2)
    return torch.cat([lines, lines[:, :, -1:].expand(-1, -1, missing, -1)], 2)


def _zeros(lines: Tensor, length: int) -> Tensor:
    return lines.new_zeros([lines.shape[0], lines.shape[1], length, lines.shape[3]])
