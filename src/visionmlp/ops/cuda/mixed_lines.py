"""Lines mixed by matrices of their own, softmax included: the heart of DynaMixer.

Libraries compute such small products one by one, after a softmax that writes and a permutation that copies.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from visionmlp.ops.lines import LineAxis

DTYPES = (torch.bfloat16, torch.float16)
_LONGEST, _WIDEST = 64, 64


def fits(x: Tensor, length: int, segments: int, axis: LineAxis) -> bool:
    """Whether `mixed_lines` takes such a map and matrices of this length for lines along an axis."""
    sides = x.shape[axis] == length <= _LONGEST and x.shape[-1] // segments <= _WIDEST
    return x.dtype in DTYPES and sides and x.numel() > 0


def mixed_lines(x: Tensor, logits: Tensor, axis: LineAxis) -> Tensor:
    """``from_lines(softmax(logits) @ to_lines(x))``, see `visionmlp.ops.lines`.

    Args:
        x: (B, H, W, C).
        logits: (B, lines, segments, L, L), or (segments, L, L) for all lines; same dtype.
        axis: that lines run along.

    Returns:
        (B, H, W, C).
    """
    return _mixed(x, logits, axis)


@torch.library.custom_op("visionmlp::mixed_lines", mutates_args=(), device_types="cuda")
def _mixed(x: Tensor, logits: Tensor, axis: int) -> Tensor:
    with torch.cuda.device(x.device):
        return launch_mixed_lines(x.contiguous(), logits.contiguous(), axis)


@_mixed.register_fake
def _(x, logits, axis):  # noqa: ARG001
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@register_flop_formula(torch.ops.visionmlp.mixed_lines)
def _flops(x, logits, axis, **options) -> int:  # noqa: ARG001
    return 2 * x[0] * x[1] * x[2] * x[3] * logits[-1]


def launch_mixed_lines(x: Tensor, logits: Tensor, axis: int) -> Tensor:
    """The operator for contiguous tensors on the current device."""
    from visionmlp.ops.cuda import kernels

    out = torch.empty_like(x)
    batch, channels = x.shape[0], x.shape[3]
    lines, segments, length = x.shape[3 - axis], logits.shape[-3], logits.shape[-1]
    width = channels // segments
    batch_stride, line_stride = logits.stride()[:2] if logits.dim() == 5 else (0, 0)
    kernel: Any = kernels.mix_lines
    kernel[batch * lines * segments,](
        x,
        logits,
        out,
        batch_stride,
        line_stride,
        lines,
        x.stride(0),
        x.stride(3 - axis),
        x.stride(axis),
        LENGTH=length,
        SEGMENTS=segments,
        WIDTH=width,
        BLOCK_LENGTH=_block(length),
        BLOCK_WIDTH=_block(width),
        num_warps=1,
    )
    return out


def _block(size: int) -> int:
    """A power of two, and no less than matrix units take."""
    return max(16, 1 << (size - 1).bit_length())
