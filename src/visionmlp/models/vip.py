"""Vision Permutator: a permutable MLP-like architecture for visual recognition (Hou et al., arXiv 2106.12368).

Permute-MLP: `PermuteMLP`; its mixing along one axis: `SegmentLinear`. The channels of a token are cut into n segments
of S. The H * S values that one segment has in a column are mixed by one matrix for all columns and segments, and those
in a row likewise. In the authors' code matrices are C x C, so a map must have as many rows and columns as tokens have
segments, H = W = n. Here n stands by itself and matrices are H * S x H * S: the same at the native size; other sizes,
and interpolating trained matrices to them, are beyond the paper. Otherwise follows the code, which has the weighted
Permute-MLP only; the plain sum of its branches is in the paper.

Layout (B, H, W, C).
"""

import dataclasses
import re
from typing import ClassVar

from torch import Tensor, nn

from visionmlp.layers.affine import split_affine
from visionmlp.layers.block import Block, DeployedResidual, ProjectedMixer, deployed_block
from visionmlp.layers.channel_mlp import ChannelMLP, DeployedMapMLP
from visionmlp.layers.drop_path import DropPath
from visionmlp.layers.fusible import Fusible
from visionmlp.layers.grid_mixer import GridMixer
from visionmlp.layers.linear import Linear
from visionmlp.layers.reweight import PlainSum, Reweight
from visionmlp.models.axial import AxialBackbone, AxialConfig
from visionmlp.models.official_layout import OfficialEntry
from visionmlp.models.registry import IMAGENET, Published, Variant, register_family
from visionmlp.ops.lines import LineAxis, from_lines, to_lines
from visionmlp.ops.resize import Grid, resize_axis


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViPConfig(AxialConfig):
    """Widths of Small/7; ``segments`` is n, and ``reweight=False`` is the plain Permute-MLP."""


class SegmentLinear(GridMixer):
    """One linear layer without bias over what a segment has in a column (axis 1) or a row (axis 2).

    Input ``i * S + t`` is channel t of the segment in token i.
    """

    grid_entries: ClassVar = ("fc.weight",)

    def __init__(self, dim: int, grid: Grid, axis: LineAxis, *, segments: int) -> None:
        super().__init__()
        self.grid = grid
        self.axis: LineAxis = axis
        self.segments = segments
        self.segment_dim = dim // segments
        width = grid[axis - 1] * self.segment_dim
        self.fc = Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        # one product for all lines; products on strided views, which need no gathering, are far slower
        mixed = self.fc(to_lines(x, self.axis, self.segments).flatten(3))
        return from_lines(mixed.unflatten(3, (-1, self.segment_dim)), self.axis)

    def resized(self, entry: str, value: Tensor, old: Grid | None) -> Tensor:
        """Bicubic over the tokens of both sides; sums over input tokens keep their size."""
        assert entry == "fc.weight"
        length = value.shape[0] // self.segment_dim if old is None else old[self.axis - 1]
        if value.shape != (length * self.segment_dim, length * self.segment_dim):
            return value
        new = self.grid[self.axis - 1]
        tokens = value.view(length, self.segment_dim, length, self.segment_dim)
        return resize_axis(resize_axis(tokens, 2, new, summed=True), 0, new).flatten(2).flatten(0, 1)


class PermuteMLP(ProjectedMixer):
    """Mixing along height, width and channels, summed; then a linear layer."""

    def __init__(self, dim: int, grid: Grid, *, segments: int, reweight: bool) -> None:
        super().__init__()
        self.height = SegmentLinear(dim, grid, 1, segments=segments)
        self.width = SegmentLinear(dim, grid, 2, segments=segments)
        self.channel = Linear(dim, dim, bias=False)
        self.reweight = Reweight(dim) if reweight else PlainSum()
        self.proj = Linear(dim, dim)

    def mix(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        return self.reweight(self.height(x), self.width(x), self.channel(x))


class PermutatorBlock(Block, Fusible):
    """Permute-MLP and channel MLP, each behind a LayerNorm and with a residual."""

    def __init__(self, config: ViPConfig, stage: int, drop_path_rate: float) -> None:
        dim = config.dims[stage]
        super().__init__(
            norm1=nn.LayerNorm(dim),
            spatial=PermuteMLP(dim, config.grid(stage), segments=config.segments[stage], reweight=config.reweight),
            scale1=nn.Identity(),
            norm2=nn.LayerNorm(dim),
            channel=ChannelMLP(dim, int(dim * config.mlp_ratio), act=nn.GELU()),
            scale2=nn.Identity(),
            drop_path=DropPath(drop_path_rate),
        )

    def fused(self) -> nn.Module:
        """Two residual parts. The first norm stays whole: all segments share a matrix, but each has its own scales."""
        assert isinstance(self.spatial, PermuteMLP)
        assert isinstance(self.channel, ChannelMLP)
        norm, scale, shift = split_affine(self.norm2)
        return deployed_block(
            DeployedResidual(self.norm1, self.spatial),
            DeployedMapMLP.fold(self.channel, norm=norm, scale=scale, shift=shift),
        )


class VisionPermutator(AxialBackbone):
    """Patch embedding, stages of `PermutatorBlock`s, LayerNorm, average, classifier."""

    def __init__(self, name: str, config: ViPConfig) -> None:
        super().__init__(name, config, lambda stage, rate: PermutatorBlock(config, stage, rate))

    def official_entry(self, name: str) -> OfficialEntry:
        """As in the authors' ``vip.py``."""
        theirs = self.official_name(name)
        theirs = re.sub(r"\.spatial\.(height|width)\.fc\.", lambda m: f".attn.mlp_{m[1][0]}.", theirs)
        theirs = theirs.replace(".spatial.channel.", ".attn.mlp_c.").replace(".spatial.", ".attn.")
        return OfficialEntry(theirs.replace(".channel.", ".mlp."))


def _published(params: float, macs: float, top1: float) -> Published:
    return Published(params=params, macs=macs, top1=top1, source="quoted in DynaMixer, Table 2")


# name, widths, parameters, multiply-accumulates (both of the training form), what the paper states
VARIANTS = (
    Variant(
        "vip_s14",
        ViPConfig(patch_size=14, dims=(384,) * 4, segments=(16,) * 4, downsample_before=()),
        29_892_904,
        6_855_613_440,
        _published(30e6, 6.9e9, 80.7),
    ),
    Variant("vip_s7", ViPConfig(), 25_114_984, 6_901_767_168, _published(25e6, 6.9e9, 81.5)),
    Variant(
        "vip_m7",
        ViPConfig(dims=(256, 256, 512, 512), blocks=(4, 3, 14, 3), segments=(32, 32, 16, 16), downsample_before=(2,)),
        55_272_488,
        16_284_307_456,
        _published(55e6, 16.3e9, 82.7),
    ),
    Variant(
        "vip_l7",
        ViPConfig(dims=(256, 512, 512, 512), blocks=(8, 8, 16, 4)),
        87_784_936,
        24_340_320_256,
        _published(88e6, 24.4e9, 83.2),
    ),
    Variant(
        "vip_test",
        ViPConfig(
            num_classes=10,
            img_size=(32, 32),
            patch_size=4,
            dims=(16, 24, 24),
            blocks=(1, 2, 1),
            segments=(8, 4, 4),
        ),
        25_544,
        516_272,
        Published(),
    ),
)

register_family(
    __name__,
    "Vision Permutator",
    VisionPermutator,
    VARIANTS,
    {**IMAGENET, "crop_pct": 0.9},
    preprocessing_of={"vip_l7": {"crop_pct": 0.875}},
)
