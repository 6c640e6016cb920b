"""DynaMixer: a vision MLP architecture with dynamic mixing (Wang et al., ICML 2022, arXiv 2201.12083).

Eqs. 2-7: `DynaMixerOp`, whose matrices are `DynamicMatrices`; Eq. 9, Algorithm 1: `DynaMixing`. Where the authors' code
and the paper differ, this follows the code: every linear layer but the channel mixing has a bias, a LayerNorm stands
before the pooling. Matrices are stored as the paper writes them, target before source; the code has them transposed.
The weights of the three branches are those of Vision Permutator, and the plain sum of Eq. 9 is an option.

Tables 5-8: ``segments``, ``reduced_dim``, ``mixing``, ``*_mixing``, ``reweight``. Table 6 does not spell out its
Synthesizers (arXiv 2005.00743). Here "random" has a matrix for each segment; "dense" has that paper's two layers on
each token, D -> D, ReLU, D -> segments * tokens: of the readings tried the nearest to the 32 M of Table 6, with 32.7 M
(Table 1 also has 97 M for 97.8 M). Other image sizes, and interpolating trained models to them, are beyond the paper.

Layout (B, H, W, C).
"""

import copy
import dataclasses
import math
import re
from abc import abstractmethod
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.nn import functional as F

from visionmlp.layers.affine import split_affine
from visionmlp.layers.block import Block, DeployedResidual, ProjectedMixer, deployed_block
from visionmlp.layers.channel_mlp import ChannelMLP, DeployedMapMLP
from visionmlp.layers.drop_path import DropPath
from visionmlp.layers.fusible import Fusible, linear
from visionmlp.layers.grid_mixer import GridMixer
from visionmlp.layers.linear import Linear
from visionmlp.layers.reweight import PlainSum, Reweight
from visionmlp.models.axial import AxialBackbone, AxialConfig
from visionmlp.models.config import size_text
from visionmlp.models.official_layout import SAME, OfficialEntry, View
from visionmlp.models.registry import IMAGENET, Published, Variant, register_family
from visionmlp.ops.cuda.mixed_lines import fits, mixed_lines
from visionmlp.ops.eager import in_cuda_inference, in_graph_of_images, in_inference_graph
from visionmlp.ops.fold import linear_of_affine
from visionmlp.ops.lines import LineAxis, from_lines, to_lines
from visionmlp.ops.resize import Grid, resize_axis


@dataclasses.dataclass(frozen=True, kw_only=True)
class DynaMixerConfig(AxialConfig):
    """Widths of Table 1 and the choices of Tables 5-8."""

    segments: tuple[int, ...] = (8, 16, 16, 16)
    """Segments of each stage; each has mixing matrices of its own (S)."""
    reduced_dim: int = 2
    """Numbers that stand for a token in the making of a segment's "dynamic" matrices (d)."""
    mixing: str = "dynamic"
    """What matrices are made from: "dynamic" all tokens of the line, "dense" one token each, "random" nothing."""
    row_mixing: bool = True
    """Whether the tokens of a row are mixed."""
    column_mixing: bool = True
    """Whether the tokens of a column are mixed."""
    channel_mixing: bool = True
    """Whether channels are mixed beside them."""
    shared_mixing: bool = False
    """Whether rows and columns are mixed with the same parameters; needs square images."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.mixing in MATRICES, f"mixing must be one of {', '.join(MATRICES)}, got {self.mixing!r}")
        branches = self.row_mixing + self.column_mixing + self.channel_mixing
        self.require(branches > 0, "one of row_mixing, column_mixing and channel_mixing must be on")
        self.require(not self.reweight or branches > 1, "reweight needs two branches to weigh; give reweight=False")
        self.require(
            not self.shared_mixing or (self.row_mixing and self.column_mixing),
            "shared_mixing needs both row_mixing and column_mixing",
        )
        self.require(
            not self.shared_mixing or self.img_size[0] == self.img_size[1],
            f"shared_mixing needs square images, got img_size {size_text(self.img_size)}",
        )


class MixingMatrices(GridMixer):
    """Mixing matrices for the lines of a map along an axis and for each segment; each row is a softmax."""

    def __init__(self, config: DynaMixerConfig, stage: int, axis: LineAxis) -> None:
        super().__init__()
        self.grid = config.grid(stage)
        self.axis: LineAxis = axis
        self.segments = config.segments[stage]

    @property
    def length(self) -> int:
        """Tokens of a line."""
        return self.grid[self.axis - 1]

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (..., segments, L, L) with rows for output tokens, for `to_lines` of the map."""
        return self.scores(x).softmax(-1)

    @abstractmethod
    def scores(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to the same before the softmax of each row."""

    @abstractmethod
    def with_input_affine(self, scale: Tensor, shift: Tensor) -> "MixingMatrices":
        """These of ``x * scale + shift``; the vectors are (C,)."""


class DynamicMatrices(MixingMatrices):
    """Every weight from all tokens of the line, each reduced to d numbers (Eqs. 5, 6)."""

    grid_entries: ClassVar = ("generate.weight", "generate.bias")

    def __init__(self, config: DynaMixerConfig, stage: int, axis: LineAxis) -> None:
        super().__init__(config, stage, axis)
        self.compress = Linear(config.dims[stage], self.segments * config.reduced_dim)
        self.generate = Linear(self.length * config.reduced_dim, self.length**2)

    def scores(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, W, segments, H, H) or (B, H, segments, W, W)."""
        return self.generate(self._reduced(x)).unflatten(3, (self.length, self.length))

    def forward(self, x: Tensor) -> Tensor:
        """As of all `MixingMatrices`."""
        layer, sides = self.generate, (self.length, self.length)
        by_source = in_inference_graph() and not in_graph_of_images() and x.device.type == "cpu"
        # a quantiser's weight is another tensor; exporters have fake ones
        if not by_source or type(layer) is not Linear or type(layer.weight) not in (nn.Parameter, FakeTensor):
            return super().forward(x)
        # OpenVINO computes a softmax over rows of 16 numbers three times as fast as within them; ONNX Runtime does not
        weight = layer.weight.unflatten(0, sides).transpose(0, 1).flatten(0, 1)
        scores = F.linear(self._reduced(x), weight, layer.bias.view(sides).t().flatten())
        return scores.unflatten(3, sides).softmax(-2).transpose(-2, -1)

    def _reduced(self, x: Tensor) -> Tensor:
        return to_lines(self.compress(x), self.axis, self.segments).flatten(3)

    def with_input_affine(self, scale: Tensor, shift: Tensor) -> "DynamicMatrices":
        """Folded into the reduction."""
        return _folded(self, "compress", scale, shift)

    def resized(self, entry: str, value: Tensor, old: Grid | None) -> Tensor:
        """Bicubic over output and source tokens, and over the tokens that the matrices are made from."""
        length = math.isqrt(value.shape[0]) if old is None else old[self.axis - 1]
        if value.shape[0] != length**2 or (value.dim() > 1 and value.shape[1] % length):
            return value
        matrices = value.unflatten(0, (length, length))
        matrices = resize_axis(resize_axis(matrices, 0, self.length), 1, self.length)
        if entry == "generate.weight":
            matrices = resize_axis(matrices.unflatten(2, (length, -1)), 2, self.length, summed=True).flatten(2)
        return matrices.flatten(0, 1)


class DenseMatrices(MixingMatrices):
    """The weights of an output token from that token alone: Synthesizer (Dense) of Table 6."""

    grid_entries: ClassVar = ("fc2.weight", "fc2.bias")

    def __init__(self, config: DynaMixerConfig, stage: int, axis: LineAxis) -> None:
        super().__init__(config, stage, axis)
        dim = config.dims[stage]
        self.fc1 = Linear(dim, dim)
        self.fc2 = Linear(dim, self.segments * self.length)

    def scores(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, W, segments, H, H) or (B, H, segments, W, W)."""
        return to_lines(self.fc2(torch.relu(self.fc1(x))), self.axis, self.segments)

    def with_input_affine(self, scale: Tensor, shift: Tensor) -> "DenseMatrices":
        """Folded into the first layer."""
        return _folded(self, "fc1", scale, shift)

    def resized(self, entry: str, value: Tensor, old: Grid | None) -> Tensor:
        """Bicubic over source tokens."""
        assert entry in self.grid_entries
        length = value.shape[0] // self.segments if old is None else old[self.axis - 1]
        if value.shape[0] != self.segments * length:
            return value
        return resize_axis(value.unflatten(0, (self.segments, length)), 1, self.length).flatten(0, 1)


class RandomMatrices(MixingMatrices):
    """Trained matrices, the same for all lines: Synthesizer (Random) of Table 6."""

    grid_entries: ClassVar = ("logits",)

    def __init__(self, config: DynaMixerConfig, stage: int, axis: LineAxis) -> None:
        super().__init__(config, stage, axis)
        self.logits = nn.Parameter(torch.empty(self.segments, self.length, self.length))
        nn.init.trunc_normal_(self.logits, std=0.02)

    def scores(self, x: Tensor) -> Tensor:  # noqa: ARG002
        """Any map; (segments, L, L)."""
        return self.logits

    def with_input_affine(self, scale: Tensor, shift: Tensor) -> "RandomMatrices":  # noqa: ARG002
        """These; they have no input."""
        return self

    def resized(self, entry: str, value: Tensor, old: Grid | None) -> Tensor:  # noqa: ARG002
        """Bicubic over output and source tokens; the tensor itself tells their number."""
        assert entry == "logits"
        return resize_axis(resize_axis(value, 1, self.length), 2, self.length)


MATRICES = {"dynamic": DynamicMatrices, "dense": DenseMatrices, "random": RandomMatrices}


class DynaMixerOp(nn.Module):
    """Mix the lines along an axis, each segment with its own matrix, then its channels with each other (Eq. 7)."""

    def __init__(self, config: DynaMixerConfig, stage: int, axis: LineAxis) -> None:
        super().__init__()
        self.axis: LineAxis = axis
        self.segments = config.segments[stage]
        self.matrices: MixingMatrices = MATRICES[config.mixing](config, stage, axis)
        self.out = Linear(config.dims[stage], config.dims[stage])

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        if in_cuda_inference(x) and fits(x, self.matrices.length, self.segments, self.axis):
            return self.out(mixed_lines(x, self.matrices.scores(x), self.axis))
        mixed = torch.matmul(self.matrices(x), to_lines(x, self.axis, self.segments))
        return self.out(from_lines(mixed, self.axis))

    def with_input_affine(self, scale: Tensor, shift: Tensor) -> "DynaMixerOp":
        """This of ``x * scale + shift``. Rows of matrices add up to one, so both vectors reach ``out`` as they are."""
        folded = _folded(self, "out", scale, shift)
        folded.matrices = self.matrices.with_input_affine(scale, shift)
        return folded


class DynaMixing(ProjectedMixer):
    """Column, row and channel mixing, summed; then a linear layer (Eq. 9, Fig. 2)."""

    def __init__(self, config: DynaMixerConfig, stage: int) -> None:
        super().__init__()
        dim = config.dims[stage]
        self.shared = config.shared_mixing
        self.column = DynaMixerOp(config, stage, 1) if config.column_mixing else None
        self.row = DynaMixerOp(config, stage, 2) if config.row_mixing and not self.shared else None
        self.channel = Linear(dim, dim, bias=False) if config.channel_mixing else None
        branches = config.column_mixing + config.row_mixing + config.channel_mixing
        self.reweight = Reweight(dim, branches) if config.reweight else PlainSum()
        self.proj = Linear(dim, dim)

    def mix(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        branches = [branch(x) for branch in (self.column, self.row, self.channel) if branch is not None]
        if self.shared and self.column is not None:
            branches.insert(1, self.column(x.transpose(1, 2)).transpose(1, 2))
        return self.reweight(*branches)

    def with_input_affine(self, scale: Tensor, shift: Tensor) -> "DynaMixing":
        """This of ``x * scale + shift``; the vectors are (C,)."""
        folded = copy.deepcopy(self)
        if self.column is not None:
            folded.column = self.column.with_input_affine(scale, shift)
        if self.row is not None:
            folded.row = self.row.with_input_affine(scale, shift)
        return folded if self.channel is None else _folded(folded, "channel", scale, shift)


class DynaMixerBlock(Block, Fusible):
    """DynaMixer block and channel MLP, each behind a LayerNorm and with a residual (Fig. 2)."""

    def __init__(self, config: DynaMixerConfig, stage: int, drop_path_rate: float) -> None:
        dim = config.dims[stage]
        super().__init__(
            norm1=nn.LayerNorm(dim),
            spatial=DynaMixing(config, stage),
            scale1=nn.Identity(),
            norm2=nn.LayerNorm(dim),
            channel=ChannelMLP(dim, int(dim * config.mlp_ratio), act=nn.GELU()),
            scale2=nn.Identity(),
            drop_path=DropPath(drop_path_rate),
        )

    def fused(self) -> nn.Module:
        """Two residual parts; the LayerNorms keep their statistics only."""
        assert isinstance(self.spatial, DynaMixing)
        assert isinstance(self.channel, ChannelMLP)
        norm1, scale1, shift1 = split_affine(self.norm1)
        norm2, scale2, shift2 = split_affine(self.norm2)
        return deployed_block(
            DeployedResidual(norm1, self.spatial.with_input_affine(scale1, shift1)),
            DeployedMapMLP.fold(self.channel, norm=norm2, scale=scale2, shift=shift2),
        )


class DynaMixer(AxialBackbone):
    """Patch embedding, stages of `DynaMixerBlock`s, LayerNorm, average, classifier."""

    def __init__(self, name: str, config: DynaMixerConfig) -> None:
        super().__init__(name, config, lambda stage, rate: DynaMixerBlock(config, stage, rate))

    def official_entry(self, name: str) -> OfficialEntry:
        """As in the authors' ``dynamixer.py``; options that they do not have keep our names within the mixer."""
        theirs = self.official_name(name)
        theirs = theirs.replace(".spatial.column.", ".attn.mix_h.").replace(".spatial.row.", ".attn.mix_w.")
        theirs = theirs.replace(".spatial.channel.", ".attn.mlp_c.").replace(".spatial.", ".attn.")
        theirs = re.sub(r"(\.mix_[hw])\.matrices\.", r"\1.", theirs).replace(".channel.", ".mlp.")
        return OfficialEntry(theirs, _TRANSPOSED_MATRICES if ".generate." in name else SAME)


ModuleT = TypeVar("ModuleT", bound=nn.Module)


def _folded(module: ModuleT, layer: str, scale: Tensor, shift: Tensor) -> ModuleT:
    """A copy with ``x * scale + shift`` folded into one of its linear layers."""
    folded = copy.deepcopy(module)
    fc = module.get_submodule(layer)
    assert isinstance(fc, nn.Linear)
    setattr(folded, layer, linear(*linear_of_affine(fc.weight, fc.bias, scale, shift), fc.weight))
    return folded


def _transpose_matrices(rows: Tensor) -> Tensor:
    length = math.isqrt(rows.shape[0])
    return rows.unflatten(0, (length, length)).transpose(0, 1).flatten(0, 1)


# theirs generates a matrix source before target
_TRANSPOSED_MATRICES = View(_transpose_matrices, _transpose_matrices)


def _published(params: float, macs: float, top1: float) -> Published:
    return Published(params=params, macs=macs, top1=top1, source="DynaMixer, Table 2")


# name, widths, parameters, multiply-accumulates (both of the training form), what the paper states
VARIANTS = (
    Variant("dynamixer_s", DynaMixerConfig(), 26_265_960, 7_302_323_200, _published(26e6, 7.3e9, 82.7)),
    Variant(
        "dynamixer_m",
        DynaMixerConfig(
            dims=(256, 256, 512, 512), blocks=(4, 3, 14, 3), segments=(8, 8, 16, 16), downsample_before=(2,)
        ),
        57_128_264,
        16_980_561_920,
        _published(57e6, 17.0e9, 83.7),
    ),
    Variant(
        "dynamixer_l",
        DynaMixerConfig(dims=(256, 512, 512, 512), blocks=(8, 8, 16, 4), reduced_dim=8),
        97_818_088,
        27_343_441_920,
        _published(97e6, 27.4e9, 84.3),
    ),
    Variant(
        "dynamixer_test",
        DynaMixerConfig(
            num_classes=10,
            img_size=(32, 32),
            patch_size=4,
            dims=(16, 24, 24),
            blocks=(1, 2, 1),
            segments=(2, 4, 4),
        ),
        30_096,
        613_552,
        Published(),
    ),
)

register_family(
    __name__,
    "DynaMixer",
    DynaMixer,
    VARIANTS,
    {**IMAGENET, "crop_pct": 0.9},
    preprocessing_of={"dynamixer_l": {"crop_pct": 0.875}},
)
