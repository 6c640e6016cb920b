"""What Vision Permutator and DynaMixer share: stages that mostly keep their resolution, for a fixed image size.

Stem and down-sampling are convolutions whose stride is their kernel, with a bias and without a norm.
Layout (B, H, W, C).
"""

import dataclasses
import re
from collections.abc import Callable

from torch import nn

from visionmlp.layers.patch_embed import PatchEmbed
from visionmlp.models.backbone import FusibleBackbone
from visionmlp.models.config import BackboneConfig
from visionmlp.models.stage import MapStage, drop_path_rates, init_linear
from visionmlp.ops.resize import Grid


@dataclasses.dataclass(frozen=True, kw_only=True)
class AxialConfig(BackboneConfig):
    """Stages, and what both families' mixing along rows and columns takes."""

    patch_size: int = 7
    """Side of a patch in pixels."""
    dims: tuple[int, ...] = (192, 384, 384, 384)
    """Channels of each stage."""
    blocks: tuple[int, ...] = (4, 3, 8, 3)
    """Blocks of each stage."""
    segments: tuple[int, ...] = (32, 16, 16, 16)
    """Segments that each stage cuts the channels of a token into."""
    downsample_before: tuple[int, ...] = (1,)
    """Stages, counted from 0, that open by halving their map; the others keep the width of the stage before them."""
    mlp_ratio: float = 3.0
    """Hidden width of the channel MLP over its width."""
    reweight: bool = True
    """Whether the branches are summed with weights computed from them, or just summed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        count = len(self.blocks)
        for name in ("dims", "segments"):
            given = getattr(self, name)
            self.require(
                len(given) == count >= 1,
                f"{name} and blocks need one entry for each stage, got {given} and {self.blocks}",
            )
        self.require(
            self.downsample_before == tuple(sorted(set(self.downsample_before) & set(range(1, count)))),
            f"downsample_before must list stages from 1 to {count - 1} in order, got {self.downsample_before}",
        )
        for i in range(1, count):
            self.require(
                i in self.downsample_before or self.dims[i] == self.dims[i - 1],
                f"dims may change where a stage down-samples only; make dims[{i}] = {self.dims[i - 1]} "
                f"or add {i} to downsample_before",
            )
        for dim, segments in zip(self.dims, self.segments, strict=True):
            self.require(dim % segments == 0, f"{dim} channels cannot be cut into {segments} segments; give a divisor")
        self.require(
            not self.reweight or min(self.dims) >= 4,
            f"reweight needs at least 4 channels, got dims {self.dims}; widen them or give reweight=False",
        )
        self.require_multiple(self.strides[-1])

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels between neighbouring positions, for each stage."""
        halvings = [sum(d <= i for d in self.downsample_before) for i in range(len(self.blocks))]
        return tuple(self.patch_size << count for count in halvings)

    def grid(self, stage: int) -> Grid:
        """Rows and columns of a stage's map."""
        return self.img_size[0] // self.strides[stage], self.img_size[1] // self.strides[stage]


class AxialBackbone(FusibleBackbone):
    """Patch embedding, stages, LayerNorm, average, classifier."""

    config: AxialConfig

    def __init__(self, name: str, config: AxialConfig, make_block: Callable[[int, float], nn.Module]) -> None:
        """``make_block(stage, drop_path_rate)`` builds a block of a stage."""
        dims = config.dims
        stages = []
        for i, rates in enumerate(drop_path_rates(config.drop_path_rate, config.blocks)):
            downsample = None
            if i in config.downsample_before:
                downsample = PatchEmbed(dims[i - 1], dims[i], 2, layout="BHWC", input_layout="BHWC")
            stages.append(MapStage([make_block(i, rate) for rate in rates], downsample=downsample))
        super().__init__(
            name=name,
            config=config,
            layout="BHWC",
            stem=PatchEmbed(config.in_chans, dims[0], config.patch_size, layout="BHWC"),
            stages=stages,
            dims=dims,
            norm=nn.LayerNorm(dims[-1]),
        )
        # convolutions keep PyTorch's default, as in the authors' code
        self.apply(init_linear)

    def init_classifier(self, layer: nn.Linear) -> None:
        """Truncated normal of deviation 0.02, zero bias, like every other linear layer."""
        init_linear(layer)

    def official_name(self, name: str) -> str:
        """Name in the authors' files, where stages and down-samplings share one list; their mixers keep our names."""

        def place(match: re.Match[str]) -> str:
            stage = int(match[1])
            index = stage + sum(d <= stage for d in self.config.downsample_before)
            return f"network.{index - 1}." if match[2] == "downsample" else f"network.{index}."

        name = re.sub(r"^stages\.(\d+)\.(blocks|downsample)\.", place, name)
        return name.replace("stem.", "patch_embed.").replace("head.fc.", "head.")
