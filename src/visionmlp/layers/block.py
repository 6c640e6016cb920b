"""The residual block that all vision MLPs share."""

from abc import ABC, abstractmethod
from collections import OrderedDict

from torch import Tensor, nn

from visionmlp.layers.linear import add_linear
from visionmlp.layers.norms import MapGroupNorm
from visionmlp.ops.eager import in_eager_inference


class Block(nn.Module):
    """``x + drop_path(scale1(spatial(norm1(x))))``, then the same with ``norm2``, ``channel`` and ``scale2``.

    A map in, a map of the same shape and layout out.
    """

    def __init__(
        self,
        *,
        norm1: nn.Module,
        spatial: nn.Module,
        norm2: nn.Module,
        channel: nn.Module,
        scale1: nn.Module,
        scale2: nn.Module,
        drop_path: nn.Module,
    ) -> None:
        super().__init__()
        self.norm1 = norm1
        self.spatial = spatial
        self.scale1 = scale1
        self.norm2 = norm2
        self.channel = channel
        self.scale2 = scale2
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        """Two residual branches: over positions, over channels."""
        x = x + self.drop_path(self.scale1(self.spatial(self.norm1(x))))
        return x + self.drop_path(self.scale2(self.channel(self.norm2(x))))


def deployed_block(spatial: nn.Module, channel: nn.Module) -> nn.Sequential:
    """Deploy form of a block: two parts that add their own residual, under the same names."""
    return nn.Sequential(OrderedDict(spatial=spatial, channel=channel))


class ResidualMixer(nn.Module):
    """A spatial mixer of a deploy form. Layout (B, H, W, C)."""

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """``residual + self(x)``, all (B, H, W, C)."""
        return self(x).add_(residual)


class ProjectedMixer(ResidualMixer, ABC):
    """A spatial mixer that ends with a linear layer: ``proj(mix(x))``. Layout (B, H, W, C)."""

    proj: nn.Linear

    @abstractmethod
    def mix(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        return self.proj(self.mix(x))

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """The sum as part of the product."""
        return add_linear(residual, self.mix(x), self.proj)


class DeployedResidual(nn.Module):
    """Residual part of a deploy form, ``x + mixer(norm(x))``, computed batch-first. Layout (B, H, W, C)."""

    def __init__(self, norm: nn.Module, mixer: ResidualMixer) -> None:
        super().__init__()
        self.norm = norm
        self.mixer = mixer

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        # embeddings give a view of another memory order, which every later sum would keep
        x = x.contiguous()
        if in_eager_inference(x):
            return self.mixer.add_to(x, self.norm(x))
        # as matrices: OpenVINO takes four dimensions for images and puts their channels elsewhere, and computes the
        # LayerNorm of a matrix's rows in one operator, that of a map's positions in six
        rows = x.flatten(0, 2)
        normed = self.norm(x) if isinstance(self.norm, MapGroupNorm) else self.norm(rows).view_as(x)
        return (rows + self.mixer(normed).flatten(0, 2)).view_as(x)
