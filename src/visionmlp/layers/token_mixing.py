"""Token mixing with one matrix for all channels, as in ResMLP and MLP-Mixer. Layout (B, H, W, C)."""

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from visionmlp.layers.channel_mlp import InplaceGELU
from visionmlp.layers.fusible import parameter
from visionmlp.layers.linear import Linear
from visionmlp.layers.locality import LocalityBranches, LocalMixer
from visionmlp.ops.eager import in_eager_inference
from visionmlp.ops.layout import from_positions_first, to_positions_first
from visionmlp.ops.product import images_at_once, matmul


class TokenLinear(LocalMixer):
    """One linear layer over the positions of each channel, with optional convolution branches beside it.

    Source: ResMLP (arXiv 2105.03404), matrix A of Eq. 2; branches as in RepMLPNet (arXiv 2112.11081), Table 5.
    """

    token_sides: ClassVar = {"fc.weight": "matrix", "fc.bias": "vector"}

    def __init__(self, grid: tuple[int, int], *, kernel_sizes: Sequence[int] = ()) -> None:
        super().__init__()
        self.grid = grid
        self.fc = Linear(grid[0] * grid[1], grid[0] * grid[1])
        self.locality = LocalityBranches(1, kernel_sizes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        maps = x.permute(0, 3, 1, 2)
        mixed = self.fc(maps.flatten(2)).unflatten(2, self.grid)
        return self.locality.add_to(mixed, maps).permute(0, 2, 3, 1)

    def folded(self) -> tuple[Tensor, Tensor]:
        """Matrix (N, N) and bias (N,) of the layer with its branches, in float64 (RepMLPNet, Eq. 4)."""
        matrix, bias = self.locality.folded(self.grid, self.fc.weight)
        return self.fc.weight.detach().double() + matrix[0], self.fc.bias.detach().double() + bias


class TokenMLP(LocalMixer):
    """Linear, GELU, linear over the positions of each channel.

    Convolution branches add to the input of the first layer, ``fc1(x + branches(x))``: beside the whole MLP they would
    bypass the GELU and could not merge into its two matrices.
    Source: MLP-Mixer (arXiv 2105.01601), Eq. 1; ResMLP (arXiv 2105.03404), Table 3, "linear -> MLP".
    """

    token_sides: ClassVar = {"fc1.weight": "inputs", "fc2.weight": "outputs", "fc2.bias": "vector"}

    def __init__(
        self, grid: tuple[int, int], hidden_dim: int, *, act: nn.GELU, kernel_sizes: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.grid = grid
        self.fc1 = Linear(grid[0] * grid[1], hidden_dim)
        self.act = act
        self.fc2 = Linear(hidden_dim, grid[0] * grid[1])
        self.locality = LocalityBranches(1, kernel_sizes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        maps = x.permute(0, 3, 1, 2)
        mixed = self.fc2(self.act(self.fc1(self.locality.add_to(maps, maps).flatten(2))))
        return mixed.unflatten(2, self.grid).permute(0, 2, 3, 1)

    def folded_fc1(self) -> tuple[Tensor, Tensor]:
        """Matrix (hidden, N) and bias (hidden,) of ``fc1`` after the branches, in float64."""
        matrix, bias = self.locality.folded(self.grid, self.fc1.weight)
        weight = self.fc1.weight.detach().double()
        return weight + weight @ matrix[0], self.fc1.bias.detach().double() + weight.sum(1) * bias


class TokenMatrix(nn.Module):
    """A matrix (M, N) for products from the left, and perhaps a bias (M,); under the names of a linear layer."""

    def __init__(self, weight: Tensor, bias: Tensor | None, like: Tensor) -> None:
        super().__init__()
        self.weight = parameter(weight, like)
        self.bias = None if bias is None else parameter(bias, like)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, ...) to (M, ...), two dimensions."""
        mixed = matmul(self.weight, tokens)
        return mixed if self.bias is None else mixed.add_(self.bias[:, None])


def _in_parts(mix: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``mix`` of a map (H, W, B, C), of so many images at a time as its products like."""
    if not in_eager_inference(x) or (size := images_at_once(x)) == x.shape[2]:
        return mix(x)
    mixed = torch.empty_like(x)
    for part, target in zip(x.split(size, 2), mixed.split(size, 2), strict=True):
        target.copy_(mix(part.contiguous()))
    return mixed


class DeployedTokenLinear(nn.Module):
    """Residual token mixing of a deploy form: ``x + scale * (fc @ norm(x)) + bias``, computed positions-first."""

    def __init__(self, norm: nn.Module, fc: TokenMatrix, scale: nn.Parameter, bias: nn.Parameter) -> None:
        super().__init__()
        self.norm = norm
        self.fc = fc
        self.scale = scale
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        positions = to_positions_first(x, "BHWC").contiguous()
        return from_positions_first(_in_parts(self._mix, positions), "BHWC")

    def _mix(self, positions: Tensor) -> Tensor:
        h, w, batch, channels = positions.shape
        # rows, see DeployedResidual
        tokens = self.norm(positions.flatten(0, 2)).view(h * w, batch * channels)
        mixed = self.fc(tokens).view(h, w, batch, channels)
        return (positions + self.bias).addcmul_(mixed, self.scale)

    @staticmethod
    def fold(mixer: TokenLinear, *, norm: nn.Module, scale: Tensor, shift: Tensor, post_scale: Tensor) -> nn.Module:
        """Fold ``x + post_scale * mixer(norm(x) * scale + shift)``; the vectors are (C,).

        The matrix is shared by all channels, so per-channel scales stay outside it; shifts and biases add up to
        one map (H, W, 1, C).
        """
        like = mixer.fc.weight
        matrix, bias = mixer.folded()
        post_scale = post_scale.double()
        offset = matrix.sum(1)[:, None] * (post_scale * shift.double()) + bias[:, None] * post_scale
        return DeployedTokenLinear(
            norm,
            TokenMatrix(matrix, None, like),
            parameter(post_scale * scale.double(), like),
            parameter(offset.view(*mixer.grid, 1, -1), like),
        )


class DeployedTokenMLP(nn.Module):
    """Residual token mixing of a deploy form: ``x + scale(fc2 @ gelu(fc1 @ norm(x)))``, computed positions-first."""

    def __init__(self, norm: nn.Module, fc1: TokenMatrix, act: nn.GELU, fc2: TokenMatrix, scale: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.fc1 = fc1
        self.act = InplaceGELU(act.approximate)
        self.fc2 = fc2
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        positions = to_positions_first(x, "BHWC").contiguous()
        return from_positions_first(_in_parts(self._mix, positions), "BHWC")

    def _mix(self, positions: Tensor) -> Tensor:
        h, w, batch, channels = positions.shape
        rows = positions.flatten(0, 2)  # as matrices, see DeployedResidual
        tokens = self.norm(rows).view(h * w, batch * channels)
        mixed = self.fc2(self.act(self.fc1(tokens))).view_as(rows)
        return self.scale(mixed).add_(rows).view_as(positions)

    @staticmethod
    def fold(mixer: TokenMLP, *, norm: nn.Module, scale: nn.Module) -> nn.Module:
        """Fold ``x + scale(mixer(norm(x)))``: per-channel maps around the GELU cannot move into shared matrices."""
        fc1 = TokenMatrix(*mixer.folded_fc1(), mixer.fc1.weight)
        fc2 = TokenMatrix(mixer.fc2.weight, mixer.fc2.bias, mixer.fc2.weight)
        return DeployedTokenMLP(norm, fc1, mixer.act, fc2, scale)
