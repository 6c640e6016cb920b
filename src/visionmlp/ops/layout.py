"""Feature-map layouts. Blocks exchange (B, H, W, C) or (B, C, H, W); deploy forms compute positions-first.

Positions-first is (H, W, B, C): flattened to (H*W, B*C) token mixing is one matrix product from the left, flattened to
(H*W*B, C) channel mixing is one from the right, and neither copies. All functions return views.
"""

from typing import Literal

from torch import Tensor

Layout = Literal["BHWC", "BCHW"]


def to_channels_first(x: Tensor, layout: Layout) -> Tensor:
    """(B, C, H, W) view of a map in ``layout``."""
    return x.permute(0, 3, 1, 2) if layout == "BHWC" else x


def to_positions_first(x: Tensor, layout: Layout) -> Tensor:
    """(H, W, B, C) view of a map in ``layout``."""
    return x.permute(1, 2, 0, 3) if layout == "BHWC" else x.permute(2, 3, 0, 1)


def from_positions_first(x: Tensor, layout: Layout) -> Tensor:
    """View in ``layout`` of an (H, W, B, C) map."""
    return x.permute(2, 0, 1, 3) if layout == "BHWC" else x.permute(2, 3, 0, 1)
