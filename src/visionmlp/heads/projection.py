"""Heads of self-supervised methods: from pooled features to what their losses compare."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class NormalizedLinear(nn.Module):
    """Products with weights of length one, times a scale for each output.

    Args:
        in_dim: width of the input.
        out_dim: outputs.
        learn_scale: whether the scale is trained; it is 1 otherwise.
    """

    def __init__(self, in_dim: int, out_dim: int, *, learn_scale: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.Linear(in_dim, out_dim, bias=False).weight.detach().clone())
        # a matrix, as weight_norm's, so that weight decay reaches it
        self.scale = nn.Parameter(torch.ones(out_dim, 1)) if learn_scale else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_dim) to (B, out_dim)."""
        weight = F.normalize(self.weight)
        return F.linear(x, weight if self.scale is None else weight * self.scale)


class DinoHead(nn.Module):
    """Linear layers with GELU, a row of length one, prototypes of length one.

    DINO, arXiv 2104.14294, section 3.1 and appendix C.

    Args:
        in_dim: width of the features.
        out_dim: prototypes, K.
        hidden_dim: width of the hidden layers.
        bottleneck_dim: width before the prototypes.
        layers: linear layers before the prototypes.
        batch_norm: whether a BatchNorm stands before each GELU.
        norm_last_layer: whether prototypes keep length one.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        layers: int = 3,
        batch_norm: bool = False,
        norm_last_layer: bool = True,
    ) -> None:
        super().__init__()
        widths = [in_dim, *[hidden_dim] * (layers - 1), bottleneck_dim]
        parts: list[nn.Module] = []
        for index in range(layers):
            parts.append(nn.Linear(widths[index], widths[index + 1]))
            if index < layers - 1:
                parts += [nn.BatchNorm1d(hidden_dim), nn.GELU()] if batch_norm else [nn.GELU()]
        self.mlp = nn.Sequential(*parts)
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.prototypes = NormalizedLinear(bottleneck_dim, out_dim, learn_scale=not norm_last_layer)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_dim) to (B, out_dim)."""
        # half precision has no number near 1e-12
        row = F.normalize(self.mlp(x).float() if x.dtype in (torch.bfloat16, torch.float16) else self.mlp(x))
        return self.prototypes(row.to(self.prototypes.weight.dtype))


def projector(in_dim: int, out_dim: int, *, hidden_dim: int, layers: int, last_norm: bool = True) -> nn.Sequential:
    """Linear layers without bias, each but the last with BatchNorm and ReLU; the last with BatchNorm without affine.

    MoCo v3's projection and prediction heads: arXiv 2104.02057, section 3.

    Args:
        in_dim: width of the input.
        out_dim: width of the output.
        hidden_dim: width between.
        layers: linear layers.
        last_norm: whether the output is normalised.
    """
    widths = [in_dim, *[hidden_dim] * (layers - 1), out_dim]
    parts: list[nn.Module] = []
    for index in range(layers):
        parts.append(nn.Linear(widths[index], widths[index + 1], bias=False))
        if index < layers - 1:
            parts += [nn.BatchNorm1d(hidden_dim), nn.ReLU(inplace=True)]
    if last_norm:
        parts.append(nn.BatchNorm1d(out_dim, affine=False))
    return nn.Sequential(*parts)
