"""Adaptive average pooling that graphs of dynamic size can hold."""

import torch
from torch import Tensor, nn


class PartMeans(nn.AdaptiveAvgPool2d):
    """`torch.nn.AdaptiveAvgPool2d`, in a graph of dynamic size as a product with means over rows and over columns.

    ONNX has no such operator: its windows depend on the size.

    Args:
        parts: along each side.
    """

    def __init__(self, parts: int) -> None:
        super().__init__(parts)
        self.parts = parts

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, parts, parts)."""
        if not any(isinstance(side, torch.SymInt) for side in input.shape[2:]):
            return super().forward(input)
        return part_means(input.shape[2], self.parts, input) @ input @ part_means(input.shape[3], self.parts, input).t()


def part_means(length: int, parts: int, like: Tensor) -> Tensor:
    """(parts, length): row i takes the mean of the positions from floor(i * length / parts) to the next part's ceiling.

    Args:
        length: positions; may be symbolic.
        parts: that they are divided into; neighbours share a position where it does not come out even.
        like: tells dtype and device.
    """
    part = torch.arange(parts, device=like.device)[:, None]
    position = torch.arange(length, device=like.device)
    # in whole numbers: rounding would move a border
    inside = ((position + 1) * parts > part * length) & (position * parts < (part + 1) * length)
    inside = inside.to(like.dtype)
    return inside / inside.sum(1, keepdim=True)
