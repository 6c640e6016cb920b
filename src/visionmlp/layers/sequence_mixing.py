"""Mixing along a sequence with one matrix for all channels, as ResMLP does for translation. Layout (B, T, C)."""

import torch
from torch import Tensor, nn

from visionmlp.errors import SentenceTooLong


class SequenceLinear(nn.Module):
    """``y[t] = sum over s of A[t, s] x[s] + b[t]``, the same for all channels.

    A shorter sequence takes the upper left part of the matrix, whatever else is in its batch.
    Source: ResMLP (arXiv 2105.03404), section 2, "Sequence-to-Sequence ResMLP"; the bias is that of the image model's
    code.

    Args:
        max_length: N, the side of the matrix.
        causal: whether the matrix is lower-triangular, so that no position sees one behind it.
        std: of the initial entries; the image model's 0.02.
    """

    def __init__(self, max_length: int, *, causal: bool, std: float = 0.02) -> None:
        super().__init__()
        self.causal = causal
        self.weight = nn.Parameter(torch.empty(max_length, max_length))
        self.bias = nn.Parameter(torch.zeros(max_length))
        nn.init.trunc_normal_(self.weight, std=std)

    @property
    def max_length(self) -> int:
        """N."""
        return self.weight.shape[0]

    def matrix(self, length: int) -> Tensor:
        """(T, T), what a sequence of this length is mixed by.

        Raises:
            SentenceTooLong: beyond N.
        """
        check_length(length, self.max_length)
        matrix = self.weight[:length, :length]
        return matrix.tril() if self.causal else matrix

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        length = x.shape[1]
        return torch.matmul(self.matrix(length), x) + self.bias[:length, None]

    def last(self, x: Tensor) -> Tensor:
        """(B, T, C) to (B, 1, C): the last position of a causal map, in O(T C)."""
        position = x.shape[1] - 1
        check_length(position + 1, self.max_length)
        # slices only: of a number PyTorch 2.6 makes a constant of exported graphs
        here = slice(position, position + 1)
        return torch.matmul(self.weight[here, : position + 1], x) + self.bias[here, None]


def check_length(length: int, max_length: int) -> None:
    """Raise SentenceTooLong beyond ``max_length``."""
    if length > max_length:
        raise SentenceTooLong(
            f"a sentence of {length} tokens, its end symbol among them, is longer than the {max_length} of this model; "
            "split it, or give the model more positions with visionmlp.extend_positions"
        )
