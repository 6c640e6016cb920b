"""Channel mixing: two linear layers over the channels of each position."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionmlp.layers.fusible import linear
from visionmlp.layers.linear import Linear, add_linear, linear_gelu
from visionmlp.layers.norms import LayerStatistics, MapGroupNorm
from visionmlp.ops.cuda import channel_mlp as cuda_mlp
from visionmlp.ops.eager import in_cuda_inference, in_eager_inference, in_graph_of_images, is_watched
from visionmlp.ops.fold import affine_of_linear, linear_of_affine
from visionmlp.ops.gelu import gelu_
from visionmlp.ops.layout import Layout, from_positions_first, to_positions_first

_HIDDEN_PART = 1 << 22
"""Elements of the hidden map that are computed at a time, on CPUs in eager inference."""


class ChannelMLP(nn.Module):
    """Linear, GELU, linear over the last dimension, with dropout after each linear layer."""

    def __init__(self, dim: int, hidden_dim: int, *, act: nn.GELU, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden_dim)
        self.act = act
        self.fc2 = Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to (..., C)."""
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class InplaceGELU(nn.GELU):
    """GELU that overwrites its input: the hidden map of a deploy form is read once and never again."""

    def forward(self, input: Tensor) -> Tensor:
        """Any shape, contiguous; in eager inference the result is the input's memory."""
        return gelu_(input, _approximate(self))


class DeployedMLP(nn.Module):
    """Residual channel mixing of a deploy form: ``x + fc2(gelu(fc1(norm(x))))``.

    Everything affine around the two linear layers is folded into them; ``norm`` keeps only what depends on the input.
    """

    def __init__(self, norm: nn.Module, fc1: nn.Linear, act: nn.GELU, fc2: nn.Linear) -> None:
        super().__init__()
        self.norm = norm
        self.fc1 = fc1
        self.act = InplaceGELU(act.approximate)
        self.fc2 = fc2

    def mix(self, x: Tensor) -> Tensor:
        """(..., C) to (..., C), a contiguous map of channels-last memory order."""
        of_whole_maps = isinstance(self.norm, MapGroupNorm)
        if in_cuda_inference(x) and cuda_mlp.fits(x, self.fc1.out_features) and self._is_plain(x):
            return self._mix_on_cuda(x.contiguous())
        if not in_eager_inference(x):
            # as matrices, see DeployedResidual
            rows = x.flatten(0, -2)
            hidden = self.act(self.fc1(self.norm(x).flatten(0, -2) if of_whole_maps else self.norm(rows)))
            return self.fc2(hidden).add_(rows).view(x.shape)
        x = x.contiguous()
        # a hidden map of tens of megabytes leaves the caches; of small parts the calls cost more
        parts = 1 if self._is_watched() else -(-x.shape[:-1].numel() * self.fc1.out_features // _HIDDEN_PART)
        rows = x.flatten(0, -2)
        normed = self.norm(x).flatten(0, -2) if of_whole_maps else rows
        if parts <= 1:
            return self._mix_rows(normed, rows, of_whole_maps).view(x.shape)
        mixed = torch.empty_like(rows)
        for part, residual, target in zip(*(of.chunk(parts) for of in (normed, rows, mixed)), strict=True):
            target.copy_(self._mix_rows(part, residual, of_whole_maps))
        return mixed.view(x.shape)

    def _is_plain(self, like: Tensor) -> bool:
        """Whether a kernel computes what these modules would: none is another's, watched, or kept elsewhere."""
        modules = (self.norm, self.fc1, self.act, self.fc2)
        parameters = [value for module in modules for value in module.parameters()]
        return (
            type(self.fc1) is type(self.fc2) is Linear
            and type(self.norm) in (nn.Identity, nn.LayerNorm, LayerStatistics, MapGroupNorm)
            and type(self.act) is InplaceGELU
            and self.fc1.bias is not None
            and self.fc2.bias is not None
            and (getattr(self.norm, "weight", None) is None) == (getattr(self.norm, "bias", None) is None)
            and all(type(value) is nn.Parameter for value in parameters)
            and all(value.device == like.device and value.dtype == like.dtype for value in parameters)
            and not self._is_watched()
        )

    def _is_watched(self) -> bool:
        return any(map(is_watched, (self.norm, self.fc1, self.act, self.fc2)))

    def _mix_on_cuda(self, x: Tensor) -> Tensor:
        rows, norm = x.flatten(0, -2), self.norm
        of_rows = isinstance(norm, nn.LayerNorm)
        mixed = cuda_mlp.channel_mlp(
            norm(x).flatten(0, -2) if isinstance(norm, MapGroupNorm) else rows,
            rows if isinstance(norm, MapGroupNorm) else None,
            norm.weight if of_rows else None,
            norm.bias if of_rows else None,
            self.fc1.weight,
            self.fc1.bias,
            self.fc2.weight,
            self.fc2.bias,
            norm.eps if of_rows else None,
            _approximate(self.act) == "tanh",
        )
        return mixed.view(x.shape)

    def _mix_rows(self, rows: Tensor, residual: Tensor, normed: bool) -> Tensor:
        rows = rows if normed else self.norm(rows)
        if type(self.act) is not InplaceGELU or is_watched(self.act):
            return add_linear(residual, self.act(self.fc1(rows)), self.fc2)
        return add_linear(residual, linear_gelu(rows, self.fc1, _approximate(self.act)), self.fc2)


def _approximate(act: nn.GELU) -> Literal["none", "tanh"]:
    return "tanh" if act.approximate == "tanh" else "none"


class DeployedChannelMLP(DeployedMLP):
    """`DeployedMLP` computed positions-first."""

    def __init__(self, norm: nn.Module, fc1: nn.Linear, act: nn.GELU, fc2: nn.Linear, *, layout: Layout) -> None:
        super().__init__(norm, fc1, act, fc2)
        self.layout: Layout = layout

    def forward(self, x: Tensor) -> Tensor:
        """A map in ``layout`` to one of the same shape."""
        return from_positions_first(self.mix(to_positions_first(x, self.layout).contiguous()), self.layout)

    @staticmethod
    def fold(
        mlp: ChannelMLP,
        *,
        norm: nn.Module,
        scale: Tensor,
        shift: Tensor,
        post_scale: Tensor | None,
        layout: Layout,
    ) -> "DeployedChannelMLP":
        """Fold ``x + post_scale * mlp(norm(x) * scale + shift)``; the vectors are (C,)."""
        like = mlp.fc1.weight
        fc1 = linear(*linear_of_affine(mlp.fc1.weight, mlp.fc1.bias, scale, shift), like)
        weight, bias = mlp.fc2.weight, mlp.fc2.bias
        if post_scale is not None:
            weight, bias = affine_of_linear(weight, bias, post_scale)
        return DeployedChannelMLP(norm, fc1, mlp.act, linear(weight, bias, like), layout=layout)


class DeployedMapMLP(DeployedMLP):
    """`DeployedMLP` computed batch-first, for blocks whose token mixing is. Layout (B, H, W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        if in_graph_of_images() and x.dtype == torch.float32 and type(self.fc1) is type(self.fc2) is Linear:
            return self._mix_image(x)
        return self.mix(x)

    def _mix_image(self, x: Tensor) -> Tensor:
        hidden = self.act(_pointwise(self.norm(x).permute(0, 3, 1, 2), self.fc1))
        return (x.permute(0, 3, 1, 2) + _pointwise(hidden, self.fc2)).permute(0, 2, 3, 1)

    @staticmethod
    def fold(mlp: ChannelMLP, *, norm: nn.Module, scale: Tensor, shift: Tensor) -> "DeployedMapMLP":
        """Fold ``x + mlp(norm(x) * scale + shift)``; the vectors are (C,)."""
        like = mlp.fc1.weight
        fc1 = linear(*linear_of_affine(mlp.fc1.weight, mlp.fc1.bias, scale, shift), like)
        return DeployedMapMLP(norm, fc1, mlp.act, linear(mlp.fc2.weight, mlp.fc2.bias, like))


def _pointwise(image: Tensor, layer: nn.Linear) -> Tensor:
    return F.conv2d(image, layer.weight[:, :, None, None], layer.bias)
