"""The algebra of structural re-parameterisation: convolutions and norms as matrices.

Source: RepMLPNet (arXiv 2112.11081), section 3 (Eqs. 4-12) and section 4.1 (Eqs. 13-14).
"""

from typing import Any

import torch
from timm.layers import BatchNormAct2d, FrozenBatchNormAct2d
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

from visionmlp.errors import InvalidConfig


def conv_matrix(
    weight: Tensor,
    size: tuple[int, int],
    *,
    padding: int | tuple[int, int] | None = None,
    groups: int = 1,
) -> Tensor:
    """The matrix that a convolution applies to a flattened feature map (Eq. 12).

    Convolves an identity matrix, so it holds on any backend and is differentiable with respect to ``weight``.

    Args:
        weight: kernel (O, C/groups, kh, kw), stride 1, dilation 1.
        size: height and width (h, w) of the input map.
        padding: zeros on each side, vertical and horizontal; ``None`` keeps the map and needs odd kernels.
        groups: channel groups; ``groups == C`` is depth-wise.

    Returns:
        (groups, O/groups * h' * w', C/groups * h * w) with ``h' = h + 2p - kh + 1``. Rows run over
        (output channel, y, x), columns over (input channel, y, x). One group is one block of the
        block-diagonal matrix, so ``torch.block_diag(*result)`` is the whole of it.

    Raises:
        ValueError: if an even kernel is to keep the map, the groups do not divide the output channels,
            or no output pixel is left.
    """
    out_channels, group_channels, kh, kw = weight.shape
    h, w = size
    if padding is None:
        if kh % 2 == 0 or kw % 2 == 0:
            raise ValueError(f"a {kh}x{kw} kernel cannot keep the map; use odd kernel sizes or give the padding")
        padding = (kh // 2, kw // 2)
    elif isinstance(padding, int):
        padding = (padding, padding)
    if out_channels % groups:
        raise ValueError(f"{groups} groups do not divide {out_channels} output channels")
    out_h, out_w = h + 2 * padding[0] - kh + 1, w + 2 * padding[1] - kw + 1
    if out_h < 1 or out_w < 1:
        raise ValueError(f"a {kh}x{kw} kernel with padding {padding} leaves nothing of a {h}x{w} map")
    inputs = group_channels * h * w
    identity = torch.eye(inputs, dtype=weight.dtype, device=weight.device).view(inputs, group_channels, h, w)
    response = F.conv2d(identity.repeat(1, groups, 1, 1), weight, padding=padding, groups=groups)
    return response.view(inputs, groups, out_channels // groups * out_h * out_w).permute(1, 2, 0)


BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d, FrozenBatchNormAct2d)
"""Norms that an evaluating model computes as one scale and one shift for each channel."""


def batchnorm_affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """The per-channel scale and shift, both (C,) in float64, that an evaluating BatchNorm applies (Eq. 13).

    Synchronised and frozen norms (torchvision's, timm's) are BatchNorms too.

    Raises:
        InvalidConfig: if the norm is no BatchNorm, keeps no running statistics, or has an activation of its own.
    """
    kind = type(norm).__name__
    if not isinstance(norm, BATCH_NORMS):
        raise InvalidConfig(f"{kind} is no BatchNorm and cannot be folded")
    if isinstance(norm, (BatchNormAct2d, FrozenBatchNormAct2d)):
        follows = [part for part in (norm.drop, norm.act) if not isinstance(part, nn.Identity)]
        if follows:
            raise InvalidConfig(f"a {kind} with {type(follows[0]).__name__} behind it cannot be folded")
    if norm.running_mean is None or norm.running_var is None:
        raise InvalidConfig(f"a {kind} without running statistics depends on its batch and cannot be folded")
    values: Any = norm  # buffers or parameters
    scale = (values.running_var.double() + values.eps).rsqrt()
    if values.weight is not None:
        scale = scale * values.weight.detach().double()
    shift = -values.running_mean.double() * scale
    if values.bias is not None:
        shift = shift + values.bias.detach().double()
    return scale, shift


def linear_of_affine(
    weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Weight (O, C) and bias (O,) of ``linear(x * scale + shift)`` as one linear map, in float64."""
    weight = weight.detach().double()
    folded_bias = weight.new_zeros(weight.shape[0]) if bias is None else bias.detach().double()
    if shift is not None:
        folded_bias = folded_bias + weight @ shift.double()
    return weight * scale.double(), folded_bias


def affine_of_linear(
    weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Weight (O, ...) and bias (O,) of ``linear(x) * scale + shift`` as one linear map, in float64."""
    scale = scale.double()
    weight = weight.detach().double()
    folded_bias = weight.new_zeros(weight.shape[0]) if bias is None else bias.detach().double() * scale
    if shift is not None:
        folded_bias = folded_bias + shift.double()
    return weight * scale.view(-1, *[1] * (weight.dim() - 1)), folded_bias
