"""The backbone contract: timm's, written once for all families. A family fills in stem, blocks, norm and its config."""

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from visionmlp.errors import InvalidConfig, InvalidImageSize
from visionmlp.heads.pooled import AveragePool, ClassifierHead, Unpooled
from visionmlp.layers.affine import split_affine
from visionmlp.layers.fusible import Fusible
from visionmlp.models.official_layout import OfficialEntry
from visionmlp.ops.eager import in_eager_inference
from visionmlp.ops.layout import Layout, to_channels_first

InputSizes = Literal["fixed", "multiples", "any"]
"""Image sizes that a model takes: ``img_size`` alone, its multiples, or all that are not too small."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """What every family takes. Families add their own fields; each is read once, where the model is built."""

    num_classes: int = 1000
    """Outputs of the classifier; 0 leaves it out."""
    in_chans: int = 3
    """Channels of the input image."""
    img_size: tuple[int, int] = (224, 224)
    """Height and width, in pixels, that the token matrices are built for."""
    global_pool: str = "avg"
    """How positions become one vector: "avg", or "" for the unpooled map (needs num_classes=0)."""
    drop_rate: float = 0.0
    """Dropout before the classifier."""
    drop_path_rate: float = 0.0
    """Probability that a residual branch is skipped in training; families say how it grows with depth."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            self._check_field(field.name, field.type, getattr(self, field.name))
        for name in ("drop_rate", "drop_path_rate"):
            self.require(0.0 <= getattr(self, name) < 1.0, f"{name} must be in [0, 1), got {getattr(self, name)}")
        self.require(
            self.global_pool != "" or self.num_classes == 0, "global_pool='' leaves a map, so give num_classes=0"
        )

    def _check_field(self, name: str, kind: Any, value: Any) -> None:
        """Types, and the least value of every size and count."""
        if kind in (bool, str):
            self.require(isinstance(value, kind), f"{name} must be a {kind.__name__}, got {value!r}")
        elif kind is float:
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            self.require(number and math.isfinite(value), f"{name} must be a number, got {value!r}")
            self.require(value > 0 or not name.endswith("ratio"), f"{name} must be positive, got {value}")
        else:
            values = (value,) if kind is int else value
            least = 0 if name == "num_classes" else 1
            whole = isinstance(values, tuple) and all(type(v) is int for v in values)
            what = "an integer" if kind is int else "two integers" if name == "img_size" else "integers"
            self.require(whole and (name != "img_size" or len(values) == 2), f"{name} must be {what}, got {value!r}")
            if name != "kernel_sizes":  # has rules of its own
                self.require(min(values, default=least) >= least, f"{name} must be at least {least}, got {value}")

    @staticmethod
    def require(rule: bool, message: str) -> None:
        """Raise InvalidConfig with ``message`` unless ``rule`` holds."""
        if not rule:
            raise InvalidConfig(message)

    def require_multiple(self, divisor: int) -> None:
        """Raise InvalidImageSize unless both sides of ``img_size`` are multiples of ``divisor``."""
        if self.img_size[0] % divisor or self.img_size[1] % divisor:
            nearest = tuple(max(divisor, round(side / divisor) * divisor) for side in self.img_size)
            raise InvalidImageSize(
                f"img_size {size_text(self.img_size)} is not a multiple of {divisor}; "
                f"the nearest size that is: {size_text(nearest)}"
            )


_PART = 1 << 20
"""Elements of the largest map that a `MapStage` computes at once."""


class Stage(nn.Module):
    """Down-sampling (or none), then blocks of one width and resolution."""

    def __init__(self, blocks: Sequence[nn.Module], *, downsample: nn.Module | None = None) -> None:
        super().__init__()
        self.downsample = downsample if downsample is not None else nn.Identity()
        self.blocks = nn.Sequential(*blocks)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """A map to a map."""
        x = self.downsample(x)
        for block in self.blocks:
            x = self.run(block, x)
        return x

    def run(self, block: nn.Module, x: Tensor) -> Tensor:
        """One block, recomputed in the backward pass if checkpointing is on."""
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x, use_reentrant=False)  # type: ignore[return-value]
        return block(x)


class MapStage(Stage):
    """A `Stage` whose blocks compute batch-first: in eager inference a batch of large maps is computed in parts.

    A few maps and what is computed from them stay in the caches; a whole batch would be fresh memory in every block.
    """

    def forward(self, x: Tensor) -> Tensor:
        """A map to a map."""
        if self.training or not in_eager_inference(x) or x.numel() <= _PART:
            return super().forward(x)
        size = max(1, _PART * x.shape[0] // x.numel())
        return torch.cat([super(MapStage, self).forward(part) for part in x.split(size)])


class Backbone(nn.Module):
    """Stem, stages, norm, head under timm's contract.

    Takes (B, in_chans, H, W), values normalised with ``pretrained_cfg``'s mean and std.

    Args:
        name: variant, such as ``"repmlpnet_t224"``.
        config: the family's configuration that the parts were built from.
        layout: memory order of the maps between blocks.
        stem: image to map, at ``strides[0]``.
        stages: at least one; a single stage offers each of its blocks as a feature level, several offer their outputs.
        dims: channels of each stage.
        strides: pixels between neighbouring positions, for each stage.
        norm: over the channels of the last map.
        head: pool and classifier; ``None`` makes those of the configuration.
        input_sizes: image sizes that the model takes.
        least_side: pixels of the smallest side that leaves a map, for ``input_sizes="any"``.
        feature_norms: a norm for each feature level, as in the authors' dense-prediction code; none if empty.
    """

    pretrained_cfg: dict[str, Any]
    default_cfg: dict[str, Any]

    def __init__(
        self,
        *,
        name: str,
        config: BackboneConfig,
        layout: Layout,
        stem: nn.Module,
        stages: Sequence[Stage],
        dims: Sequence[int],
        strides: Sequence[int],
        norm: nn.Module,
        head: ClassifierHead | None = None,
        input_sizes: InputSizes = "fixed",
        least_side: int = 1,
        feature_norms: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__()
        self.name = name
        self.config = config
        self.layout: Layout = layout
        self.input_sizes: InputSizes = input_sizes
        self.least_side = least_side
        self.last_norm_folds = False
        """A deploy form whose classifier takes its last norm in, or would if it had one."""
        self.dims, self.strides = tuple(dims), tuple(strides)
        self.stem = stem
        self.stages = nn.ModuleList(stages)
        self.norm = norm
        self.head = head or ClassifierHead(
            self.dims[-1], config.num_classes, pool=self.build_pool(config.global_pool), drop_rate=config.drop_rate
        )
        self.feature_norms = nn.ModuleList(feature_norms)
        self.num_features = self.head_hidden_size = self.dims[-1]
        if len(stages) == 1:
            self.feature_points = [(0, j) for j in range(len(stages[0].blocks))]
        else:
            self.feature_points = [(i, len(stage.blocks) - 1) for i, stage in enumerate(stages)]
        self.feature_info = [
            {"module": f"stages.{i}.blocks.{j}", "num_chs": self.dims[i], "reduction": self.strides[i]}
            for i, j in self.feature_points
        ]

    @property
    def num_classes(self) -> int:
        """Outputs of the classifier."""
        return self.config.num_classes

    @property
    def in_chans(self) -> int:
        """Channels of the input image."""
        return self.config.in_chans

    @property
    def global_pool(self) -> str:
        """How positions become one vector."""
        return self.config.global_pool

    @property
    def size_step(self) -> int:
        """Pixels: where both sides of an image are multiples of it, no padding depends on its size."""
        return self.strides[-1]

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) to logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) to the last map in ``layout``, after the norm."""
        self.check_input(x)
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last map to logits (B, num_classes), or to pooled features (B, C) if ``pre_logits``."""
        return self.head(x, pre_logits=pre_logits)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: Literal["NCHW", "NHWC", "NLC"] = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Feature levels on the way, before down-sampling.

        Args:
            x: (B, in_chans, H, W).
            indices: levels to return; the last n for an int, all for None.
            norm: apply the final norm to the last level; only that one has its width. A model with ``feature_norms``
                applies those to its levels, and the final norm to none.
            stop_early: do not compute beyond the deepest level asked for.
            output_fmt: memory order of the returned levels.
            intermediates_only: return the levels alone, not ``(last map, levels)``.

        Raises:
            InvalidConfig: for an unknown ``output_fmt``.
        """
        if output_fmt not in ("NCHW", "NHWC", "NLC"):
            raise InvalidConfig(f"output_fmt must be NCHW, NHWC or NLC, got {output_fmt!r}")
        take = self.take_levels(indices)
        deepest = max(take)
        wanted = {self.feature_points[i] for i in take}
        self.check_input(x)
        x = self.stem(x)
        levels = []
        for i, stage in enumerate(self._stages()):
            x = stage.downsample(x)
            for j, block in enumerate(stage.blocks):
                x = stage.run(block, x)
                if (i, j) in wanted:
                    levels.append(to_channels_first(self._level_norm(i, norm)(x), self.layout))
                if stop_early and intermediates_only and (i, j) == self.feature_points[deepest]:
                    break
            if stop_early and intermediates_only and i == self.feature_points[deepest][0]:
                break
        if output_fmt != "NCHW":
            levels = [level.permute(0, 2, 3, 1) for level in levels]
        if output_fmt == "NLC":
            levels = [level.flatten(1, 2) for level in levels]
        return levels if intermediates_only else (self.norm(x), levels)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what is not needed for these feature levels; returns their absolute indices."""
        take = self.take_levels(indices)
        last_stage, last_block = self.feature_points[max(take)]
        self.stages = self.stages[: last_stage + 1].train(self.training)
        *_, last = self._stages()
        last.blocks = last.blocks[: last_block + 1].train(self.training)
        self.feature_norms = self.feature_norms[: last_stage + 1].train(self.training)
        self.feature_points = self.feature_points[: max(take) + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self._replace_classifier(0, "")
        return take

    def take_levels(self, indices: int | Sequence[int] | None) -> list[int]:
        """Absolute indices of feature levels; the last n for an int, all for None, -1 is the last.

        Raises:
            InvalidConfig: for none, or one that does not exist.
        """
        count = len(self.feature_points)
        if isinstance(indices, int):
            take = list(range(count - indices, count))
        else:
            take = [index + count if index < 0 else index for index in (range(count) if indices is None else indices)]
        if not take or not all(0 <= index < count for index in take):
            raise InvalidConfig(f"{self.name} has feature levels 0 to {count - 1}, got {indices}")
        return take

    def _level_norm(self, stage: int, norm: bool) -> nn.Module:
        if self.feature_norms:
            return self.feature_norms[stage]
        return self.norm if norm and stage == len(self.stages) - 1 else nn.Identity()

    def _stages(self) -> Iterator[Stage]:
        yield from cast("Iterator[Stage]", iter(self.stages))

    def check_input(self, x: Tensor) -> None:
        """Raise InvalidImageSize, naming sizes that work, or InvalidConfig for the wrong channels."""
        if x.dim() != 4 or x.shape[1] != self.in_chans:
            raise InvalidConfig(f"{self.name} takes (B, {self.in_chans}, H, W), got {tuple(x.shape)}")
        height, width = self.config.img_size
        given = (x.shape[2], x.shape[3])
        if self.input_sizes == "any":
            if min(given) < self.least_side:
                least = size_text((self.least_side, self.least_side))
                raise InvalidImageSize(f"{self.name} takes any size from {least} on, got {size_text(given)}")
        elif self.input_sizes == "multiples":
            if given[0] % height or given[1] % width:
                works = f"multiples of {size_text(self.config.img_size)}, such as {size_text((2 * height, 2 * width))}"
                raise InvalidImageSize(self._size_message(given, works))
        elif given != (height, width):
            raise InvalidImageSize(self._size_message(given, f"exactly {size_text(self.config.img_size)}"))

    def _size_message(self, given: tuple[int, int], works: str) -> str:
        return (
            f"{self.name} as built takes {works}, got {size_text(given)}; resize the images "
            f"or build the model with img_size (any multiple of {self.strides[-1]})"
        )

    def build_pool(self, global_pool: str) -> nn.Module:
        """The pooling module of a ``global_pool`` name."""
        if global_pool == "avg":
            return AveragePool(self.layout)
        if global_pool == "":
            return Unpooled(self.layout)
        raise InvalidConfig(f"global_pool must be 'avg' or '', got {global_pool!r}")

    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by one initialised as the authors do, and the pooling if ``global_pool`` is given.

        Raises:
            InvalidConfig: for a deploy form whose last norm is part of its classifier, or an impossible combination.
        """
        if self.last_norm_folds:
            raise InvalidConfig(
                f"this deploy form of {self.name} folds its last norm into the classifier; "
                "reset the classifier of the training form, then reparameterize it"
            )
        self._replace_classifier(num_classes, global_pool)

    def init_classifier(self, layer: nn.Linear) -> None:
        """Initialise a fresh classifier in place; PyTorch's default unless the authors do otherwise."""

    def _replace_classifier(self, num_classes: int, global_pool: str | None) -> None:
        config = dataclasses.replace(
            self.config,
            num_classes=num_classes,
            global_pool=self.config.global_pool if global_pool is None else global_pool,
        )
        like = next(self.parameters())
        if global_pool is not None and global_pool != self.config.global_pool:
            self.head.pool = self.build_pool(global_pool).to(like.device, like.dtype).train(self.training)
        self.head.reset(num_classes, like)
        if isinstance(self.head.fc, nn.Linear):
            self.init_classifier(self.head.fc)
        self.config = config

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only block inputs for the backward pass and recompute the rest: less memory, one more forward pass."""
        for stage in self._stages():
            stage.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Parameters that take no weight decay beside biases and vectors: none."""
        return set()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that sort parameters into layers, for layer-wise learning rates."""
        if coarse:
            return {"stem": r"^stem", "blocks": r"^stages\.(\d+)"}
        return {
            "stem": r"^stem",
            "blocks": [
                (r"^stages\.(\d+)\.downsample", (0,)),
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^norm", (99999,)),
            ],
        }


class FusibleBackbone(Backbone, Fusible):
    """The training form of a family: its classifier takes the last norm in, its blocks fuse by themselves."""

    @abstractmethod
    def official_entry(self, name: str) -> OfficialEntry:
        """Name and memory order in the authors' files of one of our state entries."""

    def official_constants(self) -> dict[str, Tensor]:
        """Entries of the authors' files that hold nothing learned and that this model does not need: none."""
        return {}

    def from_official(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict with the authors' names and shapes as one with ours; names that they do not have stay."""
        return self._renamed(state, self.official_entry)

    def timm_entry(self, name: str) -> OfficialEntry | None:
        """The same in the state dict of timm's own model of this network; ``None``, as timm has none."""
        del name
        return None

    def from_timm(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict of timm's own model as one with our names; names that it does not have stay."""
        return self._renamed(state, self.timm_entry)

    def compute_as_timm(self) -> None:
        """Compute what timm's own model does where that is not what the authors' code does: nowhere."""

    def _renamed(
        self, state: Mapping[str, Tensor], entry_of: Callable[[str], OfficialEntry | None]
    ) -> dict[str, Tensor]:
        ours = {entry.name: (name, entry.view) for name in self.state_dict() if (entry := entry_of(name))}
        converted = {}
        for theirs, value in state.items():
            name, view = ours.get(theirs, (theirs, None))
            converted[name] = value if view is None else view.read(value)
        return converted

    def to_official(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict of this model as the authors' code would save it; the inverse of `from_official`."""
        converted = {}
        for name, value in state.items():
            theirs, view = self.official_entry(name)
            converted[theirs] = view.write(value).contiguous()
        return converted | self.official_constants()

    def fused(self) -> Backbone:
        """A plain Backbone of the same parts; an affine last norm moves into the classifier behind the average.

        Its ``forward_features`` then returns the map before that norm; pooled features and ``norm=True`` lack it too.
        With ``num_classes=0`` the norm stays: deploy feature extractors that way.
        """
        norm, head = self.norm, self.head
        affine = not isinstance(norm, nn.Identity) and isinstance(split_affine(norm)[0], nn.Identity)
        if affine and isinstance(head.pool, AveragePool) and isinstance(head.fc, nn.Linear):
            _, scale, shift = split_affine(norm)
            norm, head = nn.Identity(), head.with_input_affine(scale, shift)
        deployed = Backbone(
            name=self.name,
            config=self.config,
            layout=self.layout,
            stem=self.stem,
            stages=list(self._stages()),
            dims=self.dims,
            strides=self.strides,
            norm=norm,
            head=head,
            input_sizes=self.input_sizes,
            least_side=self.least_side,
            feature_norms=list(self.feature_norms),
        )
        deployed.feature_points = list(self.feature_points)
        deployed.feature_info = list(self.feature_info)
        deployed.last_norm_folds = affine
        # what timm attaches to a model it has built
        own = set(deployed.__dict__)
        deployed.__dict__.update({key: value for key, value in self.__dict__.items() if key not in own})
        return deployed


def init_linear(module: nn.Module) -> None:
    """Start a linear layer as most authors do: truncated normal of deviation 0.02, zero bias; leave others alone."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def size_text(size: Sequence[int]) -> str:
    """``(224, 160)`` as ``224x160``."""
    return "x".join(str(side) for side in size)


def drop_path_rates(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Rates that grow linearly from 0 to ``rate`` over all blocks, grouped by stage."""
    last = max(sum(depths) - 1, 1)
    indices = iter(range(sum(depths)))
    return [[rate * next(indices) / last for _ in range(depth)] for depth in depths]
