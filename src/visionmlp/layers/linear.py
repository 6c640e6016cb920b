"""The linear layer of all models, alone and with what follows it in deploy forms."""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from visionmlp.ops import product
from visionmlp.ops.eager import is_watched


class Linear(nn.Linear):
    """``nn.Linear`` whose products are computed by the faster library, see `visionmlp.ops.product`."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., C) to (..., O)."""
        return product.linear(input, self.weight, self.bias)


def _is_ordinary(layer: nn.Linear) -> bool:
    """Whether its product may be computed without a call of it; it may be a quantiser's, a subclass's, or hooked."""
    return isinstance(layer, Linear) and type(layer).forward is Linear.forward and not is_watched(layer)


def linear_gelu(x: Tensor, layer: nn.Linear, approximate: Literal["none", "tanh"]) -> Tensor:
    """``gelu(layer(x))``, as one operator if the layer is an ordinary one."""
    if _is_ordinary(layer):
        return product.linear_gelu(x, layer.weight, layer.bias, approximate)
    return F.gelu(layer(x), approximate=approximate)  # a hook may have kept it


def linear_relu(x: Tensor, layer: nn.Linear) -> Tensor:
    """``relu(layer(x))``, as one operator if the layer is an ordinary one."""
    if _is_ordinary(layer):
        return product.linear_relu(x, layer.weight, layer.bias)
    return layer(x).relu()  # a hook may have kept it


def add_linear(residual: Tensor, x: Tensor, layer: nn.Linear) -> Tensor:
    """``residual + layer(x)``, as one operator if the layer is an ordinary one."""
    if _is_ordinary(layer):
        return product.add_linear(residual, x, layer.weight, layer.bias)
    return residual + layer(x)
