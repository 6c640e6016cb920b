"""CycleMLP: an MLP-like architecture for dense prediction (Chen et al., ICLR 2022, arXiv 2107.10224).

Cycle FC: `CycleFC`; its three branches, along the width, along the height and in place: `CycleMixer`. Follows the
authors' code: the branches are reweighted by their pooled sum and projected, the third one has no bias, and the stem
and the down-sampling are overlapping convolutions without a norm. Their code names a branch by its pseudo-kernel, not
by its direction: ``sfc_h`` moves along the width and is ``mix_w`` here. CycleMLP-T, -S and -B of their README are other
models, for which no code was published.

Layout (B, H, W, C).
"""

import copy
import dataclasses
import math
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionmlp.layers.block import Block, DeployedResidual, ProjectedMixer, ResidualMixer, deployed_block
from visionmlp.layers.channel_mlp import ChannelMLP, DeployedMapMLP
from visionmlp.layers.drop_path import DropPath
from visionmlp.layers.fusible import Fusible, linear, parameter
from visionmlp.layers.linear import Linear
from visionmlp.layers.patch_embed import ConvEmbed
from visionmlp.layers.reweight import PlainSum, Reweight
from visionmlp.models.backbone import FusibleBackbone
from visionmlp.models.config import BackboneConfig
from visionmlp.models.official_layout import CONV1X1, SAME, OfficialEntry
from visionmlp.models.registry import IMAGENET, Published, Variant, register_family
from visionmlp.models.stage import MapStage, drop_path_rates, init_linear
from visionmlp.ops.cuda.displaced import Run, displaced_channels
from visionmlp.ops.eager import in_eager_inference, takes_cuda_kernels
from visionmlp.ops.product import linear as linear_product
from visionmlp.ops.product import linear_of_each
from visionmlp.ops.shift import Step, displaced, write_displaced


@dataclasses.dataclass(frozen=True, kw_only=True)
class CycleMLPConfig(BackboneConfig):
    """Widths of each stage, and the pseudo-kernels."""

    blocks: tuple[int, ...] = (2, 2, 4, 2)
    """Blocks of each stage."""
    dims: tuple[int, ...] = (64, 128, 320, 512)
    """Channels of each stage."""
    mlp_ratios: tuple[int, ...] = (4, 4, 4, 4)
    """Hidden width of the channel MLP over its width, for each stage."""
    pseudo_kernel_w: tuple[int, int] = (1, 3)
    """Rows and columns that the first branch cycles through; the authors' ``sfc_h``."""
    pseudo_kernel_h: tuple[int, int] = (3, 1)
    """Rows and columns that the second branch cycles through; the authors' ``sfc_w``."""
    dilation: int = 1
    """Positions between neighbours of a pseudo-kernel."""
    reweight: bool = True
    """Whether the three branches are weighted by their pooled sum, or added."""
    proj_drop_rate: float = 0.0
    """Dropout after each linear layer of the channel MLP."""
    feature_norms: bool = False
    """A norm on each feature level, as in the authors' dense-prediction code."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("dims", "mlp_ratios"):
            values = getattr(self, name)
            self.require(
                len(values) == len(self.blocks) >= 1,
                f"{name} and blocks need one entry for each stage, got {values} and {self.blocks}",
            )
        self.require(min(self.dims) >= 4, f"dims must be at least 4, a quarter is a hidden width, got {self.dims}")
        for name in ("pseudo_kernel_w", "pseudo_kernel_h"):
            kernel = getattr(self, name)
            self.require(
                len(kernel) == 2 and all(side % 2 for side in kernel),
                f"{name} must be two odd numbers, so that it has a centre, got {kernel}",
            )
        self.require(0.0 <= self.proj_drop_rate < 1.0, f"proj_drop_rate must be in [0, 1), got {self.proj_drop_rate}")

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels between neighbouring positions, for each stage."""
        return tuple(4 << i for i in range(len(self.blocks)))

    def positions(self, stage: int) -> int:
        """Positions of a stage's map of an image of ``img_size``."""
        rows, columns = (math.ceil(((side - 3) // 4 + 1) / 2**stage) for side in self.img_size)
        return rows * columns


def cycle_steps(kernel: tuple[int, int], dilation: int) -> list[Step]:
    """Where successive channels of a Cycle FC read: the places of a pseudo-kernel, row by row, from its centre on.

    Source: CycleMLP, section 3; a kernel of (1, 3) gives 0, 1, -1 along the width.
    """
    rows, columns = kernel
    count = rows * columns
    places = (divmod((count // 2 + i) % count, columns) for i in range(count))
    return [((row - rows // 2) * dilation, (column - columns // 2) * dilation) for row, column in places]


class Move(NamedTuple):
    """Channels ``first``, ``first + cycle``, ... read a step away."""

    first: int
    cycle: int
    step: Step


def moved_channels(x: Tensor, moves: Sequence[Move]) -> Tensor:
    """The moved channels of a map (B, H, W, C) side by side: (B, H, W, K)."""
    if takes_cuda_kernels(x):
        counts = [len(range(move.first, x.shape[3], move.cycle)) for move in moves]
        if sum(counts) == x.shape[3] or not torch.is_grad_enabled():
            runs = [Run(move.first, move.cycle, n, *move.step) for n, move in zip(counts, moves, strict=True)]
            return displaced_channels(x, runs)
    groups = [x[..., move.first :: move.cycle] for move in moves]
    if not in_eager_inference(x):
        return torch.cat([displaced(group, move.step) for group, move in zip(groups, moves, strict=True)], -1)
    # padding, cutting and joining would write every value twice
    joined = x.new_empty(*x.shape[:3], sum(group.shape[3] for group in groups))
    for target, group, move in zip(joined.split([g.shape[3] for g in groups], 3), groups, moves, strict=True):
        write_displaced(target, group, move.step)
    return joined


class CycleFC(Linear):
    """A linear layer whose input channels are read at different positions, in a cycle (Cycle FC, section 3).

    Channels with the same step are moved together; the weight follows their order, and one product does the rest.
    """

    def __init__(self, dim: int, kernel: tuple[int, int], *, dilation: int = 1) -> None:
        super().__init__(dim, dim)
        self.cycle = kernel[0] * kernel[1]
        self.steps = cycle_steps(kernel, dilation)[:dim]

    def forward(self, input: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        weight = torch.cat([self.weight[:, move.first :: move.cycle] for move in self.moves], 1)
        return linear_product(moved_channels(input, self.moves), weight, self.bias)

    @property
    def moves(self) -> list[Move]:
        """Where the channels are read, those of one step together."""
        return [Move(first, self.cycle, step) for first, step in enumerate(self.steps)]

    def extra_repr(self) -> str:
        """Width and steps."""
        return f"{self.in_features}, steps={self.steps}"


class CycleMixer(ProjectedMixer):
    """Two Cycle FCs and a linear layer side by side, summed and projected."""

    def __init__(
        self, *, mix_w: CycleFC, mix_h: CycleFC, mix_c: nn.Linear, reweight: Reweight | PlainSum, proj: nn.Linear
    ) -> None:
        super().__init__()
        self.mix_w = mix_w
        self.mix_h = mix_h
        self.mix_c = mix_c
        self.reweight = reweight
        self.proj = proj

    def mix(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        return self.reweight(self.mix_w(x), self.mix_h(x), self.mix_c(x))


class JointInput(nn.Module):
    """What all branches of a `CycleMixer` read, side by side: the map itself, then its moved channels."""

    def __init__(self, moves: Iterable[Move]) -> None:
        super().__init__()
        self.moves = (Move(0, 1, (0, 0)), *moves)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, K)."""
        return moved_channels(x, self.moves)

    @staticmethod
    def of(mixer: CycleMixer) -> tuple["JointInput", Tensor, Tensor]:
        """The input of a mixer, and its branches' weights (3, C, K) on it and biases (3, C), in float64."""
        cycles = (mixer.mix_w, mixer.mix_h)
        moves = [[move for move in fc.moves if any(move.step)] for fc in cycles]
        rows = []
        for branch, fc in enumerate(cycles):
            weight = fc.weight.detach().double()
            in_place = weight.clone()
            for move in moves[branch]:
                in_place[:, move.first :: move.cycle] = 0
            moved = [
                weight[:, move.first :: move.cycle] * (owner == branch) for owner in (0, 1) for move in moves[owner]
            ]
            rows.append(torch.cat([in_place, *moved], 1))
        weight = mixer.mix_c.weight.detach().double()
        rows.append(F.pad(weight, (0, rows[0].shape[1] - weight.shape[1])))
        biases = [fc.bias.detach().double() for fc in cycles]
        return JointInput(moves[0] + moves[1]), torch.stack(rows), torch.stack([*biases, torch.zeros_like(biases[0])])


class DeployedCycleSum(ResidualMixer):
    """Deploy form of a `CycleMixer` without reweighting: one linear layer on the joint input."""

    def __init__(self, inputs: JointInput, fc: nn.Linear) -> None:
        super().__init__()
        self.inputs = inputs
        self.fc = fc

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        return self.fc(self.inputs(x))

    @staticmethod
    def fold(mixer: CycleMixer) -> "DeployedCycleSum":
        """All four linear layers as one."""
        inputs, weight, bias = JointInput.of(mixer)
        proj = mixer.proj.weight.detach().double()
        folded = linear(proj @ weight.sum(0), proj @ bias.sum(0) + mixer.proj.bias.double(), mixer.proj.weight)
        return DeployedCycleSum(inputs, folded)


class DeployedCycleMixer(ResidualMixer):
    """Deploy form of a `CycleMixer` on a map with more positions than the joint input has channels.

    All layers but the reweighting are linear, so the mean of the joint input gives the weights of the branches, and the
    branches and the projection then are one matrix for each image, and one product with it.
    """

    def __init__(
        self, inputs: JointInput, weight: nn.Parameter, bias: nn.Parameter, reweight: Reweight, proj: nn.Linear
    ) -> None:
        super().__init__()
        self.inputs = inputs
        self.weight = weight
        self.bias = bias
        self.reweight = reweight
        self.proj = proj

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        inputs = self.inputs(x).flatten(1, 2)
        shares = self.reweight.weights(inputs.mean(1)).transpose(1, 2)
        branches = (shares[..., None] * self.weight).sum(1)
        matrices = linear_product(branches.transpose(1, 2), self.proj.weight).transpose(1, 2)
        bias = self.proj((shares * self.bias).sum(1))
        return linear_of_each(inputs, matrices, bias).unflatten(1, x.shape[1:3])

    @staticmethod
    def fold(mixer: CycleMixer) -> "DeployedCycleMixer":
        """The branches on the joint input, whose mean goes straight into the reweighting."""
        assert isinstance(mixer.reweight, Reweight)
        inputs, weight, bias = JointInput.of(mixer)
        reweight = copy.deepcopy(mixer.reweight)
        like, fc1 = mixer.proj.weight, mixer.reweight.fc1
        pooled_weight, pooled_bias = weight.sum(0), bias.sum(0)
        hidden = fc1.weight.detach().double()
        reweight.fc1 = linear(hidden @ pooled_weight, hidden @ pooled_bias + fc1.bias.double(), like)
        return DeployedCycleMixer(inputs, parameter(weight, like), parameter(bias, like), reweight, mixer.proj)


class CycleBlock(Block, Fusible):
    """Cycle FC mixer and channel MLP, each behind a LayerNorm and with a residual."""

    def __init__(self, config: CycleMLPConfig, stage: int, drop_path_rate: float) -> None:
        dim = config.dims[stage]
        super().__init__(
            norm1=nn.LayerNorm(dim),
            spatial=CycleMixer(
                mix_w=CycleFC(dim, config.pseudo_kernel_w, dilation=config.dilation),
                mix_h=CycleFC(dim, config.pseudo_kernel_h, dilation=config.dilation),
                mix_c=Linear(dim, dim, bias=False),
                reweight=Reweight(dim) if config.reweight else PlainSum(),
                proj=Linear(dim, dim),
            ),
            scale1=nn.Identity(),
            norm2=nn.LayerNorm(dim),
            channel=ChannelMLP(dim, dim * config.mlp_ratios[stage], act=nn.GELU(), drop_rate=config.proj_drop_rate),
            scale2=nn.Identity(),
            drop_path=DropPath(drop_path_rate),
        )
        self.positions = config.positions(stage)

    def fused(self) -> nn.Module:
        """Fewer products on maps; both LayerNorms stay whole.

        The zeros of a displacement stand behind the first one's shift, and neither costs less without scale and shift.
        """
        assert isinstance(self.spatial, CycleMixer)
        assert isinstance(self.channel, ChannelMLP)
        spatial = DeployedResidual(self.norm1, self._deployed_mixer(self.spatial))
        return deployed_block(spatial, DeployedMapMLP(self.norm2, self.channel.fc1, self.channel.act, self.channel.fc2))

    def _deployed_mixer(self, mixer: CycleMixer) -> ResidualMixer:
        if isinstance(mixer.reweight, PlainSum):
            return DeployedCycleSum.fold(mixer)
        deployed = DeployedCycleMixer.fold(mixer)
        # merging into a matrix for each image costs C * C * K, and saves more than C * C for each position
        return deployed if self.positions > deployed.weight.shape[2] else mixer


class CycleMLP(FusibleBackbone):
    """Embedding and stages of `CycleBlock`s, LayerNorm, average, classifier; takes images of any size."""

    config: CycleMLPConfig

    def __init__(self, name: str, config: CycleMLPConfig) -> None:
        dims = config.dims
        stages = []
        for i, rates in enumerate(drop_path_rates(config.drop_path_rate, config.blocks)):
            downsample = None
            if i:
                downsample = ConvEmbed(dims[i - 1], dims[i], 3, stride=2, padding=1, layout="BHWC", input_layout="BHWC")
            stages.append(MapStage([CycleBlock(config, i, rate) for rate in rates], downsample=downsample))
        super().__init__(
            name=name,
            config=config,
            layout="BHWC",
            stem=ConvEmbed(config.in_chans, dims[0], 7, stride=4, padding=2, layout="BHWC"),
            stages=stages,
            dims=dims,
            norm=nn.LayerNorm(dims[-1]),
            input_sizes="any",
            least_side=3,
            feature_norms=[nn.LayerNorm(dim) for dim in dims] if config.feature_norms else [],
        )
        # the convolutions keep PyTorch's default, as in the authors' code
        self.apply(init_linear)

    def init_classifier(self, layer: nn.Linear) -> None:
        """Truncated normal of deviation 0.02, zero bias, like every other linear layer."""
        init_linear(layer)

    def official_entry(self, name: str) -> OfficialEntry:
        """As in the authors' ``cycle_mlp.py``; ``feature_norms`` as with its ``fork_feat``."""
        theirs = name
        for ours, replacement in _OFFICIAL_NAMES.items():
            theirs = theirs.replace(ours, replacement)
        theirs = re.sub(r"^(stem|head\.fc)\.", lambda m: {"stem": "patch_embed.", "head.fc": "head."}[m[1]], theirs)
        # stages and the embeddings between them, and the norms of the stages' outputs, count as one list
        theirs = re.sub(r"^stages\.(\d+)\.blocks", lambda m: f"network.{2 * int(m[1])}", theirs)
        theirs = re.sub(r"^stages\.(\d+)\.downsample", lambda m: f"network.{2 * int(m[1]) - 1}", theirs)
        theirs = re.sub(r"^feature_norms\.(\d+)", lambda m: f"norm{2 * int(m[1])}", theirs)
        return OfficialEntry(theirs, CONV1X1 if theirs.endswith((".sfc_h.weight", ".sfc_w.weight")) else SAME)

    def official_constants(self) -> dict[str, Tensor]:
        """The offsets of each Cycle FC: (1, 2C, 1, 1), rows down and columns to the right of each channel."""
        constants = {}
        for name, module in self.named_modules():
            if isinstance(module, CycleFC):
                theirs = self.official_entry(f"{name}.weight").name.removesuffix("weight") + "offset"
                steps = [module.steps[i % module.cycle] for i in range(module.in_features)]
                constants[theirs] = torch.tensor(steps, dtype=torch.float32).view(1, -1, 1, 1)
        return constants


_OFFICIAL_NAMES = {
    ".spatial.mix_w.": ".attn.sfc_h.",
    ".spatial.mix_h.": ".attn.sfc_w.",
    ".spatial.mix_c.": ".attn.mlp_c.",
    ".spatial.": ".attn.",
    ".channel.": ".mlp.",
}


def _published(params: float, macs: float, top1: float) -> Published:
    return Published(params=params, macs=macs, top1=top1, source="CycleMLP, README of the authors' code")


_B1 = CycleMLPConfig()
_B2 = CycleMLPConfig(blocks=(2, 3, 10, 3))
_B3 = CycleMLPConfig(blocks=(3, 4, 18, 3), mlp_ratios=(8, 8, 4, 4))
_B4 = CycleMLPConfig(blocks=(3, 8, 27, 3), mlp_ratios=(8, 8, 4, 4))
_B5 = CycleMLPConfig(blocks=(3, 4, 24, 3), dims=(96, 192, 384, 768))
_TEST = CycleMLPConfig(num_classes=10, img_size=(32, 32), blocks=(2, 2), dims=(16, 24), mlp_ratios=(2, 3))

# name, widths, parameters, multiply-accumulates (both of the training form), what the authors state
VARIANTS = (
    Variant("cyclemlp_b1", _B1, 15_155_400, 2_121_523_200, _published(15e6, 2.1e9, 78.9)),
    Variant("cyclemlp_b2", _B2, 26_802_504, 3_875_766_272, _published(27e6, 3.9e9, 81.6)),
    Variant("cyclemlp_b3", _B3, 38_385_720, 6_830_968_832, _published(38e6, 6.9e9, 82.4)),
    Variant("cyclemlp_b4", _B4, 51_796_552, 10_027_163_648, _published(52e6, 10.1e9, 83.0)),
    Variant("cyclemlp_b5", _B5, 75_747_280, 12_232_436_736, _published(76e6, 12.3e9, 83.2)),
    Variant("cyclemlp_test", _TEST, 24_534, 654_192, Published()),
)

register_family(
    __name__,
    "CycleMLP",
    CycleMLP,
    VARIANTS,
    {**IMAGENET, "crop_pct": 0.875},
    fixed_input_size=False,
)
