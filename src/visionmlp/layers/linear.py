"""The linear layer of all models, alone and with what follows it in deploy forms."""

from typing import Literal

from torch import Tensor, nn

from visionmlp.ops import product
from visionmlp.ops.gelu import gelu_


class Linear(nn.Linear):
    """``nn.Linear`` whose products are computed by the faster library, see `visionmlp.ops.product`."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., C) to (..., O)."""
        return product.linear(input, self.weight, self.bias)


def linear_gelu(x: Tensor, layer: nn.Linear, approximate: Literal["none", "tanh"]) -> Tensor:
    """``gelu(layer(x))`` as one operator, if the layer is an ordinary one; it may be a quantiser's."""
    if isinstance(layer, Linear):
        return product.linear_gelu(x, layer.weight, layer.bias, approximate)
    return gelu_(layer(x), approximate)


def linear_relu(x: Tensor, layer: nn.Linear) -> Tensor:
    """``relu(layer(x))`` as one operator, if the layer is an ordinary one; it may be a quantiser's."""
    if isinstance(layer, Linear):
        return product.linear_relu(x, layer.weight, layer.bias)
    return layer(x).relu_()


def add_linear(residual: Tensor, x: Tensor, layer: nn.Linear) -> Tensor:
    """``residual + layer(x)`` as one operator, if the layer is an ordinary one; it may be a quantiser's."""
    if isinstance(layer, Linear):
        return product.add_linear(residual, x, layer.weight, layer.bias)
    return layer(x).add_(residual)
