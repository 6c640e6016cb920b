"""Per-channel affine maps: ResMLP's normalisation and LayerScale; and the affine part of every norm."""

import torch
from torch import Tensor, nn

from visionmlp.errors import InvalidConfig
from visionmlp.layers.norms import LayerStatistics, MapBatchNorm, MapGroupNorm
from visionmlp.ops.fold import BATCH_NORMS, batchnorm_affine


class Affine(nn.Module):
    """``x * alpha + beta`` over the last dimension.

    Source: ResMLP (arXiv 2105.03404), Eq. 1.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(dim))
        self.beta = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to (..., C)."""
        return torch.addcmul(self.beta, x, self.alpha)


class LayerScale(nn.Module):
    """``x * gamma`` over the last dimension.

    Source: CaiT (arXiv 2103.17239), section 2; ResMLP's post-normalisation as in its authors' code.
    """

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to (..., C)."""
        return x * self.gamma


def split_affine(norm: nn.Module) -> tuple[nn.Module, Tensor, Tensor]:
    """A norm as ``statistics(x) * scale + shift``: what depends on the input, and two vectors (C,) that can be folded.

    The statistics of an evaluating BatchNorm are constants, so nothing of it depends on the input.

    Raises:
        InvalidConfig: for a module that is no norm with a scale and a shift for each channel, or one that cannot fold.
    """
    if isinstance(norm, Affine):
        return nn.Identity(), norm.alpha.detach(), norm.beta.detach()
    if isinstance(norm, MapBatchNorm):
        return nn.Identity(), *batchnorm_affine(norm.bn)
    if isinstance(norm, BATCH_NORMS):
        return nn.Identity(), *batchnorm_affine(norm)
    statistics: nn.Module | None = None
    if isinstance(norm, nn.LayerNorm) and norm.elementwise_affine:
        statistics = LayerStatistics(norm.normalized_shape[0], eps=norm.eps)
    elif isinstance(norm, MapGroupNorm) and norm.affine:
        statistics = MapGroupNorm(norm.num_channels, eps=norm.eps, affine=False)
    if statistics is None:
        raise InvalidConfig(f"{type(norm).__name__} has no scale and shift to fold")
    assert isinstance(norm, (nn.LayerNorm, MapGroupNorm))
    return statistics, norm.weight.detach(), norm.bias.detach()
