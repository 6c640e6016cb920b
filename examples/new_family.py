"""A new family, outside of the package: gMLP (Liu et al., arXiv 2105.08050) in one file.

    python examples/new_family.py

After `register_family` its models are like all others: ``visionmlp.create_model``, ``timm.create_model``, features,
other image sizes with interpolated weights, `add_locality`, `reparameterize`, checkpoints. CONTRIBUTING.md lists what
more a family of the package has.
"""

import dataclasses
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import timm
import torch
from torch import Tensor, nn

import visionmlp
from visionmlp.layers.fusible import linear
from visionmlp.layers.locality import LocalityBranches, LocalMixer, check_kernel_sizes
from visionmlp.layers.patch_embed import PatchEmbed
from visionmlp.models.backbone import FusibleBackbone
from visionmlp.models.config import BackboneConfig
from visionmlp.models.official_layout import OfficialEntry
from visionmlp.models.registry import IMAGENET, Published, Variant, register_family
from visionmlp.models.stage import Stage, init_linear


@dataclasses.dataclass(frozen=True, kw_only=True)
class GMLPConfig(BackboneConfig):
    """Widths of Table 1."""

    patch_size: int = 16
    """Side of a patch in pixels."""
    dim: int = 128
    """Channels."""
    hidden_dim: int = 768
    """Channels inside a block; half of them gate the other half."""
    depth: int = 30
    """Blocks."""
    kernel_sizes: tuple[int, ...] = ()
    """Convolution branches that train beside the gate's matrix (Locality Injection)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_kernel_sizes(self.kernel_sizes)
        self.require(self.hidden_dim % 2 == 0, f"hidden_dim must be even, got {self.hidden_dim}")
        self.require_multiple(self.patch_size)

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels between neighbouring positions."""
        return (self.patch_size,)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches (rows, columns)."""
        return self.img_size[0] // self.patch_size, self.img_size[1] // self.patch_size


class DeployedGate(nn.Module):
    """``u * fc(norm(v))`` of the two halves of the channels; ``fc`` mixes positions. Layout (B, H, W, C)."""

    def __init__(self, norm: nn.Module, fc: nn.Linear) -> None:
        super().__init__()
        self.norm = norm
        self.fc = fc

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, 2 C) to (B, H, W, C)."""
        u, v = x.chunk(2, dim=-1)
        maps = self.norm(v).permute(0, 3, 1, 2)
        return u * self.fc(maps.flatten(2)).view_as(maps).permute(0, 2, 3, 1)


class SpatialGate(LocalMixer, visionmlp.Fusible):
    """The spatial gating unit, Eqs. 3 and 4, with optional branches beside its matrix. Layout (B, H, W, C)."""

    token_sides: ClassVar = {"fc.weight": "matrix", "fc.bias": "vector"}

    def __init__(self, grid: tuple[int, int], dim: int, kernel_sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.grid = grid
        self.norm = nn.LayerNorm(dim)
        self.fc = nn.Linear(grid[0] * grid[1], grid[0] * grid[1])
        self.locality = LocalityBranches(1, kernel_sizes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, 2 C) to (B, H, W, C)."""
        u, v = x.chunk(2, dim=-1)
        maps = self.norm(v).permute(0, 3, 1, 2)
        mixed = self.locality.add_to(self.fc(maps.flatten(2)).view_as(maps), maps)
        return u * mixed.permute(0, 2, 3, 1)

    def fused(self) -> nn.Module:
        """Matrix and branches are one matrix; the norm stays."""
        matrix, bias = self.locality.folded(self.grid, self.fc.weight)
        merged = linear(self.fc.weight.double() + matrix[0], self.fc.bias.double() + bias, self.fc.weight)
        return DeployedGate(self.norm, merged)


class GMLPBlock(nn.Module):
    """``x + fc2(gate(gelu(fc1(norm(x)))))``, Eqs. 1 and 2. Layout (B, H, W, C)."""

    def __init__(self, config: GMLPConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.dim)
        self.fc1 = nn.Linear(config.dim, config.hidden_dim)
        self.act = nn.GELU()
        self.gate = SpatialGate(config.grid, config.hidden_dim // 2, config.kernel_sizes)
        self.fc2 = nn.Linear(config.hidden_dim // 2, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        return x + self.fc2(self.gate(self.act(self.fc1(self.norm(x)))))


class GMLP(FusibleBackbone):
    """Patch embedding, one stage of `GMLPBlock`s, LayerNorm, average, classifier."""

    config: GMLPConfig

    def __init__(self, name: str, config: GMLPConfig) -> None:
        super().__init__(
            name=name,
            config=config,
            layout="BHWC",
            stem=PatchEmbed(config.in_chans, config.dim, config.patch_size, layout="BHWC"),
            stages=[Stage([GMLPBlock(config) for _ in range(config.depth)])],
            dims=[config.dim],
            norm=nn.LayerNorm(config.dim),
        )
        self.apply(init_linear)
        for module in self.modules():
            if isinstance(module, SpatialGate):
                # section 2.1: at first a gate of ones
                nn.init.uniform_(module.fc.weight, -1e-3, 1e-3)
                nn.init.ones_(module.fc.bias)

    def official_entry(self, name: str) -> OfficialEntry:
        """There are no files of the authors: our own names."""
        return OfficialEntry(name)


VARIANTS = (
    Variant(
        name="gmlp_ti",
        config=GMLPConfig(),
        params=5_867_328,
        macs=1_328_989_184,
        published=Published(params=5.9e6, macs=1.4e9, top1=72.3, source="arXiv 2105.08050, Table 2"),
    ),
    Variant(
        name="gmlp_test",
        config=GMLPConfig(num_classes=10, img_size=(32, 32), patch_size=8, dim=16, hidden_dim=48, depth=4),
        params=9_562,
        macs=147_616,
    ),
)

register_family(__name__, "gMLP", GMLP, VARIANTS, {**IMAGENET, "crop_pct": 0.875})


def main(name: str = "gmlp_ti") -> None:
    """What a registered model can do."""
    model = visionmlp.create_model(name, num_classes=5, drop_rate=0.1).eval()
    images = torch.randn(2, 3, *model.config.img_size)
    print(f"{name}: {sum(p.numel() for p in model.parameters()):,} parameters, logits {tuple(model(images).shape)}")

    levels = timm.create_model(name, features_only=True)(images)
    print("features through timm:", ", ".join("x".join(map(str, level.shape[1:])) for level in levels))

    local = visionmlp.add_locality(model, kernel_sizes=(3,))
    deployed = visionmlp.reparameterize(local)
    error = (deployed(images) - local(images)).abs().max() / local(images).abs().max()
    print(f"with a 3x3 branch, merged: relative difference {error:.1e}")

    with TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        visionmlp.save_checkpoint(file, model)
        height, width = (2 * side for side in model.config.img_size)
        larger, _ = visionmlp.load_model(file, img_size=(height, width))
    print(f"its weights, interpolated to {height}x{width}:", tuple(larger(torch.randn(1, 3, height, width)).shape))


if __name__ == "__main__":
    main()
