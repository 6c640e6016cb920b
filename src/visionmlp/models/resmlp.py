"""ResMLP: feedforward networks for image classification with data-efficient training (Touvron et al., 2105.03404).

Eq. 1: `layers.affine.Affine`. Eq. 2, cross-patch layer: `layers.token_mixing.TokenLinear`. Eq. 3: `layers.channel_mlp`.
Where the authors' code and the paper differ, this follows the code: the affine after each sub-layer has a scale only
(LayerScale), the cross-patch layer has a bias, and one more Affine stands before the pooling. Drop-path is constant
over depth, as in the author's recipe. Class-MLP, LayerNorm and the cross-patch choices are in the paper only (Table 3).

Layout (B, H, W, C).
"""

import copy
import dataclasses

from torch import Tensor, nn

from visionmlp.heads.class_mlp import ClassMLPPool
from visionmlp.layers.affine import Affine, LayerScale, split_affine
from visionmlp.layers.block import Block, deployed_block
from visionmlp.layers.channel_mlp import ChannelMLP, DeployedChannelMLP
from visionmlp.layers.drop_path import DropPath
from visionmlp.layers.fusible import Fusible, parameter
from visionmlp.layers.locality import check_kernel_sizes
from visionmlp.layers.patch_embed import PatchEmbed
from visionmlp.layers.token_mixing import DeployedTokenLinear, DeployedTokenMLP, TokenLinear, TokenMLP
from visionmlp.models.backbone import FusibleBackbone
from visionmlp.models.config import BackboneConfig
from visionmlp.models.official_layout import SAME, OfficialEntry, View
from visionmlp.models.registry import IMAGENET, Published, Variant, register_family
from visionmlp.models.stage import Stage, init_linear

CROSS_PATCH = ("linear", "none", "mlp", "conv3x3", "depthwise", "separable")
NORMS = ("affine", "layernorm")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResMLPConfig(BackboneConfig):
    """Widths and the choices of Table 3."""

    patch_size: int = 16
    """Side of a patch in pixels."""
    dim: int = 384
    """Channels."""
    depth: int = 12
    """Blocks."""
    mlp_ratio: float = 4.0
    """Hidden width of the channel MLP over its width; also of the cross-patch MLP."""
    layer_scale: float = 0.1
    """Initial value of the scale after each sub-layer."""
    norm: str = "affine"
    """Before each sub-layer and before pooling: "affine" or "layernorm"."""
    cross_patch: str = "linear"
    """Communication between patches: "linear", "none", "mlp", "conv3x3", "depthwise" or "separable"."""
    kernel_sizes: tuple[int, ...] = ()
    """Convolution branches that train beside the cross-patch layer; needs "linear" or "mlp"."""
    proj_drop_rate: float = 0.0
    """Dropout after each linear layer of the channel MLP."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.norm in NORMS, f"norm must be one of {', '.join(NORMS)}, got {self.norm!r}")
        self.require(
            self.cross_patch in CROSS_PATCH,
            f"cross_patch must be one of {', '.join(CROSS_PATCH)}, got {self.cross_patch!r}",
        )
        check_kernel_sizes(self.kernel_sizes)
        self.require(
            not self.kernel_sizes or self.cross_patch in ("linear", "mlp"),
            f"kernel_sizes need a token-mixing matrix to merge into; cross_patch={self.cross_patch!r} has none",
        )
        self.require(0.0 <= self.proj_drop_rate < 1.0, f"proj_drop_rate must be in [0, 1), got {self.proj_drop_rate}")
        self.require_multiple(self.patch_size)

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels between neighbouring positions."""
        return (self.patch_size,)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches (rows, columns)."""
        return self.img_size[0] // self.patch_size, self.img_size[1] // self.patch_size


class MapConvolution(nn.Module):
    """3x3 convolution over the patch grid, stride 1, zero padding 1: "linear -> conv 3x3 ..." of Table 3.

    "conv3x3" is dense, "depthwise" one kernel per channel, "separable" depth-wise then 1x1.
    """

    def __init__(self, dim: int, kind: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=1 if kind == "conv3x3" else dim)
        self.pointwise = nn.Conv2d(dim, dim, 1) if kind == "separable" else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        x = self.conv(x.permute(0, 3, 1, 2))
        if self.pointwise is not None:
            x = self.pointwise(x)
        return x.permute(0, 2, 3, 1)

    def scaled(self, scale: Tensor, post_scale: Tensor) -> nn.Sequential:
        """``post_scale * self(x * scale)`` without its constant part; the vectors are (C,)."""
        inputs = (-1, 1, 1, 1) if self.conv.groups > 1 else (1, -1, 1, 1)
        weights = [self.conv.weight.double() * scale.double().view(inputs)]
        if self.pointwise is not None:
            weights.append(self.pointwise.weight.double())
        weights[-1] = weights[-1] * post_scale.double().view(-1, 1, 1, 1)
        layers = nn.Sequential()
        for weight in weights:
            dim, _, k, _ = weight.shape
            groups = self.conv.groups if k > 1 else 1
            layer = nn.Conv2d(dim, dim, k, padding=k // 2, groups=groups, bias=False, device="meta")
            layer.weight = parameter(weight, self.conv.weight)
            layers.append(layer)
        return layers


class DeployedMapConvolution(nn.Module):
    """Residual ``x + convolve(norm(x)) + bias``: affines folded into the kernels, all shifts into one map (H, W, C)."""

    def __init__(self, norm: nn.Module, convolve: nn.Sequential, bias: nn.Parameter) -> None:
        super().__init__()
        self.norm, self.convolve, self.bias = norm, convolve, bias

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        return self.convolve(self.norm(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1) + x + self.bias


class ResMLPBlock(Block, Fusible):
    """Cross-patch and cross-channel residual branches (Eqs. 2-3)."""

    def __init__(self, config: ResMLPConfig) -> None:
        spatial: nn.Module
        if config.cross_patch == "linear":
            spatial = TokenLinear(config.grid, kernel_sizes=config.kernel_sizes)
        elif config.cross_patch == "mlp":
            hidden = int(config.grid[0] * config.grid[1] * config.mlp_ratio)
            spatial = TokenMLP(config.grid, hidden, act=nn.GELU(), kernel_sizes=config.kernel_sizes)
        else:
            spatial = MapConvolution(config.dim, config.cross_patch)
        super().__init__(
            norm1=make_norm(config),
            spatial=spatial,
            scale1=LayerScale(config.dim, config.layer_scale),
            norm2=make_norm(config),
            channel=make_channel_mlp(config),
            scale2=LayerScale(config.dim, config.layer_scale),
            drop_path=DropPath(config.drop_path_rate),
        )
        self.grid = config.grid

    def fused(self) -> nn.Module:
        """Two residual parts; Affine and LayerScale are gone, a LayerNorm keeps its statistics only.

        Around a cross-patch MLP they stay: its GELU stands between them and its matrices.
        """
        norm, scale, shift = split_affine(self.norm1)
        assert isinstance(self.scale1, LayerScale)
        post_scale = self.scale1.gamma.detach()
        if isinstance(self.spatial, TokenLinear):
            spatial = DeployedTokenLinear.fold(self.spatial, norm=norm, scale=scale, shift=shift, post_scale=post_scale)
        elif isinstance(self.spatial, TokenMLP):
            spatial = DeployedTokenMLP.fold(self.spatial, norm=self.norm1, scale=self.scale1)
        else:
            assert isinstance(self.spatial, MapConvolution)
            # zero padding makes the shift's share vary at the border, so the constant part is a map
            constant = copy.deepcopy(self.spatial).double()(shift.double().expand(1, *self.grid, -1))
            spatial = DeployedMapConvolution(
                norm,
                self.spatial.scaled(scale, post_scale),
                parameter(constant[0] * post_scale.double(), self.spatial.conv.weight),
            )
        return deployed_block(spatial, deployed_channel_mlp(self.norm2, self.channel, self.scale2))


class BagOfPatchesBlock(Fusible):
    """Cross-channel residual branch only: "linear -> none" of Table 3."""

    def __init__(self, config: ResMLPConfig) -> None:
        super().__init__()
        self.norm2 = make_norm(config)
        self.channel = make_channel_mlp(config)
        self.scale2 = LayerScale(config.dim, config.layer_scale)
        self.drop_path = DropPath(config.drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        return x + self.drop_path(self.scale2(self.channel(self.norm2(x))))

    def fused(self) -> nn.Module:
        """The branch with its affines folded."""
        return deployed_channel_mlp(self.norm2, self.channel, self.scale2)


def make_norm(config: ResMLPConfig) -> nn.Module:
    """The normalisation that the config names."""
    return Affine(config.dim) if config.norm == "affine" else nn.LayerNorm(config.dim, eps=1e-6)


def make_channel_mlp(config: ResMLPConfig) -> ChannelMLP:
    """The cross-channel sub-layer (Eq. 3)."""
    return ChannelMLP(config.dim, int(config.dim * config.mlp_ratio), act=nn.GELU(), drop_rate=config.proj_drop_rate)


def deployed_channel_mlp(norm: nn.Module, channel: nn.Module, layer_scale: nn.Module) -> nn.Module:
    """The residual cross-channel branch with everything affine folded into its two linear layers."""
    assert isinstance(channel, ChannelMLP)
    assert isinstance(layer_scale, LayerScale)
    statistics, scale, shift = split_affine(norm)
    return DeployedChannelMLP.fold(
        channel, norm=statistics, scale=scale, shift=shift, post_scale=layer_scale.gamma, layout="BHWC"
    )


class ResMLP(FusibleBackbone):
    """Patch embedding, one stage of `ResMLPBlock`s, final norm, pooling, classifier."""

    config: ResMLPConfig

    def __init__(self, name: str, config: ResMLPConfig) -> None:
        block = BagOfPatchesBlock if config.cross_patch == "none" else ResMLPBlock
        super().__init__(
            name=name,
            config=config,
            layout="BHWC",
            stem=PatchEmbed(config.in_chans, config.dim, config.patch_size, layout="BHWC"),
            stages=[Stage([block(config) for _ in range(config.depth)])],
            dims=[config.dim],
            norm=make_norm(config),
        )
        # the patch convolution keeps PyTorch's default, as in the authors' code
        self.apply(init_linear)

    def init_classifier(self, layer: nn.Linear) -> None:
        """Truncated normal of deviation 0.02, zero bias, like every other linear layer."""
        init_linear(layer)

    def build_pool(self, global_pool: str) -> nn.Module:
        """Average, none, or Class-MLP."""
        if global_pool == "class_mlp":
            tokens = self.config.grid[0] * self.config.grid[1]
            pool = ClassMLPPool(
                self.config.dim, tokens, mlp_ratio=self.config.mlp_ratio, layer_scale=self.config.layer_scale
            )
            return pool.apply(init_linear)
        return super().build_pool(global_pool)

    def official_entry(self, name: str) -> OfficialEntry:
        """As in the authors' ``resmlp_models.py``."""
        for ours, theirs in _OFFICIAL_NAMES.items():
            name = name.replace(ours, theirs)
        return OfficialEntry(name)

    def timm_entry(self, name: str) -> OfficialEntry:
        """As in timm's ``resmlp_12_224`` and its kin."""
        theirs = name
        for ours, timms in _TIMM_NAMES.items():
            theirs = theirs.replace(ours, timms)
        return OfficialEntry(theirs, _TIMM_VECTOR if name.endswith((".alpha", ".beta")) else SAME)


_OFFICIAL_NAMES = {
    "stem.": "patch_embed.",
    "stages.0.blocks.": "blocks.",
    ".spatial.fc.": ".attn.",
    ".channel.": ".mlp.",
    ".scale1.gamma": ".gamma_1",
    ".scale2.gamma": ".gamma_2",
    "head.fc.": "head.",
}

_TIMM_NAMES = {
    "stages.0.blocks.": "blocks.",
    ".spatial.fc.": ".linear_tokens.",
    ".channel.": ".mlp_channels.",
    ".scale1.gamma": ".ls1",
    ".scale2.gamma": ".ls2",
    "head.fc.": "head.",
}
_TIMM_VECTOR = View(lambda theirs: theirs.reshape(theirs.shape[-1:]), lambda ours: ours[None, None])


def _published(params: float, macs: float, top1: float | None) -> Published:
    return Published(params=params, macs=macs, top1=top1, source="ResMLP, Table 3")


_S12 = ResMLPConfig(dim=384, depth=12, layer_scale=0.1)
_S24 = ResMLPConfig(dim=384, depth=24, layer_scale=1e-5)
_S36 = ResMLPConfig(dim=384, depth=36, layer_scale=1e-6)
_B24 = ResMLPConfig(dim=768, depth=24, layer_scale=1e-6)

# name, widths, parameters, multiply-accumulates (both of the training form), what the paper states
VARIANTS = (
    Variant("resmlp_s12", _S12, 15_350_872, 3_009_739_776, _published(15.4e6, 3.0e9, 76.6)),
    Variant("resmlp_s24", _S24, 30_020_680, 5_961_292_800, _published(30.0e6, 6.0e9, 79.4)),
    Variant("resmlp_s36", _S36, 44_690_488, 8_912_845_824, Published()),
    Variant("resmlp_b24", _B24, 115_736_776, 23_020_713_984, _published(115.7e6, 23.0e9, 81.0)),
    Variant(
        "resmlp_s12_p14",
        dataclasses.replace(_S12, patch_size=14),
        15_607_912,
        3_984_055_296,
        _published(15.6e6, 4.0e9, 76.9),
    ),
    Variant(
        "resmlp_s12_p8",
        dataclasses.replace(_S12, patch_size=8),
        22_051_624,
        13_988_649_984,
        _published(22.1e6, 14.0e9, 79.1),
    ),
    Variant(
        "resmlp_b24_p8",
        dataclasses.replace(_B24, patch_size=8),
        129_138_280,
        100_230_739_968,
        _published(129.1e6, 100.2e9, 81.0),
    ),
    Variant(
        "resmlp_test",
        ResMLPConfig(num_classes=10, img_size=(32, 32), patch_size=8, dim=16, depth=3),
        10_778,
        159_904,
        Published(),
    ),
)

register_family(
    __name__,
    "ResMLP",
    ResMLP,
    VARIANTS,
    {**IMAGENET, "crop_pct": 0.9},
)
