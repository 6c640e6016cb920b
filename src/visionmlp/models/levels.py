"""The feature levels of a backbone, as timm's wrappers ask for them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, cast

from timm.models import FeatureDictNet
from torch import Tensor, nn

from visionmlp.errors import InvalidConfig
from visionmlp.models.image_sizes import CheckedImages, ImageRule
from visionmlp.models.stage import Stage
from visionmlp.ops.layout import Layout, to_channels_first


class LevelledBackbone(nn.Module, ABC):
    """Stem, stages and norm, with feature levels on the way.

    A single stage offers each of its blocks as a level, several stages offer their outputs.

    Args:
        name: variant, such as ``"repmlpnet_t224"``.
        layout: memory order of the maps between blocks.
        stem: image to map, at ``strides[0]``.
        stages: at least one.
        dims: channels of each stage.
        strides: pixels between neighbouring positions, for each stage.
        feature_norms: a norm for each level; none if empty.
        norm: over the channels of the last map.
    """

    def __init__(
        self,
        *,
        name: str,
        layout: Layout,
        stem: nn.Module,
        stages: Sequence[Stage],
        dims: Sequence[int],
        strides: Sequence[int],
        feature_norms: Sequence[nn.Module],
        norm: nn.Module,
    ) -> None:
        super().__init__()
        self.name = name
        self.layout: Layout = layout
        self.dims, self.strides = tuple(dims), tuple(strides)
        self.stem = stem
        self.stages = nn.Sequential(*stages)
        # before norm and head: timm takes the last two parameters of a model for its classifier
        self.feature_norms = nn.ModuleList(feature_norms)
        self.norm = norm
        self.num_features = self.head_hidden_size = self.dims[-1]
        if len(stages) == 1:
            self.feature_points = [(0, j) for j in range(len(stages[0].blocks))]
            modules = [f"stages.0.blocks.{j}" for _, j in self.feature_points]
        else:
            self.feature_points = [(i, len(stage.blocks) - 1) for i, stage in enumerate(stages)]
            modules = [f"stages.{i}" for i, _ in self.feature_points]
        self.feature_info = [
            {"module": module, "num_chs": self.dims[i], "reduction": self.strides[i]}
            for module, (i, _) in zip(modules, self.feature_points, strict=True)
        ]
        self.is_pruned = False
        """Whether parts beyond the last feature level asked for are gone."""
        self.resting: tuple[str, ...] = ()
        """Parts that stay in evaluation mode, see `visionmlp.freeze`."""

    def train(self, mode: bool = True) -> "LevelledBackbone":
        """Training or evaluation mode, in which frozen parts stay."""
        super().train(mode)
        for name in self.resting:
            self.get_submodule(name).eval()
        return self

    @property
    @abstractmethod
    def image_rule(self) -> ImageRule:
        """The images that the model takes."""

    @abstractmethod
    def drop_classifier(self) -> None:
        """Leave the head no parameters, whatever the form; the map stays unpooled."""

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
            norm: apply the final norm to the levels of the last stage; only those have its width. A model with
                ``feature_norms`` applies those to its levels, and the final norm to none.
            stop_early: do not compute beyond the deepest level asked for; the last map is then that level, without the
                final norm unless it is the last one.
            output_fmt: memory order of the returned levels.
            intermediates_only: return the levels alone, not ``(last map, levels)``.

        Raises:
            InvalidConfig: for an unknown ``output_fmt``.
        """
        if output_fmt not in ("NCHW", "NHWC", "NLC"):
            raise InvalidConfig(f"output_fmt must be NCHW, NHWC or NLC, got {str(output_fmt)!r}")
        take = self.take_levels(indices)
        wanted = {self.feature_points[i] for i in take}
        end = self.feature_points[max(take) if stop_early else -1]
        self.image_rule.check(x)
        x = self.stem(x)
        levels = []
        for point, block, stage in self._blocks():
            x = stage.run(block, stage.downsample(x) if point[1] == 0 else x)
            if point in wanted:
                levels.append(to_channels_first(self._level_norm(point[0], norm)(x), self.layout))
            if point == end:
                break
        if output_fmt != "NCHW":
            levels = [level.permute(0, 2, 3, 1) for level in levels]
        if output_fmt == "NLC":
            levels = [level.flatten(1, 2) for level in levels]
        if intermediates_only:
            return levels
        return (self.norm(x) if end == self.feature_points[-1] else x), levels

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what is not needed for these feature levels; returns their absolute indices.

        The final norm goes with its stage.
        """
        take = self.take_levels(indices)
        last_stage, last_block = self.feature_points[max(take)]
        beyond = last_stage + 1 < len(self.stages)
        self.stages = self.stages[: last_stage + 1].train(self.training)
        last = self._stages()[-1]
        last.blocks = last.blocks[: last_block + 1].train(self.training)
        self.feature_norms = self.feature_norms[: last_stage + 1].train(self.training)
        self.is_pruned = self.is_pruned or prune_norm or max(take) + 1 < len(self.feature_points)
        self.feature_points = self.feature_points[: max(take) + 1]
        self.num_features = self.head_hidden_size = self.dims[last_stage]
        if prune_norm or beyond:
            self.norm = nn.Identity().train(self.training)
        if prune_head or beyond:
            self.drop_classifier()
        left = dict(self.named_modules())
        self.resting = tuple(name for name in self.resting if name in left)
        self.train(self.training)
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

    def _stages(self) -> list[Stage]:
        return cast("list[Stage]", list(self.stages))

    def _blocks(self) -> list[tuple[tuple[int, int], nn.Module, Stage]]:
        # a list: compilers cannot leave a generator early
        return [
            ((i, j), block, stage) for i, stage in enumerate(self._stages()) for j, block in enumerate(stage.blocks)
        ]


class ChainedBackbone(nn.Module):
    """The same modules under one roof, in the order in which they run: what timm rebuilds as a chain of children."""

    def __init__(self, model: LevelledBackbone) -> None:
        super().__init__()
        self.images = CheckedImages(model.image_rule)
        self.stem = model.stem
        self.feature_info = [dict(info) for info in model.feature_info]
        for info in self.feature_info:
            part = model.get_submodule(str(info["module"]))
            info["module"] = str(info["module"]).replace(".", "_")
            self.add_module(info["module"], part)


def chained(cls: type[FeatureDictNet], model: LevelledBackbone, **options: Any) -> FeatureDictNet:
    """timm's ``feature_cls="list"`` or ``"dict"`` of a backbone; its levels may lie deeper than these reach."""
    return cls(ChainedBackbone(model), **options)
