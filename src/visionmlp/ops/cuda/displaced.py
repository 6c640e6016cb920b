"""Channels moved by whole positions, in one pass over the map: the shifts of AS-MLP and CycleMLP."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

_BLOCK, _MOST_CHANNELS = 2048, 64
"""Elements of a program, and of them channels; a run with more is cut into pieces."""


class Run(NamedTuple):
    """Channels ``first``, ``first + cycle``, ..., so many of them, read ``down`` and ``right`` of where they go."""

    first: int
    cycle: int
    channels: int
    down: int
    right: int


def displaced_channels(x: Tensor, runs: Sequence[Run]) -> Tensor:
    """The runs side by side, (B, H, W, C) to (B, H, W, sum of channels); zeros come in at the edges.

    It has a gradient if the runs take each channel once.
    """
    numbers = tuple(number for run in runs for number in run)
    there, back = _pieces(numbers, False, x.device), _pieces(numbers, True, x.device)
    return _displaced(x, there, back, sum(numbers[2::5]), max([_piece_size(count) for count in numbers[2::5]]))


@torch.library.custom_op(
    "visionmlp::displaced_channels",
    mutates_args=(),
    device_types="cuda",
    schema="(Tensor x, Tensor pieces, Tensor back, int channels, int most) -> Tensor",
)
def _displaced(x: Tensor, pieces: Tensor, back: Tensor, channels: int, most: int) -> Tensor:
    """`displaced_channels` by a table.

    Args:
        x: (B, H, W, C).
        pieces: see `_pieces`.
        back: the same for the way back.
        channels: of the result.
        most: of a piece.
    """
    del back
    with torch.cuda.device(x.device):
        return launch_displaced(x.contiguous(), pieces, channels, most)


@_displaced.register_fake
def _(x, pieces, back, channels, most):  # noqa: ARG001
    return x.new_empty(*x.shape[:3], channels)


def _remember(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int, int], output: Tensor) -> None:  # noqa: ARG001
    x, pieces, back, channels, most = inputs
    ctx.save_for_backward(pieces, back)
    ctx.channels, ctx.before, ctx.most = channels, x.shape[3], most


def _gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
    pieces, back = ctx.saved_tensors
    if ctx.channels != ctx.before:
        raise RuntimeError("displaced_channels has no gradient where runs share channels or leave some out")
    return _displaced(gradient, back, pieces, ctx.before, ctx.most), None, None, None, None


_displaced.register_autograd(_gradient, setup_context=_remember)


def launch_displaced(x: Tensor, pieces: Tensor, out_channels: int, most: int) -> Tensor:
    """The operator for a contiguous map on the current device."""
    from visionmlp.ops.cuda import kernels

    batch, height, width, channels = x.shape
    out = x.new_empty(batch, height, width, out_channels)
    if out.numel() == 0:
        return out
    block_channels = _power_of_two(most)
    block_columns = min(_power_of_two(width), _BLOCK // block_channels)
    kernel: Any = kernels.displaced
    kernel[len(pieces) * batch * height * -(-width // block_columns),](
        x,
        out,
        pieces,
        len(pieces),
        height,
        width,
        channels,
        out_channels,
        BLOCK_COLUMNS=block_columns,
        BLOCK_CHANNELS=block_channels,
        num_warps=4,
    )
    return out


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()


def _piece_size(count: int) -> int:
    """Channels of a piece of a run: equal parts of at most `_MOST_CHANNELS`."""
    parts = -(-count // _MOST_CHANNELS)
    return -(-count // parts)


@torch.compiler.assume_constant_result
def _pieces(runs: tuple[int, ...], back: bool, device: torch.device) -> Tensor:
    """Runs in pieces: (pieces, 7), see the kernel. ``torch.compile`` makes them while it traces: made in a call they
    would lie in the memory of its CUDA graph."""
    return _table(runs, back, device)


@functools.cache
def _table(runs: tuple[int, ...], back: bool, device: torch.device) -> Tensor:
    rows, written = [], 0
    for first, cycle, count, down, right in (Run(*runs[i : i + 5]) for i in range(0, len(runs), 5)):
        most = _piece_size(count)
        for done in range(0, count, most):
            there, here = (first + cycle * done, cycle), (written + done, 1)
            size = min(most, count - done)
            rows.append([*here, *there, size, -down, -right] if back else [*there, *here, size, down, right])
        written += count
    with torch.inference_mode(False):  # training may need them later
        return torch.tensor(rows, dtype=torch.int32, device=device)
