"""RepMLPNet: hierarchical vision MLP with re-parameterised locality (Ding et al., CVPR 2022, arXiv 2112.11081).

Section 4.1: `RepMLPBlock` (Global, Channel and Local Perceptron of Fig. 1); Eqs. 4-14: its deploy form
`DeployedRepMLPBlock`. Section 4.2: `RepMLPNet`. Where the paper is silent, follows the authors' code: ReLU in the
embeddings, BatchNorm before each block part and after each FFN layer, sigmoid gate with reduction 4, channel c uses
share-set c mod S. On images larger than native the two differ (``window_order``): follows the paper. The authors have
no drop-path; here it is 0 unless asked for, growing linearly with depth. Section 5.3 (Cityscapes): windows of the
native size, and wider embeddings (``embed_kernel``, ``embed_depthwise``), whose code was not released.

Layout (B, C, H, W).
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from visionmlp.layers.block import Block, deployed_block
from visionmlp.layers.channel_mlp import DeployedChannelMLP
from visionmlp.layers.drop_path import DropPath
from visionmlp.layers.fusible import Fusible, linear, parameter
from visionmlp.layers.linear import Linear
from visionmlp.layers.locality import LocalityBranches, LocalMixer, check_kernel_sizes
from visionmlp.layers.patch_embed import PatchEmbed
from visionmlp.layers.wide_embed import WideEmbed
from visionmlp.models.backbone import FusibleBackbone
from visionmlp.models.config import BackboneConfig
from visionmlp.models.official_layout import CONV1X1, SAME, OfficialEntry, View
from visionmlp.models.registry import IMAGENET, Published, Variant, register_family
from visionmlp.models.stage import Stage, drop_path_rates
from visionmlp.ops.eager import is_symbolic
from visionmlp.ops.fold import affine_of_linear, batchnorm_affine, linear_of_affine
from visionmlp.ops.layout import from_positions_first, to_positions_first
from visionmlp.ops.partition import (
    gather_windows,
    interleave_gathered_windows,
    interleave_windows,
    partition,
    scatter_windows,
    unpartition,
)
from visionmlp.ops.share_sets import mix_channels_first, mix_positions_first


@dataclasses.dataclass(frozen=True, kw_only=True)
class RepMLPNetConfig(BackboneConfig):
    """Widths of Table 1."""

    patch_size: int = 4
    """Stride of the first embedding; each later stage halves the map."""
    channels: int = 64
    """Channels of the first stage; each later stage doubles them (C)."""
    blocks: tuple[int, ...] = (2, 2, 6, 2)
    """Blocks of each stage (B)."""
    share_sets: tuple[int, ...] = (1, 4, 16, 128)
    """Token-mixing matrices of each stage; a stage's channels must be a multiple (S)."""
    kernel_sizes: tuple[int, ...] = (1, 3)
    """Convolution branches of the Local Perceptron; () leaves it out."""
    global_perceptron: bool = True
    """Whether blocks gate their channels by the pooled map."""
    reduction: int = 4
    """Channels over hidden width in the Global Perceptron."""
    ffn_ratio: int = 4
    """Hidden width over channels in the FFN."""
    window_order: str = "paper"
    """Images larger than native are cut into windows: "paper" puts each back in its place, "authors" reproduces their
    code, which exchanges windows with channel groups. Both are the same at the native size."""
    embed_kernel: int = 2
    """Side of the kernels between stages, of stride 2: 2, or an odd number, by which windows hear of their neighbours
    (section 5.3). Weights of smaller kernels load with zeros around them."""
    embed_depthwise: int = 1
    """Side of a depth-wise convolution behind each of these kernels, the other way to join windows; 1 leaves it out.
    Weights without it load with the identity."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_kernel_sizes(self.kernel_sizes)
        self.require(
            len(self.share_sets) == len(self.blocks) >= 1,
            f"share_sets and blocks need one entry for each stage, got {self.share_sets} and {self.blocks}",
        )
        for dim, sets in zip(self.dims, self.share_sets, strict=True):
            self.require(
                sets >= 1 and dim % sets == 0, f"a stage of {dim} channels cannot share {sets} sets; give a divisor"
            )
        self.require(
            self.channels % self.reduction == 0,
            f"reduction {self.reduction} does not divide {self.channels} channels",
        )
        self.require(
            self.window_order in ("paper", "authors"),
            f"window_order must be 'paper' or 'authors', got {self.window_order!r}",
        )
        self.require(
            self.embed_kernel == 2 or (self.embed_kernel > 2 and self.embed_kernel % 2 == 1),
            f"embed_kernel must be 2, or odd from 3 on, to halve the map, got {self.embed_kernel}",
        )
        self.require(
            self.embed_depthwise % 2 == 1, f"embed_depthwise must be odd to keep the map, got {self.embed_depthwise}"
        )
        self.require_multiple(self.strides[-1])

    @property
    def dims(self) -> tuple[int, ...]:
        """Channels of each stage."""
        return tuple(self.channels << i for i in range(len(self.blocks)))

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels between neighbouring positions, for each stage."""
        return tuple(self.patch_size << i for i in range(len(self.blocks)))

    def window(self, stage: int) -> tuple[int, int]:
        """Height and width of the maps that a stage's matrices are built for."""
        return self.img_size[0] // self.strides[stage], self.img_size[1] // self.strides[stage]


class GlobalPerceptron(nn.Module):
    """Per-channel gates from the pooled map: average, linear, ReLU, linear, sigmoid."""

    def __init__(self, fc1: nn.Linear, fc2: nn.Linear) -> None:
        super().__init__()
        self.fc1 = fc1
        self.fc2 = fc2

    def forward(self, pooled: Tensor) -> Tensor:
        """Means over positions (B, C) to gates (B, C)."""
        return torch.sigmoid(self.fc2(torch.relu(self.fc1(pooled))))


class RepMLPBlock(LocalMixer):
    """Global, Channel and Local Perceptron of Fig. 1, in their training form.

    Maps larger than ``grid`` are cut into windows of that size (section 5.3); the Global Perceptron sees the whole map.
    """

    token_sides: ClassVar = {"fc3": "matrix"}

    def __init__(
        self,
        dim: int,
        window: tuple[int, int],
        *,
        share_sets: int,
        kernel_sizes: Sequence[int],
        reduction: int | None,
        window_order: str = "paper",
    ) -> None:
        super().__init__()
        self.grid = window
        self.window_order = window_order
        tokens = window[0] * window[1]
        self.global_perceptron = (
            GlobalPerceptron(Linear(dim, dim // reduction), Linear(dim // reduction, dim)) if reduction else None
        )
        self.fc3 = nn.Parameter(torch.empty(share_sets, tokens, tokens).uniform_(-(tokens**-0.5), tokens**-0.5))
        self.norm = nn.BatchNorm2d(share_sets)
        self.locality = LocalityBranches(share_sets, kernel_sizes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W); H and W are multiples of the window."""
        maps = partition(x, self.grid)
        mixed = mix_channels_first(maps.flatten(2), self.fc3)
        mixed = self.norm(mixed.view(-1, self.fc3.shape[0], *self.grid)).view(maps.shape)
        mixed = self.locality.add_to(mixed, maps)
        if self.window_order == "authors":
            mixed = interleave_windows(
                mixed, (x.shape[2] // self.grid[0]) * (x.shape[3] // self.grid[1]), self.fc3.shape[0]
            )
        y = unpartition(mixed, (x.shape[2], x.shape[3]))
        if self.global_perceptron is None:
            return y
        return y * self.global_perceptron(x.mean((2, 3)))[:, :, None, None]

    def folded(self) -> tuple[Tensor, Tensor]:
        """Channel and Local Perceptron as matrices (S, N, N) and biases (S,), in float64: Locality Injection."""
        weight, bias = affine_of_linear(self.fc3, None, *batchnorm_affine(self.norm))
        matrix, branch_bias = self.locality.folded(self.grid, self.fc3)
        return weight + matrix, bias + branch_bias


class DeployedRepMLPBlock(nn.Module):
    """Residual RepMLP block of a deploy form: three fully-connected layers and nothing else, positions-first.

    ``x + gate * (scale * (weight @ x) + bias)``. The norm before the block is per channel and the matrices are shared
    between channels, so its scale stands behind the product, where the gate multiplies anyway.
    """

    def __init__(
        self,
        gate: GlobalPerceptron | None,
        weight: nn.Parameter,
        scale: nn.Parameter,
        bias: nn.Parameter,
        window: tuple[int, int],
        window_order: str,
    ) -> None:
        super().__init__()
        self.gate = gate
        self.weight = weight
        self.scale = scale
        self.bias = bias
        self.window = window
        self.window_order = window_order

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W); H and W are multiples of the window."""
        positions = to_positions_first(x, "BCHW")
        height, width = positions.shape[:2]
        windows = gather_windows(positions, self.window).contiguous()
        mixed = mix_positions_first(windows.flatten(0, 1), self.weight).view(windows.shape)
        count = (height // self.window[0]) * (width // self.window[1])
        gate = None if self.gate is None else self.gate(positions.mean((0, 1))).repeat(count, 1)
        if self.window_order == "authors" and (is_symbolic(x) or count > 1):
            mixed = torch.addcmul(self.bias, mixed, self.scale)
            mixed = interleave_gathered_windows(mixed, count, self.weight.shape[0])
            y = windows + mixed if gate is None else torch.addcmul(windows, mixed, gate)
        elif gate is None:
            y = (windows + self.bias).addcmul_(mixed, self.scale)
        else:
            y = torch.addcmul(windows, self.bias, gate).addcmul_(mixed, gate * self.scale)
        return from_positions_first(scatter_windows(y, (height, width)), "BCHW")

    @staticmethod
    def fold(block: RepMLPBlock, norm: nn.Module) -> "DeployedRepMLPBlock":
        """Fold ``x + block(norm(x))``."""
        scale, shift = batchnorm_affine(norm)
        weight, set_bias = block.folded()
        like = block.fc3
        sharing = scale.numel() // weight.shape[0]
        # (S, N) and (S,) spread over the channels: channel c belongs to set c % S
        row_sums = weight.sum(2).repeat(sharing, 1)
        bias = (row_sums * shift[:, None] + set_bias.repeat(sharing)[:, None]).t()
        gate = None
        if block.global_perceptron is not None:
            fc1, fc2 = block.global_perceptron.fc1, block.global_perceptron.fc2
            gate = GlobalPerceptron(
                linear(*linear_of_affine(fc1.weight, fc1.bias, scale, shift), like), linear(fc2.weight, fc2.bias, like)
            )
        return DeployedRepMLPBlock(
            gate,
            parameter(weight, like),
            parameter(scale, like),
            parameter(bias.reshape(*block.grid, 1, -1), like),
            block.grid,
            block.window_order,
        )


class ConvNorm(nn.Module):
    """1x1 convolution without bias, then BatchNorm."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_dim, out_dim, 1, bias=False)
        self.norm = nn.BatchNorm2d(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H, W)."""
        return self.norm(self.conv(x))

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight (C', C) and bias (C',), in float64."""
        return affine_of_linear(self.conv.weight.flatten(1), None, *batchnorm_affine(self.norm))


class FFN(nn.Module):
    """Channel mixing: 1x1 convolution, BatchNorm, GELU, 1x1 convolution, BatchNorm (Fig. 2)."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = ConvNorm(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = ConvNorm(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        return self.fc2(self.act(self.fc1(x)))


class RepMLPNetBlock(Block, Fusible):
    """RepMLP block and FFN, each behind a BatchNorm and with a residual."""

    def __init__(self, config: RepMLPNetConfig, stage: int, drop_path_rate: float) -> None:
        dim = config.dims[stage]
        super().__init__(
            norm1=nn.BatchNorm2d(dim),
            spatial=RepMLPBlock(
                dim,
                config.window(stage),
                share_sets=config.share_sets[stage],
                kernel_sizes=config.kernel_sizes,
                reduction=config.reduction if config.global_perceptron else None,
                window_order=config.window_order,
            ),
            scale1=nn.Identity(),
            norm2=nn.BatchNorm2d(dim),
            channel=FFN(dim, dim * config.ffn_ratio),
            scale2=nn.Identity(),
            drop_path=DropPath(drop_path_rate),
        )

    def fused(self) -> nn.Module:
        """No norm remains."""
        assert isinstance(self.spatial, RepMLPBlock)
        assert isinstance(self.channel, FFN)
        like = self.channel.fc1.conv.weight
        fc1 = linear(*linear_of_affine(*self.channel.fc1.folded(), *batchnorm_affine(self.norm2)), like)
        fc2 = linear(*self.channel.fc2.folded(), like)
        return deployed_block(
            DeployedRepMLPBlock.fold(self.spatial, self.norm1),
            DeployedChannelMLP(nn.Identity(), fc1, self.channel.act, fc2, layout="BCHW"),
        )


class RepMLPNet(FusibleBackbone):
    """Embedding and stages of `RepMLPNetBlock`s, BatchNorm, average, classifier; PyTorch's default initialisation."""

    config: RepMLPNetConfig

    def __init__(self, name: str, config: RepMLPNetConfig) -> None:
        dims = config.dims
        stages = []
        for i, rates in enumerate(drop_path_rates(config.drop_path_rate, config.blocks)):
            embed = _embedding(dims[i - 1], dims[i], config) if i else None
            stages.append(Stage([RepMLPNetBlock(config, i, rate) for rate in rates], downsample=embed))
        super().__init__(
            name=name,
            config=config,
            layout="BCHW",
            stem=PatchEmbed(config.in_chans, dims[0], config.patch_size, layout="BCHW", batch_norm=True, relu=True),
            stages=stages,
            dims=dims,
            norm=nn.BatchNorm2d(dims[-1]),
            input_sizes="multiples",
        )

    def official_entry(self, name: str) -> OfficialEntry:
        """As in the authors' ``repmlpnet.py``, training form."""
        # their embedding i stands between stages i and i + 1, ours opens stage i + 1
        theirs = re.sub(r"^stages\.(\d+)\.downsample", lambda m: f"embeds.{int(m[1]) - 1}", name)
        for pattern, replacement in _OFFICIAL_NAMES:
            theirs = re.sub(pattern, replacement, theirs)
        if name.endswith(".fc3"):
            return OfficialEntry(theirs, _SHARED_MATRICES)
        linear_layer = ".global_perceptron." in name and name.endswith("weight")
        return OfficialEntry(theirs, CONV1X1 if linear_layer else SAME)


def _embedding(in_dim: int, dim: int, config: RepMLPNetConfig) -> nn.Module:
    """Between stages: 2x2 of stride 2, or what is wider than that."""
    if config.embed_kernel == 2 and config.embed_depthwise == 1:
        return PatchEmbed(in_dim, dim, 2, layout="BCHW", batch_norm=True, relu=True)
    return WideEmbed(in_dim, dim, config.embed_kernel, depthwise=config.embed_depthwise)


_OFFICIAL_NAMES = (
    (r"^(stem|embeds\.\d+)\.proj\.", r"\1.conv."),
    (r"^(stem|embeds\.\d+)\.norm\.", r"\1.bn."),
    (r"^stem\.", "conv_embedding."),
    (r"^norm\.", "head_norm."),
    (r"^head\.fc\.", "head."),
    (r"^(stages\.\d+)\.blocks\.", r"\1."),
    (r"\.norm([12])\.", r".prebn\1."),
    (r"\.spatial\.fc3$", ".repmlp_block.fc3.weight"),
    (r"\.spatial\.norm\.", ".repmlp_block.fc3_bn."),
    (r"\.spatial\.global_perceptron\.", ".repmlp_block.gp."),
    (r"\.spatial\.locality\.by_kernel_size\.(\d+)\.norm\.", r".repmlp_block.repconv\1.bn."),
    (r"\.spatial\.locality\.by_kernel_size\.(\d+)\.", r".repmlp_block.repconv\1."),
    (r"\.channel\.(fc[12])\.norm\.", r".ffn_block.ffn_\1.bn."),
    (r"\.channel\.", ".ffn_block.ffn_"),
)
# theirs is a grouped 1x1 convolution over (set, position)
_SHARED_MATRICES = View(
    lambda theirs: theirs.reshape(-1, theirs.shape[1], theirs.shape[1]),
    lambda ours: ours.flatten(0, 1)[:, :, None, None],
)


def _published(params: float, macs: float, top1: float) -> Published:
    return Published(params=params, macs=macs, top1=top1, source="RepMLPNet, Table 2")


_T = RepMLPNetConfig()
_B = RepMLPNetConfig(channels=96, blocks=(2, 2, 12, 2), share_sets=(1, 4, 32, 128))
_D = RepMLPNetConfig(channels=80, blocks=(2, 2, 18, 2))
_L = RepMLPNetConfig(channels=96, blocks=(2, 2, 18, 2), share_sets=(1, 4, 32, 256))


def _at_256(config: RepMLPNetConfig) -> RepMLPNetConfig:
    return dataclasses.replace(config, img_size=(256, 256))


# name, widths, parameters, multiply-accumulates (both of the training form), what the paper states
VARIANTS = (
    Variant("repmlpnet_t224", _T, 38_293_608, 2_807_987_200, _published(38.3e6, 2.8e9, 76.4)),
    Variant("repmlpnet_b224", _B, 68_242_712, 6_675_721_728, _published(68.2e6, 6.7e9, 80.1)),
    Variant("repmlpnet_t256", _at_256(_T), 58_687_848, 4_258_078_720, _published(58.7e6, 4.2e9, 77.5)),
    Variant("repmlpnet_b256", _at_256(_B), 96_447_512, 9_640_209_408, _published(96.5e6, 9.6e9, 81.0)),
    Variant("repmlpnet_d256", _at_256(_D), 86_887_648, 8_636_207_360, _published(86.9e6, 8.6e9, 80.8)),
    Variant("repmlpnet_l256", _at_256(_L), 117_641_560, 11_609_484_288, _published(117.7e6, 11.5e9, 81.7)),
    Variant(
        "repmlpnet_cifar",
        RepMLPNetConfig(
            num_classes=100, img_size=(32, 32), patch_size=2, channels=128, blocks=(6, 6), share_sets=(8, 32)
        ),
        8_308_644,
        471_278_592,
        Published(params=8.3e6, macs=468e6, source="RepMLPNet, Table 5 (CIFAR-100, without branches)"),
    ),
    Variant(
        "repmlpnet_test",
        RepMLPNetConfig(
            num_classes=10,
            img_size=(32, 32),
            channels=8,
            blocks=(1, 2, 1),
            share_sets=(1, 4, 32),
            kernel_sizes=(1, 3, 5),
        ),
        26_567,
        254_944,
        Published(),
    ),
)

register_family(
    __name__,
    "RepMLPNet",
    RepMLPNet,
    VARIANTS,
    {**IMAGENET, "crop_pct": 1.0},
)
