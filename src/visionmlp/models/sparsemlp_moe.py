"""Sparse-MLP: MLP-Mixer with sparse mixtures of experts (Lou et al., arXiv 2109.02008). Not sMLPNet (2109.05422).

The last blocks of an MLP-Mixer become Sparse blocks. One re-represents the map, (S, C) positions and channels, as
(S1, C1), by a linear layer over positions and one over channels; mixes S1 with an MLP chosen for each channel, then C1
with MLPs chosen for each position, both by `layers.moe`; and re-represents it as (S, C) again. As in Mixer, each of the
two mixings stands behind a LayerNorm and has a residual; the block as a whole has none.

There is no public code, and the paper is silent on much; what it leaves open is a field of the config. The presets are
reconstructions, named after Mixer-S/16, B/16 and L/16. Known: S1 = 2S, C1 = C/2, 4, 8 or 16 experts by size, one expert
for a channel and two for a position, the last 2 or 4 blocks. Chosen here, so that there are fewer parameters and
operations than in the dense model, as the abstract says: the experts of a channel mixing divide the hidden units of the
dense MLP among themselves; those of a token mixing divide twice as many, as more token experts help and more channel
experts overfit. Channels are re-represented where there are fewer positions, which is cheaper. Positions begin as equal
copies of the map, and the map as their mean, as `models.upcycling` has them.

Layout (B, H, W, C); within a Sparse block (B, S1, C1).
"""

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from visionmlp.errors import CheckpointError
from visionmlp.layers.block import Block
from visionmlp.layers.drop_path import DropPath
from visionmlp.layers.grid_mixer import GridMixer
from visionmlp.layers.linear import Linear
from visionmlp.layers.locality import check_kernel_sizes
from visionmlp.layers.mixer_block import MixerBlock, lecun_normal_
from visionmlp.layers.moe import ExpertLinear, Experts, MixtureOfExperts, Router
from visionmlp.layers.patch_embed import PatchEmbed
from visionmlp.models.backbone import FusibleBackbone
from visionmlp.models.config import BackboneConfig
from visionmlp.models.official_layout import OfficialEntry
from visionmlp.models.registry import INCEPTION, Published, Variant, register_family
from visionmlp.models.stage import Stage, drop_path_rates
from visionmlp.ops.resize import Grid, resize_grid, resize_token_inputs


@dataclasses.dataclass(frozen=True, kw_only=True)
class SparseMLPConfig(BackboneConfig):
    """Widths of Mixer (its Table 1), and what makes the last blocks sparse."""

    patch_size: int = 16
    """Side of a patch in pixels."""
    dim: int = 768
    """Channels."""
    depth: int = 12
    """Blocks, dense and sparse."""
    token_dim: int = 384
    """Hidden width of the token-mixing MLP of dense blocks."""
    channel_dim: int = 3072
    """Hidden width of the channel-mixing MLP of dense blocks."""
    sparse_blocks: int = 2
    """How many of the last blocks are sparse."""
    token_expansion: int = 2
    """Positions within a Sparse block over those of the map, S1 / S."""
    channel_reduction: int = 2
    """Channels of the map over those within a Sparse block, C / C1."""
    token_experts: int = 8
    """Experts that mix positions."""
    token_top_k: int = 1
    """Of these, how many a channel is sent to."""
    token_expert_dim: int = 96
    """Hidden width of each."""
    channel_experts: int = 8
    """Experts that mix channels."""
    channel_top_k: int = 2
    """Of these, how many a position is sent to."""
    channel_expert_dim: int = 384
    """Hidden width of each."""
    capacity_factor: float = 1.25
    """Places of an expert for an image over those that even routing needs; the residual carries what finds none."""
    importance_weight: float = 0.005
    """Of the importance loss: squared coefficient of variation, over experts, of the summed gates."""
    load_weight: float = 0.005
    """Of the load loss: the same of a smooth count of items."""
    router_noise: bool = True
    """Whether training adds normal noise of deviation 1 / experts to the routers' logits."""
    normalise_gates: bool = False
    """Whether the weights of the chosen experts are divided by their sum; a single expert then has weight 1."""
    kernel_sizes: tuple[int, ...] = ()
    """Convolution branches that train beside token mixing of dense blocks (Locality Injection)."""
    proj_drop_rate: float = 0.0
    """Dropout after each linear layer of channel mixing, dense and sparse."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_kernel_sizes(self.kernel_sizes)
        self.require(0.0 <= self.proj_drop_rate < 1.0, f"proj_drop_rate must be in [0, 1), got {self.proj_drop_rate}")
        self.require_multiple(self.patch_size)
        self.require(
            self.sparse_blocks <= self.depth,
            f"sparse_blocks {self.sparse_blocks} are more than all blocks, depth = {self.depth}",
        )
        self.require(
            not self.kernel_sizes or self.sparse_blocks < self.depth,
            "kernel_sizes need a dense block to stand in; give fewer sparse_blocks than depth",
        )
        self.require(
            self.dim % self.channel_reduction == 0,
            f"channel_reduction {self.channel_reduction} does not divide dim {self.dim}",
        )
        for kind in ("token", "channel"):
            experts, top_k = getattr(self, f"{kind}_experts"), getattr(self, f"{kind}_top_k")
            self.require(experts >= 2, f"{kind}_experts must be at least 2 to choose from, got {experts}")
            self.require(top_k <= experts, f"{kind}_top_k {top_k} is more than {kind}_experts = {experts}")
        self.require(self.capacity_factor > 0, f"capacity_factor must be positive, got {self.capacity_factor}")
        for name in ("importance_weight", "load_weight"):
            self.require(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels between neighbouring positions."""
        return (self.patch_size,)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches (rows, columns)."""
        return self.img_size[0] // self.patch_size, self.img_size[1] // self.patch_size

    @property
    def sparse_tokens(self) -> int:
        """Positions within a Sparse block, S1."""
        return self.grid[0] * self.grid[1] * self.token_expansion

    @property
    def sparse_dim(self) -> int:
        """Channels within a Sparse block, C1."""
        return self.dim // self.channel_reduction


class TokenAxis(NamedTuple):
    """A dimension of a weight that runs over positions."""

    dim: int
    copies: int
    """1 for the positions of the map; for those within a Sparse block, how many there are for each."""
    summed: bool
    """Whether the layer sums over them."""


class ExpandedMixer(GridMixer):
    """A part of a Sparse block whose weights run over positions.

    The S1 positions within the block are taken for ``token_expansion`` maps, one behind the other; for another image
    size each is interpolated like the map itself.
    """

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid = grid

    @abstractmethod
    def token_axes(self, entry: str) -> list[TokenAxis]:
        """The dimensions of a state entry that run over positions."""

    def resized(self, entry: str, value: Tensor, old: Grid | None) -> Tensor:
        """Bicubic along each axis; a grid that nobody tells is taken for square."""
        for dim, copies, summed in self.token_axes(entry):
            side = math.isqrt(value.shape[dim] // copies)
            source = old or (side, side)
            if value.shape[dim] != copies * source[0] * source[1]:
                return value
            maps = value.movedim(dim, -1).unflatten(-1, (copies, -1))
            maps = (resize_token_inputs if summed else resize_grid)(maps, source, self.grid)
            value = maps.flatten(-2).movedim(-1, dim).contiguous()
        return value


class RepresentIn(ExpandedMixer):
    """Re-represent layers that open a Sparse block: linear over channels, then over positions."""

    grid_entries: ClassVar = ("tokens.weight", "tokens.bias")

    def __init__(self, config: SparseMLPConfig) -> None:
        super().__init__(config.grid)
        self.expansion = config.token_expansion
        self.channels = Linear(config.dim, config.sparse_dim)
        self.tokens = Linear(config.grid[0] * config.grid[1], config.sparse_tokens)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, S1, C1)."""
        return self.tokens(self.channels(x).flatten(1, 2).transpose(1, 2)).transpose(1, 2)

    def token_axes(self, entry: str) -> list[TokenAxis]:
        """Rows of the matrix, and its columns."""
        rows = TokenAxis(0, self.expansion, False)
        return [rows, TokenAxis(1, 1, True)] if entry == "tokens.weight" else [rows]


class RepresentOut(ExpandedMixer):
    """Re-represent layers that close a Sparse block: linear over positions, then over channels."""

    grid_entries: ClassVar = ("tokens.weight", "tokens.bias")

    def __init__(self, config: SparseMLPConfig) -> None:
        super().__init__(config.grid)
        self.expansion = config.token_expansion
        self.tokens = Linear(config.sparse_tokens, config.grid[0] * config.grid[1])
        self.channels = Linear(config.sparse_dim, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, S1, C1) to (B, H, W, C)."""
        return self.channels(self.tokens(x.transpose(1, 2)).transpose(1, 2)).unflatten(1, self.grid)

    def token_axes(self, entry: str) -> list[TokenAxis]:
        """Rows of the matrix, and its columns."""
        rows = TokenAxis(0, 1, False)
        return [rows, TokenAxis(1, self.expansion, True)] if entry == "tokens.weight" else [rows]


class TokenExperts(ExpandedMixer):
    """Token mixing by experts: an item is a channel, with its values at all positions."""

    grid_entries: ClassVar = (
        "moe.router.fc.weight",
        "moe.experts.fc1.weight",
        "moe.experts.fc2.weight",
        "moe.experts.fc2.bias",
    )

    def __init__(self, config: SparseMLPConfig, label: str, act: nn.GELU) -> None:
        super().__init__(config.grid)
        self.expansion = config.token_expansion
        experts, dim = config.token_experts, config.sparse_tokens
        self.moe = make_moe(
            config, label, Experts(experts, dim, config.token_expert_dim, act=act), top_k=config.token_top_k
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, S1, C1) to (B, S1, C1)."""
        return self.moe(x.transpose(1, 2)).transpose(1, 2)

    def token_axes(self, entry: str) -> list[TokenAxis]:
        """What goes in is summed, what comes out is not."""
        return [TokenAxis(2 if "fc1" in entry else 1, self.expansion, "fc2" not in entry)]


class SparseBlock(Block):
    """Re-represent, mix tokens by experts, mix channels by experts, re-represent.

    Its deploy form is itself: anything folded into a router would move its scores by rounding, and so its choices.
    """

    def __init__(self, config: SparseMLPConfig, index: int, drop_path_rate: float) -> None:
        act = nn.GELU(approximate="tanh")
        experts, dim = config.channel_experts, config.sparse_dim
        mlps = Experts(experts, dim, config.channel_expert_dim, act=act, drop_rate=config.proj_drop_rate)
        super().__init__(
            norm1=nn.LayerNorm(dim, eps=1e-6),
            spatial=TokenExperts(config, f"block{index}.token", act),
            scale1=nn.Identity(),
            norm2=nn.LayerNorm(dim, eps=1e-6),
            channel=make_moe(config, f"block{index}.channel", mlps, top_k=config.channel_top_k),
            scale2=nn.Identity(),
            drop_path=DropPath(drop_path_rate),
        )
        self.enter = RepresentIn(config)
        self.leave = RepresentOut(config)

    @torch.no_grad()
    def represent_equally(self) -> None:
        """Let the S1 positions be equal copies of the map, and the map their mean."""
        # random matrices would hide from the average behind the last block where something is
        into, out = self.enter.tokens, self.leave.tokens
        copies = torch.eye(into.in_features).repeat(into.out_features // into.in_features, 1)
        into.weight.copy_(copies)
        out.weight.copy_(copies.t() * into.in_features / into.out_features)
        for layer in (into, out):
            layer.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        return self.leave(super().forward(self.enter(x)))


def make_moe(config: SparseMLPConfig, label: str, experts: Experts, *, top_k: int) -> MixtureOfExperts:
    """Experts behind a router of their own."""
    return MixtureOfExperts(
        label,
        experts,
        Router(
            experts.dim,
            experts.count,
            top_k=top_k,
            noise=config.router_noise,
            normalise_gates=config.normalise_gates,
        ),
        capacity_factor=config.capacity_factor,
        importance_weight=config.importance_weight,
        load_weight=config.load_weight,
    )


class SparseMLP(FusibleBackbone):
    """Patch embedding, one stage of `MixerBlock`s and then `SparseBlock`s, LayerNorm, average, classifier."""

    config: SparseMLPConfig

    def __init__(self, name: str, config: SparseMLPConfig) -> None:
        stem = PatchEmbed(config.in_chans, config.dim, config.patch_size, layout="BHWC")
        blocks = []
        for index, rate in enumerate(drop_path_rates(config.drop_path_rate, [config.depth])[0]):
            if index >= config.depth - config.sparse_blocks:
                blocks.append(SparseBlock(config, index, rate))
            else:
                dense = MixerBlock(
                    config.grid,
                    config.dim,
                    token_dim=config.token_dim,
                    channel_dim=config.channel_dim,
                    kernel_sizes=config.kernel_sizes,
                    drop_rate=config.proj_drop_rate,
                    drop_path_rate=rate,
                )
                blocks.append(dense)
        super().__init__(
            name=name,
            config=config,
            layout="BHWC",
            stem=stem,
            stages=[Stage(blocks)],
            dims=[config.dim],
            norm=nn.LayerNorm(config.dim, eps=1e-6),
        )
        linear_layers = [module for module in self.modules() if isinstance(module, (nn.Linear, ExpertLinear))]
        for layer in (stem.proj, *linear_layers):
            fan_in = layer.in_features if isinstance(layer, ExpertLinear) else layer.weight[0].numel()
            lecun_normal_(layer.weight, fan_in)
            if layer.bias is not None:  # routers have none
                nn.init.zeros_(layer.bias)
        for block in blocks:
            if isinstance(block, SparseBlock):
                block.represent_equally()
        if isinstance(self.head.fc, nn.Linear):
            self.init_classifier(self.head.fc)

    def init_classifier(self, layer: nn.Linear) -> None:
        """Zeros, as in Mixer."""
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)

    def official_entry(self, name: str) -> OfficialEntry:
        """Under its own name: there are no authors' checkpoints, so what is loaded is a state dict of this model."""
        return OfficialEntry(name)

    def from_official(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict of this model as it is.

        Raises:
            CheckpointError: for one that has nothing of it.
        """
        if not self.state_dict().keys() & state.keys():
            raise CheckpointError(
                f"there are no authors' checkpoints of {self.name}; "
                "give a state dict of this model, or start from an MLP-Mixer with visionmlp.upcycle"
            )
        return super().from_official(state)


def _variant(name: str, config: SparseMLPConfig, params: int, macs: int) -> Variant:
    reconstruction = Published(source="reconstruction: no public code, widths not in the paper")
    return Variant(name=name, config=config, params=params, macs=macs, published=reconstruction)


_S = SparseMLPConfig(
    dim=512,
    depth=8,
    token_dim=256,
    channel_dim=2048,
    token_experts=4,
    token_expert_dim=128,
    channel_experts=4,
    channel_expert_dim=512,
)
_B = SparseMLPConfig(
    dim=768,
    depth=12,
    token_dim=384,
    channel_dim=3072,
    token_experts=8,
    token_expert_dim=96,
    channel_experts=8,
    channel_expert_dim=384,
)
_L = SparseMLPConfig(
    dim=1024,
    depth=24,
    token_dim=512,
    channel_dim=4096,
    sparse_blocks=4,
    token_experts=16,
    token_expert_dim=64,
    channel_experts=16,
    channel_expert_dim=256,
)
_TEST = SparseMLPConfig(
    num_classes=10,
    img_size=(32, 32),
    patch_size=8,
    dim=16,
    depth=4,
    token_dim=12,
    channel_dim=40,
    token_experts=2,
    token_expert_dim=6,
    channel_experts=3,
    channel_expert_dim=10,
)

# name, widths, parameters, multiply-accumulates (both of the training form; of experts, all places are counted)
VARIANTS = (
    _variant("sparsemlp_moe_s", _S, 17_874_968, 3_613_184_000),
    _variant("sparsemlp_moe_b", _B, 57_576_104, 11_527_550_976),
    _variant("sparsemlp_moe_l", _L, 198_749_544, 39_480_041_472),
    _variant("sparsemlp_moe_test", _TEST, 12_614, 163_296),
)

register_family(
    __name__,
    "Sparse-MLP (MoE)",
    SparseMLP,
    VARIANTS,
    {**INCEPTION, "crop_pct": 0.875},
)
