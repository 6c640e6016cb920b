"""Classification heads: pool a feature map, then one linear layer."""

from torch import Tensor, nn

from visionmlp.errors import InvalidConfig
from visionmlp.layers.fusible import linear
from visionmlp.layers.linear import Linear
from visionmlp.ops.fold import linear_of_affine
from visionmlp.ops.layout import Layout


class AveragePool(nn.Module):
    """Mean over all positions of a map in ``layout``: (B, C)."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.dims = (1, 2) if layout == "BHWC" else (2, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) or (B, C, H, W) to (B, C)."""
        return x.mean(self.dims)


class Unpooled(nn.Identity):
    """No pooling: the map as it is. The classifier must be absent."""


class ClassifierHead(nn.Module):
    """Pool, dropout, linear. ``num_classes = 0`` leaves the linear layer out."""

    def __init__(self, dim: int, num_classes: int, *, pool: nn.Module, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.dim = dim
        self.pool = pool
        self.drop = nn.Dropout(drop_rate)
        self.fc: nn.Module = Linear(dim, num_classes) if num_classes > 0 else nn.Identity()

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """A feature map to logits (B, num_classes), or to pooled features (B, C) if ``pre_logits``."""
        x = self.drop(self.pool(x))
        return x if pre_logits else self.fc(x)

    def reset(self, num_classes: int, like: Tensor) -> None:
        """Replace the linear layer by a fresh one on the device and dtype of ``like``.

        Raises:
            InvalidConfig: for classes on an unpooled map.
        """
        if num_classes > 0 and isinstance(self.pool, Unpooled):
            raise InvalidConfig("a classifier needs pooled features; give global_pool='avg' or num_classes=0")
        self.fc = Linear(self.dim, num_classes) if num_classes > 0 else nn.Identity()
        self.fc.to(like.device, like.dtype).train(self.training)

    def with_input_affine(self, scale: Tensor, shift: Tensor) -> "ClassifierHead":
        """This head with ``x * scale + shift``, both (C,), folded into its linear layer, for a head that averages.

        An average commutes with an affine map; without a linear layer one is added that holds the map alone.
        """
        folded = ClassifierHead(self.dim, 0, pool=self.pool, drop_rate=self.drop.p)
        if isinstance(self.fc, nn.Linear):
            folded.fc = linear(*linear_of_affine(self.fc.weight, self.fc.bias, scale, shift), self.fc.weight)
        return folded
