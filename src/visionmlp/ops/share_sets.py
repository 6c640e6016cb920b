"""Set-sharing token mixing: S matrices for C channels, channel c uses matrix ``c % S``.

Source: RepMLPNet (arXiv 2112.11081), section 4.1. As a batched matrix product: the grouped convolution of the authors'
code computes the same numbers several times slower.
"""

from torch import Tensor

from visionmlp.ops.eager import is_symbolic
from visionmlp.ops.product import bmm, matmul


def mix_channels_first(x: Tensor, weight: Tensor) -> Tensor:
    """Tokens (B, C, N) times matrices (S, N, N), from the right and transposed: (B, C, N)."""
    batch, channels, tokens = x.shape
    sets = weight.shape[0]
    by_set = x.reshape(batch * channels // sets, sets, tokens).transpose(0, 1)
    return bmm(by_set, weight.transpose(1, 2)).transpose(0, 1).reshape(batch, channels, tokens)


def mix_positions_first(x: Tensor, weight: Tensor) -> Tensor:
    """Matrices (S, N, N) times tokens (N, B, C), from the left: (N, B, C)."""
    tokens, batch, channels = x.shape
    sets = weight.shape[0]
    if not is_symbolic(weight) and sets == 1:
        return matmul(weight[0], x.reshape(tokens, batch * channels)).view(tokens, batch, channels)
    sharing = channels // sets
    by_set = x.reshape(tokens, batch, sharing, sets).permute(3, 0, 1, 2).reshape(sets, tokens, batch * sharing)
    # transposed as an image: else two threads of OpenVINO write into the same lines of the cache
    mixed = bmm(weight, by_set).view(1, sets, tokens, batch * sharing)
    return mixed.permute(0, 2, 3, 1).reshape(tokens, batch, channels)
