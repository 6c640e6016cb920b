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
    return _displaced(x.contiguous(), [number for run in runs for number in run], False)


@torch.library.custom_op("visionmlp::displaced_channels", mutates_args=(), device_types="cuda")
def _displaced(x: Tensor, runs: list[int], back: bool) -> Tensor:
    """`displaced_channels` of a contiguous map; ``back`` puts everything where it came from."""
    with torch.cuda.device(x.device):
        return launch_displaced(x, runs, back)


@_displaced.register_fake
def _(x, runs, back):  # noqa: ARG001
    return x.new_empty(*x.shape[:3], sum(runs[2::5]))


def _remember(ctx: Any, inputs: tuple[Tensor, list[int], bool], output: Tensor) -> None:  # noqa: ARG001
    ctx.channels, ctx.runs, ctx.back = inputs[0].shape[3], inputs[1], inputs[2]


def _gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    if sum(ctx.runs[2::5]) != ctx.channels:
        raise RuntimeError("displaced_channels has no gradient where runs share channels or leave some out")
    return _displaced(gradient.contiguous(), ctx.runs, not ctx.back), None, None


_displaced.register_autograd(_gradient, setup_context=_remember)


def launch_displaced(x: Tensor, runs: Sequence[int], back: bool) -> Tensor:
    """The operator on the current device."""
    from visionmlp.ops.cuda import kernels

    batch, height, width, channels = x.shape
    pieces = _pieces(tuple(runs), back, x.device)
    out = x.new_empty(batch, height, width, sum(runs[2::5]))
    if out.numel() == 0:
        return out
    block_channels = _power_of_two(max(map(_piece_size, runs[2::5])))
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
        out.shape[3],
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


@functools.cache
def _pieces(runs: tuple[int, ...], back: bool, device: torch.device) -> Tensor:
    """Runs in pieces: (pieces, 7), see the kernel."""
    rows, written = [], 0
    for first, cycle, count, down, right in (Run(*runs[i : i + 5]) for i in range(0, len(runs), 5)):
        most = _piece_size(count)
        for done in range(0, count, most):
            there, here = (first + cycle * done, cycle), (written + done, 1)
            size = min(most, count - done)
            rows.append([*here, *there, size, -down, -right] if back else [*there, *here, size, down, right])
        written += count
    return torch.tensor(rows, dtype=torch.int32, device=device)
