"""Hire-MLP: vision MLP via hierarchical rearrangement (Guo et al., CVPR 2022, arXiv 2108.13341).

Section 3: inner-region rearrangement is `ops.regions.gather_regions` and `scatter_regions`, cross-region rearrangement
their ``step``; both with their MLP are `RegionMLP`, the three branches of a Hire module `HireMixer`. Follows the
authors' code: the channel branch sees the map unmoved, the branches are reweighted, the embeddings are convolution,
BatchNorm and ReLU, and the step of a block depends on its place in its stage. Beyond their code, a side may be shorter
than a region, and drop-path grows linearly over all blocks.

Layout (B, H, W, C).
"""

import dataclasses
import math
import re

from torch import Tensor, nn

from visionmlp.layers.affine import split_affine
from visionmlp.layers.block import Block, DeployedResidual, ProjectedMixer, deployed_block
from visionmlp.layers.channel_mlp import ChannelMLP, DeployedMapMLP
from visionmlp.layers.drop_path import DropPath
from visionmlp.layers.fusible import Fusible, linear, parameter
from visionmlp.layers.linear import Linear, linear_relu
from visionmlp.layers.norms import MapBatchNorm
from visionmlp.layers.patch_embed import ConvEmbed
from visionmlp.layers.reweight import PlainSum, Reweight
from visionmlp.models.backbone import FusibleBackbone
from visionmlp.models.config import BackboneConfig
from visionmlp.models.official_layout import CONV1X1, SAME, OfficialEntry, View
from visionmlp.models.registry import IMAGENET, Published, Variant, register_family
from visionmlp.models.stage import MapStage, drop_path_rates
from visionmlp.ops.fold import affine_of_linear, linear_of_affine
from visionmlp.ops.layout import Layout
from visionmlp.ops.regions import COLUMNS, ROWS, Regions, gather_regions, scatter_regions

STEP_PADDINGS = ("circular", "zero")
REGION_PADDINGS = ("circular", "zero", "replicate")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HireMLPConfig(BackboneConfig):
    """Widths and regions of each stage."""

    blocks: tuple[int, ...] = (2, 2, 4, 2)
    """Blocks of each stage."""
    dims: tuple[int, ...] = (64, 128, 320, 512)
    """Channels of each stage."""
    region_sizes: tuple[int, ...] = (4, 3, 3, 2)
    """Rows, or columns, of a region in each stage."""
    step_strides: tuple[int, ...] = (2, 2, 3, 2)
    """Blocks after which the steps of a stage repeat: block j moves the map by ``j % stride * dilation``. With 1 none
    does, so that regions never communicate."""
    step_dilations: tuple[int, ...] = (2, 2, 1, 1)
    """Positions between successive steps of each stage."""
    step_padding: str = "circular"
    """What a moved map is filled up with: "circular" or "zero", where it is not moved back either."""
    region_padding: str = "circular"
    """What fills up the last region: "circular", "zero" or "replicate"."""
    reweight: bool = True
    """Whether the three branches are weighted by their pooled sum, or added."""
    mlp_ratio: float = 4.0
    """Hidden width of the channel MLP over its width."""
    proj_drop_rate: float = 0.0
    """Dropout after each linear layer of the channel MLP."""
    feature_norms: bool = False
    """A norm on each feature level, as in the authors' dense-prediction code."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("dims", "region_sizes", "step_strides", "step_dilations"):
            values = getattr(self, name)
            self.require(
                len(values) == len(self.blocks) >= 1,
                f"{name} and blocks need one entry for each stage, got {values} and {self.blocks}",
            )
        self.require(min(self.dims) >= 4, f"dims must be at least 4, a quarter is a hidden width, got {self.dims}")
        for name, known in (("step_padding", STEP_PADDINGS), ("region_padding", REGION_PADDINGS)):
            value = getattr(self, name)
            self.require(value in known, f"{name} must be one of {', '.join(known)}, got {value!r}")
        self.require(0.0 <= self.proj_drop_rate < 1.0, f"proj_drop_rate must be in [0, 1), got {self.proj_drop_rate}")

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels between neighbouring positions, for each stage."""
        return tuple(4 << i for i in range(len(self.blocks)))

    def regions(self, axis: int, stage: int, block: int) -> Regions:
        """The rearrangement along an axis that a block works on."""
        return Regions(
            axis=axis,
            size=self.region_sizes[stage],
            step=block % self.step_strides[stage] * self.step_dilations[stage],
            step_padding=self.step_padding,
            region_padding=self.region_padding,
        )


class RegionMLP(nn.Module):
    """Mixes the positions and channels of each region: linear, BatchNorm, ReLU, linear."""

    def __init__(self, dim: int, regions: Regions) -> None:
        super().__init__()
        self.regions = regions
        joined, hidden = regions.size * dim, dim // 2
        self.fc1 = Linear(joined, hidden, bias=False)
        self.norm = MapBatchNorm(hidden)
        self.act = nn.ReLU()
        self.fc2 = Linear(hidden, joined)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        hidden = self.act(self.norm(self.fc1(gather_regions(x, *self.regions))))
        axis, size, step, step_padding, _ = self.regions
        return scatter_regions(self.fc2(hidden), x.shape[axis], axis, size, step, step_padding)


class DeployedRegionMLP(nn.Module):
    """Deploy form of `RegionMLP` behind a norm: linear, ReLU, linear.

    The norm's shift does not reach the zeros of a padding, so there it stands beside ``fc1``: ``shift`` (size, hidden)
    has its share of each place in a region.
    """

    def __init__(self, regions: Regions, fc1: nn.Linear, fc2: nn.Linear, shift: nn.Parameter | None) -> None:
        super().__init__()
        self.regions = regions
        self.fc1 = fc1
        self.shift = shift
        self.act = nn.ReLU(inplace=True)
        self.fc2 = fc2

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        gathered = gather_regions(x, *self.regions)
        if self.shift is None:
            hidden = linear_relu(gathered, self.fc1)
        else:
            occupied = gather_regions(x.new_ones(1, x.shape[1], x.shape[2], 1), *self.regions)
            hidden = self.act(self.fc1(gathered) + occupied @ self.shift)
        axis, size, step, step_padding, _ = self.regions
        return scatter_regions(self.fc2(hidden), x.shape[axis], axis, size, step, step_padding)

    @staticmethod
    def fold(mlp: RegionMLP, scale: Tensor, shift: Tensor) -> "DeployedRegionMLP":
        """Fold ``mlp(x * scale + shift)``; the vectors are (C,)."""
        size, like = mlp.regions.size, mlp.fc1.weight
        _, post_scale, post_shift = split_affine(mlp.norm)
        weight, bias = affine_of_linear(mlp.fc1.weight, None, post_scale, post_shift)
        shares = (weight.unflatten(1, (size, -1)) @ shift.double()).t()
        if not mlp.regions.pads_zeros:
            bias = bias + shares.sum(0)
        return DeployedRegionMLP(
            mlp.regions,
            linear(linear_of_affine(weight, None, scale.repeat(size))[0], bias, like),
            mlp.fc2,
            parameter(shares, like) if mlp.regions.pads_zeros else None,
        )


class HireMixer(ProjectedMixer):
    """Hire module: the regions of rows, those of columns and the channels, summed and projected."""

    def __init__(
        self, *, mix_h: nn.Module, mix_w: nn.Module, mix_c: nn.Linear, reweight: nn.Module, proj: nn.Linear
    ) -> None:
        super().__init__()
        self.mix_h = mix_h
        self.mix_w = mix_w
        self.mix_c = mix_c
        self.reweight = reweight
        self.proj = proj

    def mix(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        return self.reweight(self.mix_h(x), self.mix_w(x), self.mix_c(x))

    def folded(self, scale: Tensor, shift: Tensor) -> "HireMixer":
        """``self(x * scale + shift)`` without a norm; the vectors are (C,)."""
        assert isinstance(self.mix_h, RegionMLP)
        assert isinstance(self.mix_w, RegionMLP)
        channel = linear_of_affine(self.mix_c.weight, self.mix_c.bias, scale, shift)
        return HireMixer(
            mix_h=DeployedRegionMLP.fold(self.mix_h, scale, shift),
            mix_w=DeployedRegionMLP.fold(self.mix_w, scale, shift),
            mix_c=linear(*channel, self.mix_c.weight),
            reweight=self.reweight,
            proj=self.proj,
        )


class HireMLPBlock(Block, Fusible):
    """Hire module and channel MLP, each behind a BatchNorm and with a residual."""

    def __init__(self, config: HireMLPConfig, stage: int, block: int, drop_path_rate: float) -> None:
        dim = config.dims[stage]
        super().__init__(
            norm1=MapBatchNorm(dim),
            spatial=HireMixer(
                mix_h=RegionMLP(dim, config.regions(ROWS, stage, block)),
                mix_w=RegionMLP(dim, config.regions(COLUMNS, stage, block)),
                mix_c=Linear(dim, dim),
                reweight=Reweight(dim) if config.reweight else PlainSum(),
                proj=Linear(dim, dim),
            ),
            scale1=nn.Identity(),
            norm2=MapBatchNorm(dim),
            channel=ChannelMLP(dim, int(dim * config.mlp_ratio), act=nn.GELU(), drop_rate=config.proj_drop_rate),
            scale2=nn.Identity(),
            drop_path=DropPath(drop_path_rate),
        )

    def fused(self) -> nn.Module:
        """No norm remains."""
        assert isinstance(self.spatial, HireMixer)
        assert isinstance(self.channel, ChannelMLP)
        norm, scale, shift = split_affine(self.norm1)
        spatial = DeployedResidual(norm, self.spatial.folded(scale, shift))
        norm, scale, shift = split_affine(self.norm2)
        return deployed_block(spatial, DeployedMapMLP.fold(self.channel, norm=norm, scale=scale, shift=shift))


class HireMLP(FusibleBackbone):
    """Embedding and stages of `HireMLPBlock`s, BatchNorm, average, classifier; takes images of any size."""

    config: HireMLPConfig

    def __init__(self, name: str, config: HireMLPConfig) -> None:
        dims = config.dims
        stages = []
        for i, rates in enumerate(drop_path_rates(config.drop_path_rate, config.blocks)):
            downsample = _embed(dims[i - 1], dims[i], 3, stride=2, padding=1, input_layout="BHWC") if i else None
            blocks = [HireMLPBlock(config, i, j, rate) for j, rate in enumerate(rates)]
            stages.append(MapStage(blocks, downsample=downsample))
        super().__init__(
            name=name,
            config=config,
            layout="BHWC",
            stem=_embed(config.in_chans, dims[0], 7, stride=4, padding=2, input_layout="BCHW"),
            stages=stages,
            dims=dims,
            norm=MapBatchNorm(dims[-1]),
            input_sizes="any",
            least_side=3,
            feature_norms=[MapBatchNorm(dim) for dim in dims] if config.feature_norms else [],
        )
        self.apply(self._initialise)

    @property
    def size_step(self) -> int:
        """Multiples of it also fill every region."""
        return math.lcm(*(stride * size for stride, size in zip(self.strides, self.config.region_sizes, strict=True)))

    def init_classifier(self, layer: nn.Linear) -> None:
        """Truncated normal of deviation 0.02, zero bias, like every other layer."""
        self._initialise(layer)

    @staticmethod
    def _initialise(module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def official_entry(self, name: str) -> OfficialEntry:
        """As in the authors' ``hire_mlp.py``; ``feature_norms`` as in their dense-prediction ``hire_mlp.py``."""
        theirs = name
        for pattern, replacement in _OFFICIAL_NAMES:
            theirs = re.sub(pattern, replacement, theirs)
        # stages and the embeddings between them, and the norms of the stages' outputs, count as one list
        theirs = re.sub(r"^stages\.(\d+)\.blocks", lambda m: f"network.{2 * int(m[1])}", theirs)
        theirs = re.sub(r"^stages\.(\d+)\.downsample", lambda m: f"network.{2 * int(m[1]) - 1}", theirs)
        theirs = re.sub(r"^feature_norms\.(\d+)", lambda m: f"norm{2 * int(m[1])}", theirs)
        return OfficialEntry(theirs, self._official_view(name))

    def _official_view(self, name: str) -> View:
        """Theirs are 1x1 convolutions, but for the classifier."""
        if name.startswith(("stem.", "head.")) or ".downsample." in name or not name.endswith((".weight", ".bias")):
            return SAME
        layer = CONV1X1 if name.endswith(".weight") and "norm" not in name else SAME
        if found := re.search(r"^stages\.(\d+)\..*\.mix_[hw]\.fc([12])\.", name):
            return _by_place(dim=int(found[2] == "1"), size=self.config.region_sizes[int(found[1])], layer=layer)
        return layer


def _embed(in_dim: int, dim: int, kernel: int, *, stride: int, padding: int, input_layout: Layout) -> ConvEmbed:
    return ConvEmbed(
        in_dim,
        dim,
        kernel,
        stride=stride,
        padding=padding,
        layout="BHWC",
        input_layout=input_layout,
        batch_norm=True,
        relu=True,
        bias=True,
    )


_OFFICIAL_NAMES = (
    (r"\.bn\.", "."),
    (r"^stem\.", "patch_embed."),
    (r"^head\.fc\.", "head."),
    (r"\.channel\.", ".mlp."),
    (r"\.spatial\.mix_([hw])\.fc([12])\.", r".attn.mlp_\1\2."),
    (r"\.spatial\.mix_([hw])\.norm\.", r".attn.mlp_\g<1>1_norm."),
    (r"\.spatial\.mix_c\.", ".attn.mlp_c."),
    (r"\.spatial\.", ".attn."),
)


def _by_place(dim: int, size: int, layer: View) -> View:
    """Joined channels along ``dim``: theirs run over (channel, place in region), ours over (place, channel)."""

    def swap(x: Tensor, outer: int, inner: int) -> Tensor:
        return x.unflatten(dim, (outer, inner)).transpose(dim, dim + 1).flatten(dim, dim + 1)

    return View(lambda theirs: swap(layer.read(theirs), -1, size), lambda ours: layer.write(swap(ours, size, -1)))


def _published(params: float, macs: float, top1: float) -> Published:
    return Published(params=params, macs=macs, top1=top1, source="Hire-MLP, quoted in DynaMixer, Table 2")


_T = HireMLPConfig()
_S = HireMLPConfig(blocks=(3, 4, 10, 3))
_B = HireMLPConfig(blocks=(4, 6, 24, 3))
_L = HireMLPConfig(blocks=(4, 6, 24, 3), dims=(96, 192, 384, 768))
_TEST = HireMLPConfig(
    num_classes=10,
    img_size=(32, 32),
    blocks=(3, 2),
    dims=(16, 24),
    region_sizes=(3, 2),
    step_strides=(2, 2),
    step_dilations=(2, 1),
)

# name, widths, parameters, multiply-accumulates (both of the training form), what the paper states
VARIANTS = (
    Variant("hiremlp_t", _T, 18_041_672, 2_144_002_048, _published(18e6, 2.1e9, 79.7)),
    Variant("hiremlp_s", _S, 33_113_848, 4_231_090_176, _published(33e6, 4.2e9, 82.1)),
    Variant("hiremlp_b", _B, 58_226_856, 8_110_620_672, _published(58e6, 8.1e9, 83.2)),
    Variant("hiremlp_l", _L, 95_723_944, 13_421_604_864, _published(96e6, 13.4e9, 83.8)),
    Variant("hiremlp_test", _TEST, 38_602, 1_031_280, Published()),
)

register_family(
    __name__,
    "Hire-MLP",
    HireMLP,
    VARIANTS,
    {**IMAGENET, "crop_pct": 0.875},
    fixed_input_size=False,
)
