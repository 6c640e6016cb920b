"""Cutting maps into equal windows, so that a token mixer of a fixed size sees larger images.

Source: RepMLPNet (arXiv 2112.11081), section 5.3.
"""

from timm.layers import register_notrace_function
from torch import Tensor


@register_notrace_function
def partition(x: Tensor, window: tuple[int, int]) -> Tensor:
    """Cut (B, C, H, W) into non-overlapping windows: (B * H/h * W/w, C, h, w), row-major within an image.

    Raises:
        ValueError: if the windows (h, w) do not tile the map.
    """
    batch, channels, height, width = x.shape
    h, w = window
    if height % h or width % w:
        raise ValueError(f"{h}x{w} windows do not tile a {height}x{width} map")
    if height == h and width == w:
        return x
    x = x.reshape(batch, channels, height // h, h, width // w, w).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(-1, channels, h, w)


@register_notrace_function
def unpartition(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Undo `partition`: windows (B * H/h * W/w, C, h, w) back to maps (B, C, H, W) of ``size`` (H, W)."""
    windows, channels, h, w = x.shape
    height, width = size
    if height == h and width == w:
        return x
    rows, columns = height // h, width // w
    x = x.reshape(windows // (rows * columns), rows, columns, channels, h, w).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(-1, channels, height, width)


@register_notrace_function
def gather_windows(x: Tensor, window: tuple[int, int]) -> Tensor:
    """Cut positions-first (H, W, B, C) into windows that join the batch: (h, w, H/h * W/w * B, C)."""
    height, width, batch, channels = x.shape
    h, w = window
    if height == h and width == w:
        return x
    x = x.reshape(height // h, h, width // w, w, batch, channels).permute(1, 3, 0, 2, 4, 5)
    return x.reshape(h, w, -1, channels)


@register_notrace_function
def scatter_windows(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Undo `gather_windows`: (h, w, H/h * W/w * B, C) back to (H, W, B, C) of ``size`` (H, W)."""
    h, w, windows, channels = x.shape
    height, width = size
    if height == h and width == w:
        return x
    rows, columns = height // h, width // w
    x = x.view(h, w, rows, columns, windows // (rows * columns), channels).permute(2, 0, 3, 1, 4, 5)
    return x.reshape(height, width, -1, channels)


def interleave_windows(x: Tensor, count: int, share_sets: int) -> Tensor:
    """The order in which RepMLPNet's authors put windows back when an image has several and channels share sets.

    Their code lays (window, channel group) out in memory and reads it as (channel group, window), so that window and
    channel group change places; with one window or ``share_sets == C`` nothing moves.

    Args:
        x: windows (B * count, C, h, w), row-major within an image.
        count: windows of one image.
        share_sets: sets S; a channel group has S channels.
    """
    windows, channels, h, w = x.shape
    groups = channels // share_sets
    read = x.reshape(windows // count, groups, count, share_sets, h, w)
    return read.transpose(1, 2).reshape(windows, channels, h, w)


def interleave_gathered_windows(x: Tensor, count: int, share_sets: int) -> Tensor:
    """`interleave_windows` for windows of `gather_windows`, (h, w, count * B, C)."""
    h, w, windows, channels = x.shape
    batch, groups = windows // count, channels // share_sets
    laid_out = x.view(h, w, count, batch, groups, share_sets).transpose(2, 3)
    read = laid_out.reshape(h, w, batch, groups, count, share_sets)
    return read.permute(0, 1, 4, 2, 3, 5).reshape(h, w, windows, channels)
