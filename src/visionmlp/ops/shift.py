"""Moving maps by whole positions: what gives a linear layer over channels its neighbours. Layout (B, H, W, C)."""

from torch import Tensor
from torch.nn import functional as F

Step = tuple[int, int]
"""Positions down and to the right."""


def displaced(x: Tensor, step: Step) -> Tensor:
    """The map (B, H, W, C) that holds at each position what ``x`` has a ``step`` away; zero outside."""
    down, right = step
    if down == right == 0:
        return x
    height, width = x.shape[1:3]
    padded = F.pad(x, (0, 0, max(-right, 0), max(right, 0), max(-down, 0), max(down, 0)))
    return padded[:, max(down, 0) :, max(right, 0) :][:, :height, :width]
