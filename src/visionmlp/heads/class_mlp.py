"""Class-MLP pooling: a class vector that reads the frozen patches through linear layers.

Source: ResMLP (arXiv 2105.03404), section 2, "Class-MLP as an Alternative to Average Pooling"; two layers as in CaiT.
The paper gives no code; this reading has its parameter count (17.7M for S12, Table 3).
"""

import torch
from torch import Tensor, nn

from visionmlp.layers.affine import Affine, LayerScale
from visionmlp.layers.channel_mlp import ChannelMLP, InplaceGELU
from visionmlp.layers.fusible import Fusible, linear, parameter
from visionmlp.layers.linear import Linear
from visionmlp.ops.fold import affine_of_linear, linear_of_affine


class ClassMLPLayer(Fusible):
    """A residual sum over class vector and patches, then a residual channel MLP; only the class vector changes."""

    def __init__(self, dim: int, tokens: int, hidden_dim: int, *, layer_scale: float) -> None:
        super().__init__()
        self.norm1 = Affine(dim)
        self.aggregate = Linear(tokens + 1, 1)
        self.scale1 = LayerScale(dim, layer_scale)
        self.norm2 = Affine(dim)
        self.channel = ChannelMLP(dim, hidden_dim, act=nn.GELU())
        self.scale2 = LayerScale(dim, layer_scale)

    def forward(self, class_vector: Tensor, patches: Tensor) -> Tensor:
        """Class vector (B, C) and patches (B, N, C) to the next class vector (B, C)."""
        tokens = self.norm1(torch.cat([class_vector[:, None], patches], dim=1))
        x = class_vector + self.scale1(self.aggregate(tokens.transpose(1, 2)).squeeze(2))
        return x + self.scale2(self.channel(self.norm2(x)))

    def fused(self) -> "DeployedClassMLPLayer":
        """Affines and scales folded: a weighted sum of tokens, a scale and bias per channel, two linear layers."""
        like = self.aggregate.weight
        weight = self.aggregate.weight.detach().double()[0]
        post = self.scale1.gamma.detach().double()
        shift = self.norm1.beta.detach().double() * weight.sum() + self.aggregate.bias.detach().double()
        fc1, fc2 = self.channel.fc1, self.channel.fc2
        return DeployedClassMLPLayer(
            parameter(weight, like),
            parameter(post * self.norm1.alpha.double(), like),
            parameter(post * shift, like),
            linear(*linear_of_affine(fc1.weight, fc1.bias, self.norm2.alpha, self.norm2.beta), like),
            linear(*affine_of_linear(fc2.weight, fc2.bias, self.scale2.gamma), like),
        )


class DeployedClassMLPLayer(nn.Module):
    """Deploy form of `ClassMLPLayer`."""

    def __init__(
        self, weight: nn.Parameter, scale: nn.Parameter, bias: nn.Parameter, fc1: nn.Linear, fc2: nn.Linear
    ) -> None:
        super().__init__()
        self.weight, self.scale, self.bias = weight, scale, bias
        self.fc1, self.act, self.fc2 = fc1, InplaceGELU(), fc2

    def forward(self, class_vector: Tensor, patches: Tensor) -> Tensor:
        """Class vector (B, C) and patches (B, N, C) to the next class vector (B, C)."""
        gathered = self.weight[0] * class_vector + torch.matmul(self.weight[1:], patches)
        x = class_vector + gathered * self.scale + self.bias
        return x + self.fc2(self.act(self.fc1(x)))


class ClassMLPPool(nn.Module):
    """A learned class vector passed through `ClassMLPLayer`s: a map (B, H, W, C) to (B, C)."""

    def __init__(self, dim: int, tokens: int, *, depth: int = 2, mlp_ratio: float = 4.0, layer_scale: float) -> None:
        super().__init__()
        self.class_vector = nn.Parameter(torch.zeros(dim))
        nn.init.trunc_normal_(self.class_vector, std=0.02)
        self.layers = nn.ModuleList(
            ClassMLPLayer(dim, tokens, int(dim * mlp_ratio), layer_scale=layer_scale) for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, C)."""
        patches = x.flatten(1, 2)
        class_vector = self.class_vector.expand(x.shape[0], -1)
        for layer in self.layers:
            class_vector = layer(class_vector, patches)
        return class_vector
