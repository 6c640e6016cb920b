"""The channel MLP with its norm and its residual in one kernel: the hidden map never leaves the processor."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

WIDTHS = (64, 96, 128, 192)
"""Channels for which the kernel is faster than the library's two products with GELU and norm between them."""
DTYPES = (torch.bfloat16, torch.float16)
FEWEST_ROWS = 8192
"""That give each multiprocessor of a large GPU a block; with fewer the libraries' products divide the channels too."""


class Blocks(NamedTuple):
    """How the work is cut: what one program computes, and with how many warps and stages of loads."""

    rows: int
    hidden: int
    warps: int
    stages: int


BLOCKS = {64: Blocks(64, 64, 4, 3), 96: Blocks(64, 32, 4, 3), 128: Blocks(64, 64, 4, 3), 192: Blocks(64, 32, 4, 3)}
"""By width, as measured on an H200."""


def fits(x: Tensor, hidden: int) -> bool:
    """Whether `channel_mlp` takes rows like these."""
    width = x.shape[-1]
    return (
        x.dtype in DTYPES
        and width in WIDTHS
        and hidden % BLOCKS[width].hidden == 0
        and x.numel() >= FEWEST_ROWS * width
    )


@torch.library.custom_op("visionmlp::channel_mlp", mutates_args=(), device_types="cuda")
def channel_mlp(
    x: Tensor,
    residual: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    eps: float | None,
    tanh: bool,
) -> Tensor:
    """``residual + fc2(gelu(fc1(norm(x))))`` of rows.

    Args:
        x: (N, C) of one of `WIDTHS`, in one of `DTYPES`, as all others.
        residual: (N, C); None is ``x``.
        scale: (C,) of the LayerNorm, or None.
        shift: (C,) of the LayerNorm, with ``scale``.
        weight1: (hidden, C).
        bias1: (hidden,).
        weight2: (C, hidden).
        bias2: (C,).
        eps: of the LayerNorm over each row's channels; None is no norm.
        tanh: GELU's approximation by tanh instead of the error function, which is met to a relative 3e-5.

    Returns:
        (N, C).
    """
    with torch.cuda.device(x.device):
        residual = None if residual is None else residual.contiguous()
        return launch_channel_mlp(x.contiguous(), residual, scale, shift, weight1, bias1, weight2, bias2, eps, tanh)


@channel_mlp.register_fake
def _(x, residual, scale, shift, weight1, bias1, weight2, bias2, eps, tanh):  # noqa: ARG001
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@register_flop_formula(torch.ops.visionmlp.channel_mlp)
def _flops(x, residual, scale, shift, weight1, *rest, **options) -> int:  # noqa: ARG001
    return 4 * x[0] * x[1] * weight1[0]


def launch_channel_mlp(
    x: Tensor,
    residual: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    eps: float | None,
    tanh: bool,
) -> Tensor:
    """`channel_mlp` of contiguous maps on the current device."""
    from visionmlp.ops.cuda import kernels

    (rows, width), out = x.shape, torch.empty_like(x)
    blocks, first = BLOCKS[width], 1 << (width.bit_length() - 1)
    kernel: Any = kernels.channel_mlp
    kernel[-(-rows // blocks.rows),](
        x,
        x if residual is None else residual,
        out,
        scale,
        shift,
        weight1,
        bias1,
        weight2,
        bias2,
        *weight1.stride(),
        *weight2.stride()[::-1],
        rows,
        0.0 if eps is None else eps,
        CHANNELS=width,
        HIDDEN=len(bias1),
        FIRST=first,
        SECOND=width - first,
        NORM=eps is not None,
        AFFINE=scale is not None,
        OWN_RESIDUAL=residual is None,
        TANH=tanh,
        BLOCK_ROWS=blocks.rows,
        BLOCK_HIDDEN=blocks.hidden,
        num_warps=blocks.warps,
        num_stages=blocks.stages,
    )
    return out
