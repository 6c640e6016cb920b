"""Norms of maps whose channels come last. Layout (B, H, W, C)."""

import torch
from timm.layers import register_notrace_function
from torch import Tensor, nn
from torch.nn import functional as F

from visionmlp.ops.eager import in_eager_inference, in_inference_graph


class MapBatchNorm(nn.Module):
    """BatchNorm over the last dimension of a map.

    The norm is a part rather than a base class: a conversion to synchronised norms then replaces it and nothing else.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.bn: nn.Module = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        return self.bn(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class LayerStatistics(nn.LayerNorm):
    """A LayerNorm without scale and shift, which stand elsewhere in a deploy form."""

    def __init__(self, dim: int, *, eps: float) -> None:
        super().__init__(dim, eps=eps, elementwise_affine=False)

    def forward(self, input: Tensor) -> Tensor:
        """(..., C) to (..., C)."""
        if not in_eager_inference(input):
            return super().forward(input)
        # PyTorch's CPU kernel takes twice the time without them
        scale, shift = input.new_ones(self.normalized_shape), input.new_zeros(self.normalized_shape)
        return F.layer_norm(input, self.normalized_shape, scale, shift, self.eps)


class MapGroupNorm(nn.GroupNorm):
    """Mean and variance over all values of a sample, scale and shift for each channel: a GroupNorm of one group.

    Source: Group normalization (arXiv 1803.08494), section 3; AS-MLP (arXiv 2107.08391) uses it throughout.
    """

    def __init__(self, dim: int, *, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__(1, dim, eps=eps, affine=affine)

    def forward(self, input: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        return map_group_norm(input, self.weight, self.bias, self.eps)


@register_notrace_function
def map_group_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Group norm of one group over a map (B, H, W, C), with scale and shift (C,)."""
    if in_inference_graph():
        # statistics of a sample do not ask where its channels are, but runtimes move them for a GroupNorm
        normed = F.group_norm(x.flatten(1, 2), 1, eps=eps)
        scaled = normed if weight is None else normed * weight
        return (scaled if bias is None else scaled + bias).view(x.shape)
    if not torch.jit.is_scripting():  # noqa: SIM102, as TorchScript skips what stands under that question alone
        if _is_eager_cuda(x):
            return _on_cuda(x, weight, bias, eps)
    maps = x.permute(0, 3, 1, 2)
    if torch.is_grad_enabled() and weight is not None and bias is not None and not x.requires_grad:
        # behind frozen levels: PyTorch 2.6's backward pass crashes the process where the map needs no gradient
        return F.group_norm(maps, 1, eps=eps).permute(0, 2, 3, 1) * weight + bias
    return F.group_norm(maps, 1, weight, bias, eps).permute(0, 2, 3, 1)


def _is_eager_cuda(x: Tensor) -> bool:
    """In inference: training would keep the intermediate maps. Autocast has a dtype of its own for norms."""
    watched = torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.is_autocast_enabled("cuda")
    return x.device.type == "cuda" and not watched and x.numel() > 0


_ENOUGH_SAMPLES = 32
"""For a kernel that takes a multiprocessor for each."""


def _on_cuda(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """A tenth of the time of PyTorch's kernels for a GroupNorm whose channels come last."""
    samples = x.flatten(1)
    if len(samples) >= _ENOUGH_SAMPLES:
        normed = F.layer_norm(samples, samples.shape[1:], eps=eps).view(x.shape)
    else:
        wide = samples.to(torch.promote_types(x.dtype, torch.float32))
        variance, mean = torch.var_mean(wide, 1, correction=0, keepdim=True)
        normed = ((wide - mean) * (variance + eps).rsqrt()).view(x.shape)
    scaled = normed if weight is None else normed * weight
    return (scaled if bias is None else scaled + bias).to(x.dtype)
