"""The backbone contract: timm's, written once for all families. A family fills in stem, blocks, norm and its config."""

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

import torch
from timm.layers import get_notrace_functions
from torch import Tensor, fx, nn

from visionmlp.errors import CheckpointMismatch, InvalidConfig
from visionmlp.heads.pooled import AveragePool, ClassifierHead, Unpooled
from visionmlp.layers.affine import split_affine
from visionmlp.layers.fusible import Fusible, reparameterize
from visionmlp.models.config import BackboneConfig
from visionmlp.models.image_sizes import ImageRule, InputSizes
from visionmlp.models.levels import LevelledBackbone
from visionmlp.models.official_layout import OfficialEntry
from visionmlp.models.stage import Stage
from visionmlp.ops.layout import Layout

Form = Literal["training", "deploy"]
"""Whether convolution branches and norms are separate or folded."""


class Backbone(LevelledBackbone):
    """Stem, stages, norm, head under timm's contract.

    Takes (B, in_chans, H, W), values normalised with ``pretrained_cfg``'s mean and std.

    Args:
        name: variant, such as ``"repmlpnet_t224"``.
        config: the family's configuration that the parts were built from.
        layout: memory order of the maps between blocks.
        stem: image to map, at ``strides[0]``.
        stages: at least one; a single stage offers each of its blocks as a feature level, several offer their outputs.
        dims: channels of each stage.
        norm: over the channels of the last map.
        head: pool and classifier; ``None`` makes those of the configuration.
        input_sizes: image sizes that the model takes.
        least_side: pixels of the smallest side that leaves a map, for ``input_sizes="any"``.
        feature_norms: a norm for each feature level, as in the authors' dense-prediction code; none if empty.
    """

    form: Form = "deploy"
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
        norm: nn.Module,
        head: ClassifierHead | None = None,
        input_sizes: InputSizes = "fixed",
        least_side: int = 1,
        feature_norms: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__(
            name=name,
            layout=layout,
            stem=stem,
            stages=stages,
            dims=dims,
            strides=config.strides,
            feature_norms=feature_norms,
            norm=norm,
        )
        self.config = config
        self.input_sizes: InputSizes = input_sizes
        self.least_side = least_side
        self.last_norm_folds = False
        """A deploy form whose classifier takes its last norm in, or would if it had one."""
        # what timm's tools ask for: the memory order of maps, and the dimension of their channels
        self.output_fmt = "NHWC" if layout == "BHWC" else "NCHW"
        self.feature_dim = -1 if layout == "BHWC" else 1
        self.head = head or ClassifierHead(
            self.dims[-1], config.num_classes, pool=self.build_pool(config.global_pool), drop_rate=config.drop_rate
        )

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

    @property
    def image_rule(self) -> ImageRule:
        """The images that the model takes."""
        return ImageRule(
            name=self.name,
            in_chans=self.in_chans,
            img_size=self.config.img_size,
            input_sizes=self.input_sizes,
            least_side=self.least_side,
            stride=self.strides[-1],
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) to logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) to the last map in ``layout``, after the norm."""
        self.image_rule.check(x)
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last map to logits (B, num_classes), or to pooled features (B, C) if ``pre_logits``."""
        return self.head(x, pre_logits=pre_logits)

    def __prepare_scriptable__(self) -> nn.Module:
        """What ``torch.jit.script`` compiles: the operations of a symbolic trace, in the mode that the model is in."""
        tracer = fx.Tracer(autowrap_functions=tuple(get_notrace_functions()))
        return fx.GraphModule(self, tracer.trace(self), type(self).__name__).train(self.training)

    def build_pool(self, global_pool: str) -> nn.Module:
        """The pooling module of a ``global_pool`` name."""
        if global_pool == "avg":
            return AveragePool(self.layout)
        if global_pool == "":
            return Unpooled()
        raise InvalidConfig(f"global_pool must be 'avg' or '', got {global_pool!r}")

    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by one initialised as the authors do, and the pooling if ``global_pool`` is given.

        A classifier needs a pooled map: where there is no pooling, it brings back the average.

        Raises:
            InvalidConfig: for a deploy form whose last norm is part of its classifier, or an impossible combination.
        """
        if self.last_norm_folds:
            raise InvalidConfig(
                f"this deploy form of {self.name} folds its last norm into the classifier; "
                "reset the classifier of the training form, then reparameterize it"
            )
        self._replace_classifier(num_classes, global_pool)

    def drop_classifier(self) -> None:
        """Leave the head no parameters, whatever the form; the map stays unpooled."""
        self.head.dim = self.num_features
        self._replace_classifier(0, "")

    def init_classifier(self, layer: nn.Linear) -> None:
        """Initialise a fresh classifier in place; PyTorch's default unless the authors do otherwise."""

    def _replace_classifier(self, num_classes: int, global_pool: str | None) -> None:
        if global_pool is None:
            global_pool = "avg" if num_classes > 0 and self.config.global_pool == "" else self.config.global_pool
        config = dataclasses.replace(self.config, num_classes=num_classes, global_pool=global_pool)
        like = next(self.parameters())
        if global_pool != self.config.global_pool:
            self.head.pool = self.build_pool(global_pool).to(like.device, like.dtype).train(self.training)
        self.head.reset(num_classes, like)
        if isinstance(self.head.fc, nn.Linear):
            self.init_classifier(self.head.fc)
        self.config = config

    def factory_args(self) -> dict[str, Any]:
        """Arguments with which ``timm.create_model(self.name, ...)`` builds this model in its form, with fresh weights.

        Rates of dropout and drop-path are not among them: they belong to a training.

        Raises:
            InvalidConfig: for a model that was cut down to its feature levels.
        """
        if self.is_pruned:
            raise InvalidConfig(f"no arguments build what is left of {self.name}; save the model before it is pruned")
        values = {field.name: getattr(self.config, field.name) for field in dataclasses.fields(self.config)}
        values = {name: value for name, value in values.items() if not name.endswith(("drop_rate", "drop_path_rate"))}
        return {**values, "form": self.form} if self.form == "deploy" else values

    @property
    def _model_args(self) -> dict[str, Any]:
        """What timm saves beside the weights."""
        return self.factory_args()

    @_model_args.setter
    def _model_args(self, given: dict[str, Any]) -> None:
        """timm notes here what its factory was given; the configuration knows that and all later changes."""

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only block inputs for the backward pass and recompute the rest: less memory, one more forward pass."""
        for stage in self._stages():
            stage.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Parameters that take no weight decay: all but the matrices and kernels of products."""
        return {
            name
            for name, value in self.named_parameters()
            if value.dim() < 2 or name.rpartition(".")[2] not in ("weight", "fc3")
        }

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that sort parameters into layers, for layer-wise learning rates."""
        if coarse:
            return {"stem": r"^stem", "blocks": r"^stages\.(\d+)"}
        return {
            "stem": r"^stem",
            "blocks": [
                (r"^stages\.(\d+)\.downsample", (0,)),
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                # with the layer before them
                (r"^feature_norms\.(\d+)", (99999,)),
                (r"^norm", (99999,)),
            ],
        }


def deploy_mismatch(label: str, name: str) -> CheckpointMismatch:
    """What a training form answers to the state of its deploy form."""
    return CheckpointMismatch(
        f"{label} is a deploy form of {name}, whose branches and norms are merged for good; "
        "give the checkpoint of its training form"
    )


class FusibleBackbone(Backbone, Fusible):
    """The training form of a family: its classifier takes the last norm in, its blocks fuse by themselves."""

    form: Form = "training"

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

    def is_deploy_state(self, state: Collection[str]) -> bool:
        """Whether a state dict has the names of this model's deploy form rather than its own, its classifier aside."""

        def parts(names: Collection[str]) -> set[str]:
            return {name for name in names if not name.startswith("head.fc.")}

        if parts(state) == parts(self.state_dict()):
            return False
        with torch.device("meta"):
            twin = type(self)(self.name, self.config)  # type: ignore[call-arg] (what a family's class is made of)
            return parts(state) == parts(reparameterize(twin.eval()).state_dict())

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """As PyTorch does; loosely, it would load the state of a deploy form as one with gaps."""
        if self.is_deploy_state([name.removeprefix(prefix) for name in state_dict if name.startswith(prefix)]):
            raise deploy_mismatch("the state dict", self.name)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

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
            stages=self._stages(),
            dims=self.dims,
            norm=norm,
            head=head,
            input_sizes=self.input_sizes,
            least_side=self.least_side,
            feature_norms=list(self.feature_norms),
        )
        deployed.feature_points = list(self.feature_points)
        deployed.feature_info = list(self.feature_info)
        deployed.num_features = deployed.head_hidden_size = self.num_features
        deployed.last_norm_folds, deployed.is_pruned = affine, self.is_pruned
        # what timm attaches to a model it has built
        own = vars(deployed)
        own.update({key: value for key, value in vars(self).items() if key not in own})
        return deployed
