"""AS-MLP: an axial shifted MLP architecture for vision (Lian et al., ICLR 2022, arXiv 2107.08391).

`ASMLPBlock`: axial shift and channel MLP, each behind a norm. `AxialShift`: linear, norm, GELU, a shifted linear layer
along each axis, norm, linear. `PatchMerging` opens the later stages. Follows the authors' code: a GELU after each
shifted layer and none after their sum, GroupNorm of one group throughout, merging without a bias. Their shift is a CUDA
kernel; here it is slices of channel groups. Their classifier takes one image size, their dense-prediction code any,
with zeros at the right and bottom edge; here both take any. Drop-path grows linearly with depth.

Layout (B, H, W, C).
"""

import dataclasses
import re
from collections import OrderedDict
from typing import Any

import torch
from timm.layers import register_notrace_function
from torch import Tensor, nn
from torch.nn import functional as F

from visionmlp.layers.affine import split_affine
from visionmlp.layers.block import Block, deployed_block
from visionmlp.layers.channel_mlp import ChannelMLP, DeployedMapMLP, InplaceGELU
from visionmlp.layers.drop_path import DropPath
from visionmlp.layers.fusible import Fusible, linear
from visionmlp.layers.linear import Linear, add_linear
from visionmlp.layers.norms import MapGroupNorm
from visionmlp.models.backbone import FusibleBackbone
from visionmlp.models.config import BackboneConfig
from visionmlp.models.official_layout import CONV1X1, SAME, OfficialEntry
from visionmlp.models.registry import IMAGENET, Published, Variant, register_family
from visionmlp.models.stage import MapStage, drop_path_rates
from visionmlp.ops.cuda.displaced import Run, displaced_channels
from visionmlp.ops.eager import is_eager, takes_cuda_kernels
from visionmlp.ops.fold import linear_of_affine
from visionmlp.ops.shift import displaced, write_displaced

ROWS, COLUMNS = 1, 2
"""Axes of a map along which it is shifted."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ASMLPConfig(BackboneConfig):
    """Widths, and the receptive field of the axial shift."""

    patch_size: int = 4
    """Side of a patch in pixels."""
    dim: int = 96
    """Channels of the first stage; each next one has twice as many."""
    blocks: tuple[int, ...] = (2, 2, 6, 2)
    """Blocks of each stage."""
    shift_size: int = 5
    """Positions of a line that one axial shift brings together; odd, 1 shifts nothing."""
    dilation: int = 1
    """Distance between these positions."""
    mlp_ratio: float = 4.0
    """Hidden width of the channel MLP over its width."""
    proj_drop_rate: float = 0.0
    """Dropout after each linear layer of the channel MLP."""
    feature_norms: bool = False
    """A norm on each feature level, as in the authors' dense-prediction code."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(len(self.blocks) >= 1, f"blocks need one entry for each stage, got {self.blocks}")
        self.require(
            self.shift_size % 2 == 1, f"shift_size must be odd, got {self.shift_size}; give {self.shift_size + 1}"
        )
        self.require(
            self.dilation == 1 or self.shift_size > 1,
            f"dilation={self.dilation} needs something to spread; give shift_size of 3 or more",
        )
        self.require(
            int(self.dim * self.mlp_ratio) >= 1,
            f"mlp_ratio {self.mlp_ratio} leaves no hidden channel of {self.dim}; give a larger one",
        )
        self.require(0.0 <= self.proj_drop_rate < 1.0, f"proj_drop_rate must be in [0, 1), got {self.proj_drop_rate}")

    @property
    def dims(self) -> tuple[int, ...]:
        """Channels of each stage."""
        return tuple(self.dim << i for i in range(len(self.blocks)))

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels between neighbouring positions, for each stage."""
        return tuple(self.patch_size << i for i in range(len(self.blocks)))


def axial_shift(x: Tensor, axis: int, *, size: int, dilation: int) -> Tensor:
    """Move groups of channels along one axis; zeros come in at the edge.

    The ``size`` groups have equal widths, rounded up: the last may be narrower, and few channels make fewer groups.
    Group g moves by ``(g - size // 2) * dilation`` positions, the first ones towards position 0.

    Args:
        x: (B, H, W, C).
        axis: ``ROWS`` or ``COLUMNS``.
        size: odd.
        dilation: at least 1; the negative one shifts back.

    Returns:
        (B, H, W, C).
    """
    if takes_cuda_kernels(x):
        return displaced_channels(x, _runs(x.shape[-1], axis, size, dilation))
    if not is_eager(x):
        return displaced_groups(x, axis, size, dilation)
    return _AxialShift.apply(x, axis, size, dilation)


class _AxialShift(torch.autograd.Function):
    """`axial_shift` in one pass over the map, whose gradient is the shift back; plain operators take two and four."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: int, size: int, dilation: int) -> Tensor:
        ctx.arguments = axis, size, dilation
        moved = torch.empty_like(x, memory_format=torch.contiguous_format)
        width = -(-x.shape[-1] // size)
        for i, (target, group) in enumerate(zip(moved.split(width, -1), x.split(width, -1), strict=True)):
            write_displaced(target, group, _step(i, axis, size, dilation))
        return moved

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        axis, size, dilation = ctx.arguments
        return axial_shift(gradient, axis, size=size, dilation=-dilation), None, None, None


@register_notrace_function
def displaced_groups(x: Tensor, axis: int, size: int, dilation: int) -> Tensor:
    """`axial_shift` by plain operators; symbolic tracers keep it whole, as the number of groups depends on ``x``."""
    parts = [x][:0]
    for i, group in enumerate(x.split(-(-x.shape[-1] // size), -1)):
        parts.append(displaced(group, _step(i, axis, size, dilation)))
    return torch.cat(parts, -1)


def _runs(channels: int, axis: int, size: int, dilation: int) -> list[Run]:
    width = -(-channels // size)
    return [
        Run(first, 1, min(width, channels - first), *_step(i, axis, size, dilation))
        for i, first in enumerate(range(0, channels, width))
    ]


def _step(group: int, axis: int, size: int, dilation: int) -> tuple[int, int]:
    # what moves towards position 0 is read further on
    way = (size // 2 - group) * dilation
    return (way, 0) if axis == 1 else (0, way)


class ShiftedLinear(Linear):
    """`axial_shift`, then a linear layer: every position sees ``size`` positions of its line."""

    def __init__(self, dim: int, axis: int, *, size: int, dilation: int) -> None:
        super().__init__(dim, dim)
        self.axis = axis
        self.size = size
        self.dilation = dilation

    def forward(self, input: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        return super().forward(axial_shift(input, self.axis, size=self.size, dilation=self.dilation))


class AxialShift(nn.Module):
    """Token mixing along both axes: ``fc2(norm2(act(horizontal(h)) + act(vertical(h))))``, h = act(norm1(fc1(x)))."""

    def __init__(self, dim: int, *, size: int, dilation: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, dim)
        self.norm1 = MapGroupNorm(dim)
        self.act = nn.GELU()
        self.horizontal = ShiftedLinear(dim, COLUMNS, size=size, dilation=dilation)
        self.vertical = ShiftedLinear(dim, ROWS, size=size, dilation=dilation)
        self.norm2 = MapGroupNorm(dim)
        self.fc2 = Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        hidden = self.act(self.norm1(self.fc1(x)))
        return self.fc2(self.norm2(self.act(self.horizontal(hidden)) + self.act(self.vertical(hidden))))


class DeployedAxialShift(nn.Module):
    """Residual `AxialShift` of a deploy form, behind the statistics of its norm.

    ``norm1`` keeps its affine: a GELU, and a shift that brings zeros in, stand before the next linear layer.
    """

    def __init__(self, norm: nn.Module, fc1: nn.Linear, shift: AxialShift, norm2: nn.Module, fc2: nn.Linear) -> None:
        super().__init__()
        self.norm = norm
        self.fc1 = fc1
        self.norm1 = shift.norm1
        self.act = InplaceGELU(shift.act.approximate)
        self.horizontal = shift.horizontal
        self.vertical = shift.vertical
        self.norm2 = norm2
        self.fc2 = fc2

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        hidden = self.act(self.norm1(self.fc1(self.norm(x))))
        mixed = self.act(self.horizontal(hidden)).add_(self.act(self.vertical(hidden)))
        return add_linear(x, self.norm2(mixed), self.fc2)

    @staticmethod
    def fold(mixer: AxialShift, norm: MapGroupNorm) -> "DeployedAxialShift":
        """Fold ``x + mixer(norm(x))``."""
        statistics, fc1 = fold_into(norm, mixer.fc1)
        statistics2, fc2 = fold_into(mixer.norm2, mixer.fc2)
        return DeployedAxialShift(statistics, fc1, mixer, statistics2, fc2)


class ASMLPBlock(Block, Fusible):
    """Residual axial shift and residual channel MLP."""

    norm1: MapGroupNorm
    spatial: AxialShift
    norm2: MapGroupNorm
    channel: ChannelMLP

    def __init__(self, config: ASMLPConfig, dim: int, drop_path_rate: float) -> None:
        super().__init__(
            norm1=MapGroupNorm(dim),
            spatial=AxialShift(dim, size=config.shift_size, dilation=config.dilation),
            norm2=MapGroupNorm(dim),
            channel=ChannelMLP(dim, int(dim * config.mlp_ratio), act=nn.GELU(), drop_rate=config.proj_drop_rate),
            scale1=nn.Identity(),
            scale2=nn.Identity(),
            drop_path=DropPath(drop_path_rate),
        )

    def fused(self) -> nn.Module:
        """Two residual parts; three of the four norms keep their statistics only."""
        statistics, scale, shift = split_affine(self.norm2)
        return deployed_block(
            DeployedAxialShift.fold(self.spatial, self.norm1),
            DeployedMapMLP.fold(self.channel, norm=statistics, scale=scale, shift=shift),
        )


def fold_into(norm: nn.Module, layer: nn.Linear) -> tuple[nn.Module, nn.Linear]:
    """``layer(norm(x))`` in two parts: the statistics of the norm, and the layer with the norm's affine in it."""
    statistics, scale, shift = split_affine(norm)
    return statistics, linear(*linear_of_affine(layer.weight, layer.bias, scale, shift), layer.weight)


class Stem(nn.Module):
    """Patch embedding and norm; the image is filled up to whole patches with zeros at its right and bottom edge."""

    def __init__(self, in_chans: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_chans, dim, patch_size, stride=patch_size)
        self.norm = MapGroupNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) to (B, H/p, W/p, dim), rounded up."""
        height, width = x.shape[2:]
        x = self.proj(F.pad(x, (0, -width % self.patch_size, 0, -height % self.patch_size)))
        # all later maps inherit this order in memory
        return self.norm(x.permute(0, 2, 3, 1).contiguous())


class GatherNeighbours(nn.Module):
    """Joins the channels of 2x2 positions, in the order (column, row, channel); an odd map gets a line of zeros."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H/2, W/2, 4C), rounded up."""
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        return x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).permute(0, 1, 3, 4, 2, 5).flatten(3)


class PatchMerging(Fusible):
    """Down-sampling by 2 between stages: gathered 2x2 positions, norm, linear layer without a bias."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.gather = GatherNeighbours()
        self.norm = MapGroupNorm(4 * in_dim)
        self.reduction = Linear(4 * in_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, in_dim) to (B, H/2, W/2, dim), rounded up."""
        return self.reduction(self.norm(self.gather(x)))

    def fused(self) -> nn.Sequential:
        """The same parts; the norm keeps its statistics only, and its shift becomes a bias."""
        statistics, reduction = fold_into(self.norm, self.reduction)
        return nn.Sequential(OrderedDict(gather=self.gather, norm=statistics, reduction=reduction))


class ASMLP(FusibleBackbone):
    """Stem, stages of `ASMLPBlock`s opened by `PatchMerging`, norm, average, classifier."""

    config: ASMLPConfig

    def __init__(self, name: str, config: ASMLPConfig) -> None:
        dims = config.dims
        stages = []
        for i, rates in enumerate(drop_path_rates(config.drop_path_rate, config.blocks)):
            downsample = PatchMerging(dims[i - 1], dims[i]) if i > 0 else None
            stages.append(MapStage([ASMLPBlock(config, dims[i], rate) for rate in rates], downsample=downsample))
        super().__init__(
            name=name,
            config=config,
            layout="BHWC",
            stem=Stem(config.in_chans, config.dim, config.patch_size),
            stages=stages,
            dims=dims,
            norm=MapGroupNorm(dims[-1]),
            input_sizes="any",
            feature_norms=[MapGroupNorm(dim) for dim in dims] if config.feature_norms else (),
        )
        if isinstance(self.head.fc, nn.Linear):
            self.init_classifier(self.head.fc)

    def init_classifier(self, layer: nn.Linear) -> None:
        """Truncated normal of deviation 0.02, zero bias; all other layers keep PyTorch's default."""
        nn.init.trunc_normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)

    def official_entry(self, name: str) -> OfficialEntry:
        """As in the authors' ``as_mlp.py``; feature norms as in their dense-prediction code."""
        # their merging closes stage i, ours opens stage i + 1
        theirs = re.sub(r"^stages\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", name)
        for pattern, replacement in _OFFICIAL_NAMES:
            theirs = re.sub(pattern, replacement, theirs)
        linear_layer = name.startswith("stages.") and name.endswith(".weight") and "norm" not in name
        return OfficialEntry(theirs, CONV1X1 if linear_layer else SAME)


_OFFICIAL_NAMES = (
    (r"^stem\.", "patch_embed."),
    (r"^head\.fc\.", "head."),
    (r"^feature_norms\.", "norm"),
    (r"^stages\.", "layers."),
    (r"\.spatial\.fc1\.", ".axial_shift.conv1."),
    (r"\.spatial\.horizontal\.", ".axial_shift.conv2_1."),
    (r"\.spatial\.vertical\.", ".axial_shift.conv2_2."),
    (r"\.spatial\.fc2\.", ".axial_shift.conv3."),
    (r"\.spatial\.", ".axial_shift."),
    (r"\.channel\.", ".mlp."),
)


def _published(params: float, macs: float, top1: float) -> Published:
    return Published(params=params, macs=macs, top1=top1, source="quoted in DynaMixer, Table 2")


_T = ASMLPConfig()
_S = ASMLPConfig(blocks=(2, 2, 18, 2))
_B = ASMLPConfig(dim=128, blocks=(2, 2, 18, 2))
_TEST = ASMLPConfig(num_classes=10, img_size=(32, 32), dim=18, blocks=(2, 2))

# name, widths, parameters, multiply-accumulates (both of the training form), what the paper states
VARIANTS = (
    Variant("asmlp_t", _T, 28_282_696, 4_350_425_088, _published(28e6, 4.4e9, 81.3)),
    Variant("asmlp_s", _S, 49_594_696, 8_512_223_232, _published(50e6, 8.5e9, 83.1)),
    Variant("asmlp_b", _B, 87_752_808, 15_126_077_440, _published(88e6, 15.2e9, 83.3)),
    Variant("asmlp_test", _TEST, 44_812, 1_092_456, Published()),
)

register_family(
    __name__,
    "AS-MLP",
    ASMLP,
    VARIANTS,
    {**IMAGENET, "crop_pct": 0.875},
    fixed_input_size=False,
)
