"""Norms of maps whose channels come last. Layout (B, H, W, C)."""

from torch import Tensor, nn
from torch.nn import functional as F

from visionmlp.ops.eager import in_eager_inference


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
        return F.group_norm(input.permute(0, 3, 1, 2), 1, self.weight, self.bias, self.eps).permute(0, 2, 3, 1)
