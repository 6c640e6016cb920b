"""Convolutions of maps smaller than their kernel."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionmlp.ops.eager import is_symbolic


def conv2d_of_any_size(conv: nn.Module, x: Tensor) -> Tensor:
    """A convolution, or its deploy form, of a map (B, C, H, W); gradients are right on maps smaller than the kernel.

    On a CPU with AVX-512, PyTorch 2.15 takes a bfloat16 convolution's gradient for the kernel from memory that nobody
    wrote where a stride or a large kernel leaves parts of the kernel outside of the map. Such a small map is taken in
    float32.
    """
    if is_symbolic(x) or not torch.is_grad_enabled() or not _in_bfloat16(x):
        return conv(x)
    if not isinstance(conv, nn.Conv2d) or not conv.weight.requires_grad or not _is_small(x, conv):
        return conv(x)
    with torch.autocast("cpu", enabled=False):
        bias = None if conv.bias is None else conv.bias.float()
        y = F.conv2d(x.float(), conv.weight.float(), bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    return y.bfloat16()


def _in_bfloat16(x: Tensor) -> bool:
    if x.device.type != "cpu":
        return False
    cast = torch.is_autocast_enabled("cpu") and x.dtype is torch.float32
    return (torch.get_autocast_dtype("cpu") if cast else x.dtype) is torch.bfloat16


def _is_small(x: Tensor, conv: nn.Conv2d) -> bool:
    return any(side < kernel for side, kernel in zip(x.shape[2:], conv.kernel_size, strict=True))
