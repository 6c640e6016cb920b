"""Rows and columns of a map as lines of tokens, with the channels of a token cut into segments.

Source: Vision Permutator (arXiv 2106.12368), Permute-MLP; DynaMixer (arXiv 2201.12083), section 3.
"""

from typing import Literal

from torch import Tensor

LineAxis = Literal[1, 2]
"""The dimension of a (B, H, W, C) map that lines run along: 1 for columns (along the height), 2 for rows."""


def to_lines(x: Tensor, axis: LineAxis, segments: int) -> Tensor:
    """View of (B, H, W, C) as (B, W, segments, H, C/segments) for axis 1, (B, H, segments, W, C/segments) for axis 2.

    A segment is a run of neighbouring channels.
    """
    return x.unflatten(3, (segments, -1)).movedim(axis, 3)


def from_lines(lines: Tensor, axis: LineAxis) -> Tensor:
    """The inverse of `to_lines`; copies."""
    return lines.movedim(3, axis).flatten(3)
