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
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionmlp.errors import CheckpointMismatch
from visionmlp.layers.block import Block, DeployedResidual, ProjectedMixer, ResidualMixer, deployed_block
from visionmlp.layers.channel_mlp import ChannelMLP, DeployedMapMLP
from visionmlp.layers.drop_path import DropPath
from visionmlp.layers.fusible import Fusible, linear, parameter
from visionmlp.layers.linear import Linear
from visionmlp.layers.patch_embed import ConvEmbed
from visionmlp.layers.reweight import PlainSum, Reweight
from visionmlp.models.backbone import Backbone, FusibleBackbone
from visionmlp.models.config import BackboneConfig
from visionmlp.models.official_layout import CONV1X1, SAME, OfficialEntry
from visionmlp.models.registry import IMAGENET, Published, Variant, register_family
from visionmlp.models.stage import MapStage, Stage, drop_path_rates, init_linear
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
    """Channels ``first``, ``first + stride``, ..., so many of them, read a step away."""

    first: int
    channels: int
    stride: int
    step: Step

    @property
    def where(self) -> slice:
        """Their places in the map."""
        return slice(self.first, self.first + (self.channels - 1) * self.stride + 1, self.stride)


def moved_channels(x: Tensor, moves: Sequence[Move]) -> Tensor:
    """The moved channels of a map (B, H, W, C) side by side: (B, H, W, K)."""
    if takes_cuda_kernels(x) and (sum(move.channels for move in moves) == x.shape[3] or not torch.is_grad_enabled()):
        return displaced_channels(x, [Run(move.first, move.stride, move.channels, *move.step) for move in moves])
    groups = [x[..., move.where] for move in moves]
    if not in_eager_inference(x):
        return torch.cat([displaced(group, move.step) for group, move in zip(groups, moves, strict=True)], -1)
    # padding, cutting and joining would write every value twice
    joined = x.new_empty(*x.shape[:3], sum(move.channels for move in moves))
    for target, group, move in zip(joined.split([move.channels for move in moves], 3), groups, moves, strict=True):
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
        weight = torch.cat([self.weight[:, move.where] for move in self.moves], 1)
        return linear_product(moved_channels(input, self.moves), weight, self.bias)

    @property
    def moves(self) -> list[Move]:
        """Where the channels are read, those of one step together."""
        dim, cycle = self.in_features, self.cycle
        return [Move(first, len(range(first, dim, cycle)), cycle, step) for first, step in enumerate(self.steps)]

    @property
    def grouped_moves(self) -> list[Move]:
        """The same of a map whose channels stand in `group_order`: each step's are neighbours."""
        counts = [move.channels for move in self.moves]
        return [Move(sum(counts[:i]), count, 1, self.steps[i]) for i, count in enumerate(counts)]

    @property
    def group_order(self) -> list[int]:
        """The channels of the first step, then those of the second, and so on."""
        return [channel for move in self.moves for channel in range(self.in_features)[move.where]]

    def extra_repr(self) -> str:
        """Width and steps."""
        return f"{self.in_features}, steps={self.steps}"


class CycleMixer(ProjectedMixer):
    """Two Cycle FCs and a linear layer side by side, summed and projected."""

    def __init__(
        self, *, mix_w: nn.Module, mix_h: nn.Module, mix_c: nn.Linear, reweight: Reweight | PlainSum, proj: nn.Linear
    ) -> None:
        super().__init__()
        self.mix_w = mix_w
        self.mix_h = mix_h
        self.mix_c = mix_c
        self.reweight = reweight
        self.proj = proj

    def cycles(self) -> tuple[CycleFC, CycleFC]:
        """The two Cycle FCs of a training form."""
        assert isinstance(self.mix_w, CycleFC)
        assert isinstance(self.mix_h, CycleFC)
        return self.mix_w, self.mix_h

    def mix(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        return self.reweight(self.mix_w(x), self.mix_h(x), self.mix_c(x))


class JointInput(nn.Module):
    """Moved channels of a map side by side."""

    def __init__(self, moves: Iterable[Move]) -> None:
        super().__init__()
        self.moves = tuple(moves)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, K)."""
        return moved_channels(x, self.moves)

    @staticmethod
    def of(mixer: CycleMixer, order: Sequence[int] | None) -> tuple["JointInput", Tensor, Tensor]:
        """What all branches of a mixer read: the map itself, then its moved channels.

        Args:
            mixer: in training form.
            order: of the map's channels, as in `CycleBlock.deployed`.

        Returns:
            The input, and the branches' weights (3, C, K) on it and biases (3, C), in float64.
        """
        dim = mixer.mix_c.in_features
        # (branch, channels in the weight's columns, the same in the map)
        moved = [
            (branch, move.where, move if order is None else grouped)
            for branch, fc in enumerate(mixer.cycles())
            for move, grouped in zip(fc.moves, fc.grouped_moves, strict=True)
            if any(move.step)
        ]
        rows = []
        for branch, fc in enumerate(mixer.cycles()):
            weight = fc.weight.detach().double()
            in_place = weight.clone()
            for owner, channels, _ in moved:
                if owner == branch:
                    in_place[:, channels] = 0
            columns = [weight[:, channels] * (owner == branch) for owner, channels, _ in moved]
            rows.append(torch.cat([in_place if order is None else in_place[:, order], *columns], 1))
        weight = mixer.mix_c.weight.detach().double()
        rows.append(F.pad(weight if order is None else weight[:, order], (0, rows[0].shape[1] - dim)))
        biases = [fc.bias.detach().double() for fc in mixer.cycles()]
        inputs = JointInput([Move(0, dim, 1, (0, 0)), *(move for _, _, move in moved)])
        return inputs, torch.stack(rows), torch.stack([*biases, torch.zeros_like(biases[0])])


class DisplacedLinear(ResidualMixer):
    """A linear layer on moved channels: the deploy form of a `CycleFC`, and of a `CycleMixer` without reweighting."""

    def __init__(self, inputs: JointInput, fc: nn.Linear) -> None:
        super().__init__()
        self.inputs = inputs
        self.fc = fc

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        return self.fc(self.inputs(x))

    @staticmethod
    def of_grouped(fc: CycleFC) -> "DisplacedLinear":
        """A Cycle FC of a map in `CycleFC.group_order`."""
        weight = fc.weight.detach()[:, fc.group_order]
        return DisplacedLinear(JointInput(fc.grouped_moves), linear(weight, fc.bias, fc.weight))

    @staticmethod
    def fold(mixer: CycleMixer, order: Sequence[int] | None) -> "DisplacedLinear":
        """All four linear layers of a mixer as one."""
        inputs, weight, bias = JointInput.of(mixer, order)
        proj = reordered(mixer.proj, outputs=order)
        matrix = proj.weight.detach().double()
        folded = linear(matrix @ weight.sum(0), matrix @ bias.sum(0) + proj.bias.double(), proj.weight)
        return DisplacedLinear(inputs, folded)


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
    def fold(mixer: CycleMixer, order: Sequence[int] | None) -> "DeployedCycleMixer":
        """The branches on the joint input, whose mean goes straight into the reweighting."""
        assert isinstance(mixer.reweight, Reweight)
        inputs, weight, bias = JointInput.of(mixer, order)
        reweight = copy.deepcopy(mixer.reweight)
        like, fc1 = mixer.proj.weight, mixer.reweight.fc1
        pooled_weight, pooled_bias = weight.sum(0), bias.sum(0)
        hidden = fc1.weight.detach().double()
        reweight.fc1 = linear(hidden @ pooled_weight, hidden @ pooled_bias + fc1.bias.double(), like)
        proj = reordered(mixer.proj, outputs=order)
        return DeployedCycleMixer(inputs, parameter(weight, like), parameter(bias, like), reweight, proj)


class ChannelOrder(nn.Module):
    """Puts channels that stand in another order back. Layout (B, H, W, C).

    The order is part of the state, so that the weights of one order are not loaded as those of another.
    """

    places: Tensor

    def __init__(self, order: Sequence[int], device: torch.device) -> None:
        super().__init__()
        self.expected = sorted(range(len(order)), key=order.__getitem__)
        self.register_buffer("places", torch.tensor(self.expected, device=device))
        self.register_load_state_dict_pre_hook(_check_places)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        return x.flatten(0, 2).index_select(1, self.places).view_as(x)


def _check_places(order: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Raise CheckpointMismatch for a state of another order, which would be a wrong one."""
    assert isinstance(order, ChannelOrder)
    key = f"{prefix}places"
    if key in state:
        if state[key].tolist() != order.expected:
            raise CheckpointMismatch(f"{key} holds another order of channels; save the deploy form again")
        state[key] = state[key].long()  # a state may be all of one dtype


_Layer = TypeVar("_Layer", bound=nn.Module)


def reordered(layer: _Layer, *, inputs: Sequence[int] | None = None, outputs: Sequence[int] | None = None) -> _Layer:
    """A copy of a linear layer, convolution or LayerNorm with inputs or outputs in this order; itself for None."""
    if inputs is outputs is None:
        return layer
    layer = copy.deepcopy(layer)
    for value in layer.parameters():
        if outputs is not None:
            value.data = value.data[outputs]
        if inputs is not None and value.dim() > 1:
            value.data = value.data[:, inputs].contiguous()
    return layer


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

    @property
    def group_order(self) -> list[int] | None:
        """The order of channels in which both Cycle FCs read neighbours; None if none is, or a layer is foreign."""
        mixer, mlp = self.spatial, self.channel
        if not isinstance(mixer, CycleMixer) or not isinstance(mlp, ChannelMLP):
            return None
        first, second = mixer.mix_w, mixer.mix_h
        if not isinstance(first, CycleFC) or not isinstance(second, CycleFC) or len(first.steps) != len(second.steps):
            return None
        layers = (first, second, mixer.mix_c, mixer.proj, mlp.fc1, mlp.fc2, self.norm1, self.norm2)
        return first.group_order if len(first.steps) > 1 and all(map(_is_plain, layers)) else None

    def fused(self) -> nn.Module:
        """Fewer products on maps; both LayerNorms stay whole.

        The zeros of a displacement stand behind the first one's shift, and neither costs less without scale and shift.
        """
        return deployed_block(*self.deployed(None))

    def deployed(self, order: Sequence[int] | None) -> tuple[DeployedResidual, DeployedMapMLP]:
        """Deploy form of both residual parts.

        Args:
            order: of the channels of the map that they take and give, `group_order`; None is the training form's.
        """
        assert isinstance(self.spatial, CycleMixer)
        assert isinstance(self.channel, ChannelMLP)
        norm1, norm2 = (reordered(norm, outputs=order) for norm in (self.norm1, self.norm2))
        fc1, fc2 = reordered(self.channel.fc1, inputs=order), reordered(self.channel.fc2, outputs=order)
        spatial = DeployedResidual(norm1, self._deployed_mixer(self.spatial, order))
        return spatial, DeployedMapMLP(norm2, fc1, self.channel.act, fc2)

    def _deployed_mixer(self, mixer: CycleMixer, order: Sequence[int] | None) -> ResidualMixer:
        if isinstance(mixer.reweight, PlainSum):
            return DisplacedLinear.fold(mixer, order)
        deployed = DeployedCycleMixer.fold(mixer, order)
        # merging into a matrix for each image costs C * C * K, and saves more than C * C for each position
        if self.positions > deployed.weight.shape[2]:
            return deployed
        if order is None:
            return mixer
        mix_w, mix_h = (DisplacedLinear.of_grouped(fc) for fc in mixer.cycles())
        mix_c, proj = reordered(mixer.mix_c, inputs=order), reordered(mixer.proj, outputs=order)
        return CycleMixer(mix_w=mix_w, mix_h=mix_h, mix_c=mix_c, reweight=mixer.reweight, proj=proj)


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

    def fused(self) -> Backbone:
        """As of every family, with the channels of each stage in the order of their steps.

        Then those that move together are neighbours, which are read at a fraction of the cost of every third channel.
        The embeddings give that order, all layers of a stage keep it, and its last block puts it back: maps between the
        blocks of a stage have it, feature levels do not.
        """
        deployed = super().fused()
        stages = self._stages()
        if len(stages) == 1:  # each of its blocks is a feature level
            return deployed
        embeds = [self.stem, *(stage.downsample for stage in stages[1:])]
        orders = [_common_order(embed, stage) for embed, stage in zip(embeds, stages, strict=True)]
        if orders[0] is not None:
            deployed.stem = _reordered_embed(self.stem, orders[0])
        deployed.stages = nn.Sequential(
            *(stage if order is None else _grouped(stage, order) for stage, order in zip(stages, orders, strict=True))
        )
        return deployed

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


def _is_plain(layer: nn.Module) -> bool:
    """Whether its outputs and inputs are the rows and columns of its weight: neither wrapped nor parametrised."""
    names = {name for name, _ in (*layer.named_parameters(), *layer.named_buffers())}
    return type(layer) in (Linear, CycleFC, nn.LayerNorm, nn.Conv2d) and names <= {"weight", "bias"}


def _common_order(embed: nn.Module, stage: Stage) -> list[int] | None:
    """The order that an embedding can give and all blocks can keep."""
    if type(embed) is not ConvEmbed or not isinstance(embed.norm, nn.Identity) or not _is_plain(embed.proj):
        return None
    first, *others = (block.group_order if isinstance(block, CycleBlock) else None for block in stage.blocks)
    return first if all(order == first for order in others) else None


def _reordered_embed(embed: nn.Module, order: Sequence[int]) -> ConvEmbed:
    assert isinstance(embed, ConvEmbed)
    result = copy.deepcopy(embed)
    result.proj = reordered(embed.proj, outputs=order)
    return result


def _grouped(stage: Stage, order: Sequence[int]) -> Stage:
    """The blocks in deploy form on channels of this order, which the embedding before them gives."""
    grouped = copy.copy(stage)  # with its flags
    grouped._modules = dict(stage._modules)
    if not isinstance(stage.downsample, nn.Identity):
        grouped.downsample = _reordered_embed(stage.downsample, order)
    *first, (spatial, channel) = (block.deployed(order) for block in stage.blocks if isinstance(block, CycleBlock))
    back = ChannelOrder(order, channel.fc1.weight.device)
    last = OrderedDict[str, nn.Module](spatial=spatial, channel=channel, order=back)
    grouped.blocks = nn.Sequential(*(deployed_block(*both) for both in first), nn.Sequential(last))
    return grouped


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
