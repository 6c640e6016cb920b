"""Channels moved by whole positions, in one pass over the map: the shifts of AS-MLP and CycleMLP."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

_BLOCK_POSITIONS, _BLOCK_CHANNELS = 32, 64


class Run(NamedTuple):
    """Channels ``first``, ``first + cycle``, ..., ``count`` of them, read ``down`` and ``right`` of where they go."""

    first: int
    cycle: int
    count: int
    down: int
    right: int


def displaced_channels(x: Tensor, runs: Sequence[Run]) -> Tensor:
    """The runs side by side, (B, H, W, C) to (B, H, W, sum of counts); zeros come in at the edges.

    It has a gradient if the runs take each channel once.
    """
    return _displaced(x.contiguous(), [number for run in runs for number in run], False)


@torch.library.custom_op("visionmlp::displaced_channels", mutates_args=(), device_types="cuda")
def _displaced(x: Tensor, runs: list[int], back: bool) -> Tensor:
    """`displaced_channels` of a contiguous map; ``back`` puts everything where it came from."""
    with torch.cuda.device(x.device):
        return launch_displaced(x, runs, back)


@_displaced.register_fake
def _(x, runs, back):  # noqa: ANN001, ANN202, ARG001
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
    table = _table(tuple(runs), back, x.device)
    out = x.new_empty(batch, height, width, table.shape[1])
    positions = batch * height * width
    if out.numel():
        grid = -(-positions // _BLOCK_POSITIONS), -(-table.shape[1] // _BLOCK_CHANNELS)
        kernels.displaced[grid](
            x,
            out,
            table[0],
            table[1],
            table[2],
            positions,
            height,
            width,
            channels,
            table.shape[1],
            BLOCK_POSITIONS=_BLOCK_POSITIONS,
            BLOCK_CHANNELS=_BLOCK_CHANNELS,
            num_warps=4,
        )
    return out


@functools.cache
def _table(runs: tuple[int, ...], back: bool, device: torch.device) -> Tensor:
    """Where each output channel comes from: (3, channels) with source, down and right."""
    columns = [
        (first + cycle * index, down, right)
        for first, cycle, count, down, right in (Run(*runs[i : i + 5]) for i in range(0, len(runs), 5))
        for index in range(count)
    ]
    if back:
        came = sorted((source, place, -down, -right) for place, (source, down, right) in enumerate(columns))
        columns = [column[1:] for column in came]
    return torch.tensor(columns, dtype=torch.int32, device=device).t().contiguous()
