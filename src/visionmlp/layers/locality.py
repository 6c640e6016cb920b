"""Locality Injection: convolution branches that train beside a token-mixing matrix and then merge into it.

Source: RepMLPNet (arXiv 2112.11081), Local Perceptron of section 4.1 (Eqs. 13-14); Table 5 for other MLPs.
"""

import math
from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

import torch
from timm.layers import register_notrace_function
from torch import Tensor, nn
from torch.nn import functional as F

from visionmlp.errors import InvalidConfig
from visionmlp.layers.grid_mixer import GridMixer
from visionmlp.ops.fold import affine_of_linear, batchnorm_affine, conv_matrix
from visionmlp.ops.resize import Grid, resize_grid, resize_token_inputs, resize_token_matrix, resize_token_outputs


def check_kernel_sizes(kernel_sizes: Sequence[int]) -> tuple[int, ...]:
    """Sorted kernel sizes.

    Raises:
        InvalidConfig: if one is even, not positive or given twice.
    """
    wrong = [k for k in kernel_sizes if k < 1 or k % 2 == 0]
    if wrong:
        raise InvalidConfig(
            f"kernel_sizes must be odd and positive to keep the map, got {wrong[0]}; try {max(1, wrong[0] + 1)}"
        )
    if len(set(kernel_sizes)) != len(kernel_sizes):
        raise InvalidConfig(f"kernel_sizes must differ from each other, got {tuple(kernel_sizes)}")
    return tuple(sorted(kernel_sizes))


@register_notrace_function
def shared_depthwise(x: Tensor, weight: Tensor, padding: int) -> Tensor:
    """Depth-wise convolution of (B, C, h, w) by kernels (S, 1, k, k), channel c by kernel ``c % S``."""
    channels = x.shape[1]
    # one convolution over all channels: far faster than S-channel images of a larger batch
    kernels = weight.repeat(channels // weight.shape[0], 1, 1, 1)
    return F.conv2d(x, kernels, padding=padding, groups=channels)


class LocalityBranch(nn.Module):
    """Depth-wise k x k convolution, then BatchNorm; channel c uses share-set ``c % share_sets`` of both."""

    def __init__(self, share_sets: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            share_sets, share_sets, kernel_size, padding=kernel_size // 2, groups=share_sets, bias=False
        )
        self.norm = nn.BatchNorm2d(share_sets)
        self.padding = kernel_size // 2

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to (B, C, h, w)."""
        batch, channels, h, w = x.shape
        sharing = channels // self.conv.groups
        y = shared_depthwise(x, self.conv.weight, self.padding)
        return self.norm(y.reshape(batch * sharing, self.conv.groups, h, w)).reshape(batch, channels, h, w)

    def folded(self) -> tuple[Tensor, Tensor]:
        """Kernel (S, 1, k, k) and bias (S,) with the norm folded in, in float64 (Eq. 13)."""
        return affine_of_linear(self.conv.weight, None, *batchnorm_affine(self.norm))


class LocalityBranches(nn.Module):
    """The branches beside one token-mixing layer, one for each kernel size; none of them is a valid choice."""

    def __init__(self, share_sets: int, kernel_sizes: Sequence[int]) -> None:
        super().__init__()
        self.share_sets = share_sets
        self.by_kernel_size = nn.ModuleDict(
            {str(k): LocalityBranch(share_sets, k) for k in check_kernel_sizes(kernel_sizes)}
        )

    @property
    def kernel_sizes(self) -> tuple[int, ...]:
        """Sizes of the branches, ascending."""
        return tuple(int(k) for k in self.by_kernel_size)

    def __iter__(self) -> Iterator[LocalityBranch]:
        return iter(self.by_kernel_size.values())  # type: ignore[arg-type]

    def extended(self, kernel_sizes: Sequence[int]) -> "LocalityBranches":
        """These branches with new ones for the sizes they lack."""
        merged = LocalityBranches(self.share_sets, sorted({*self.kernel_sizes, *check_kernel_sizes(kernel_sizes)}))
        merged.by_kernel_size.update(dict(self.by_kernel_size.items()))
        return merged

    def add_to(self, y: Tensor, x: Tensor) -> Tensor:
        """``y`` plus every branch's response to the maps ``x``; both (B, C, h, w)."""
        for branch in self.by_kernel_size.values():  # not over itself: PyTorch 2.6 could not export it
            y = y + branch(x)
        return y

    def folded(self, size: tuple[int, int], like: Tensor) -> tuple[Tensor, Tensor]:
        """The sum of the branches as matrices (S, h*w, h*w) and biases (S,) for maps of ``size``, in float64."""
        largest = max(self.kernel_sizes, default=1)
        kernel = torch.zeros(self.share_sets, 1, largest, largest, dtype=torch.float64, device=like.device)
        bias = torch.zeros(self.share_sets, dtype=torch.float64, device=like.device)
        for branch in self:
            branch_kernel, branch_bias = branch.folded()
            kernel = kernel + F.pad(branch_kernel, [(largest - branch_kernel.shape[-1]) // 2] * 4)
            bias = bias + branch_bias
        return conv_matrix(kernel, size, groups=self.share_sets), bias


_RESIZERS = {
    "matrix": resize_token_matrix,
    "inputs": resize_token_inputs,
    "outputs": resize_token_outputs,
    "vector": resize_grid,
}


class LocalMixer(GridMixer):
    """A token mixer with matrices over all positions, which takes convolution branches."""

    locality: LocalityBranches
    """The branches beside it."""
    token_sides: ClassVar[dict[str, Literal["matrix", "inputs", "outputs", "vector"]]]
    """Its state entries that depend on the grid, and where the tokens are: both sides, columns, rows, or all of it."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.grid_entries = tuple(cls.token_sides)

    def resized(self, entry: str, value: Tensor, old: Grid | None) -> Tensor:
        """4-D interpolation; a grid that nobody tells is taken for square."""
        kind = self.token_sides[entry]
        tokens = value.shape[-2 if kind == "outputs" else -1]
        old = old or (math.isqrt(tokens), math.isqrt(tokens))
        return _RESIZERS[kind](value, old, self.grid) if old[0] * old[1] == tokens else value
