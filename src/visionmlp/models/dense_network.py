"""Networks for dense prediction: the levels of a backbone, and a head on them; and how they are saved and loaded."""

import dataclasses
import importlib
import json
import os
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from visionmlp.errors import CheckpointError, InvalidConfig, UnknownModel, VisionMLPError, first_line
from visionmlp.files import require_utf8, whole_file
from visionmlp.layers.fusible import is_training_form, reparameterize
from visionmlp.models.backbone import Backbone
from visionmlp.models.dense import DenseFeatures
from visionmlp.models.metadata import LARGEST, METADATA_KEY, is_moderate, is_preprocessing, require_config
from visionmlp.models.official import check_fit, counted
from visionmlp.models.registry import create_model, variant
from visionmlp.models.wrappers import plain_names, unwrapped_to

_BUILDERS = {
    "segment": ("visionmlp.models.segmenter", "create_segmenter"),
    "detect": ("visionmlp.models.detector", "create_detector"),
}
"""Task to module and function that builds its network."""


class DenseNetwork(nn.Module):
    """Base of segmenters and detectors: feature levels, and what else the network was built with.

    Args:
        levels: of a backbone.
        options: keyword arguments of the function that built the network, as JSON knows them, without the backbone.
    """

    task: ClassVar[str]

    def __init__(self, levels: DenseFeatures, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.levels, self.options = levels, dict(options)

    @property
    def backbone(self) -> Backbone:
        """The model that the levels are of."""
        inner: Any = self.levels
        while not isinstance(inner, Backbone):
            inner = getattr(inner, "net", None) or inner.model
        return inner

    def no_weight_decay(self) -> set[str]:
        """Parameters of the backbone that take no weight decay; an optimizer adds all biases and vectors."""
        return {f"{self.backbone_name}.{name}" for name in self.backbone.no_weight_decay()}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that sort the backbone's parameters into layers, as in timm; all others are behind the last."""
        name = re.escape(self.backbone_name)

        def of_network(pattern: str) -> str:
            return pattern.replace("^", rf"^{name}\.", 1)

        return {
            kind: of_network(given)
            if isinstance(given, str)
            else [(of_network(pattern), suffix) for pattern, suffix in given]
            for kind, given in self.backbone.group_matcher(coarse).items()
        }

    @property
    def backbone_name(self) -> str:
        """Where it stands among the modules."""
        return next(name for name, module in self.named_modules() if module is self.backbone)

    @property
    def layout(self) -> Hashable:
        """What weights of the head mean: heads of different ones exchange none."""
        return self.options["head"]

    def official_name(self, name: str) -> str | None:
        """Name in mmseg's or mmdet's files of an entry of the state that is not the backbone's; None if it has none."""
        del name
        return None


def dense_backbone(backbone: Backbone | str, *, img_size: int | tuple[int, int] | None = None) -> Backbone:
    """The model that a network for dense prediction begins with.

    Args:
        backbone: is returned as it is; a name is built with fresh weights, without classifier, and with a norm on each
            level where the family's authors have one.
        img_size: side or (height, width) that a name is built for.

    Raises:
        UnknownModel: with the nearest names.
        InvalidConfig: for a deploy form, whose head could not be trained with it, or ``img_size`` beside a model.
    """
    if isinstance(backbone, str):
        fields = {field.name for field in dataclasses.fields(variant(backbone).config)}
        norms = {"feature_norms": True} if "feature_norms" in fields else {}
        return create_model(backbone, num_classes=0, img_size=img_size, **norms)
    if not isinstance(backbone, Backbone):
        raise InvalidConfig(f"the backbone must be a model of visionmlp or its name, got {type(backbone).__name__}")
    if img_size is not None:
        raise InvalidConfig(f"img_size is for a backbone by name; build {backbone.name} with it")
    if backbone.form == "deploy":
        raise InvalidConfig(
            f"this {backbone.name} is a deploy form; give its training form, and reparameterize the whole network"
        )
    return backbone


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenseInfo:
    """What a checkpoint of a `DenseNetwork` says about itself beside its weights."""

    task: str
    """``segment`` or ``detect``."""
    model: str
    """Variant name of the backbone."""
    config: Mapping[str, Any]
    """Its configuration."""
    options: Mapping[str, Any]
    """See `DenseNetwork`."""
    form: Literal["training", "deploy"]
    """Whether convolution branches and norms are separate or folded."""
    class_names: list[str] | None = None
    """Names of the classes, in order."""
    preprocessing: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """``mean`` and ``std`` of the channels, and what else the task keeps, such as how images are resized."""
    source: str = ""
    """Where the weights come from."""


def save_dense(
    path: str | os.PathLike[str],
    network: nn.Module,
    *,
    class_names: Sequence[str] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
) -> None:
    """Write the weights of a `DenseNetwork`, beside the target first and then renamed.

    Args:
        path: ``.safetensors`` file.
        network: training or deploy form, or what ``torch.compile`` and its like made of it.
        class_names: names of the classes, in order, one for each.
        preprocessing: see `DenseInfo`; JSON values.

    Raises:
        CheckpointError: if the file cannot be written, or the network was changed so that nothing could load it.
    """
    path, network = Path(path), unwrapped_to(DenseNetwork, network)
    metadata = {
        "task": network.task,
        "model": network.backbone.name,
        "config": dataclasses.asdict(network.backbone.config),
        "options": network.options,
        "form": "training" if is_training_form(network) else "deploy",
        "class_names": None if class_names is None else list(class_names),
        "preprocessing": dict(preprocessing or {}),
    }
    state = network.state_dict()
    try:
        text = json.dumps(metadata)
        info = _info(text, str(path), tensors=len(state))
        twin = network_on_meta(info).state_dict()
    except (ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path} was not written, since nothing could load it: {reason}") from error
    tensors: dict[str, Tensor] = {}
    written: set[int] = set()
    for name, value in counted(plain_names(state, info.model), twin).items():
        value = value.detach().cpu().contiguous()
        address = value.untyped_storage().data_ptr()
        tensors[name] = value.clone() if address in written else value
        written.add(address)
    check_fit(f"a {info.task} network of {info.model}", twin, tensors, "the network as it is now")
    with whole_file(path) as partial:
        save_file(tensors, partial, metadata={METADATA_KEY: text})


def load_dense(path: str | os.PathLike[str]) -> tuple[DenseNetwork, DenseInfo]:
    """Read a checkpoint that `save_dense` wrote, in the form it was saved in, in evaluation mode.

    Args:
        path: the file, or a run folder with ``model.safetensors``.

    Raises:
        CheckpointError: if the file is missing, truncated or not one of ours, or holds a classifier.
        CheckpointMismatch: if it holds other tensors than its network has.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / "model.safetensors").is_file():
            raise CheckpointError(f"{path} is no run folder with a finished evaluation: it has no model.safetensors")
        path = path / "model.safetensors"
    if not path.is_file():
        raise CheckpointError(f"no checkpoint file {path}")
    require_utf8(path, CheckpointError)
    try:
        with safe_open(path, framework="pt") as archive:
            text = (archive.metadata() or {}).get(METADATA_KEY)
            # copies: in a file's memory tensors are not aligned, and products of such round in another order
            state = {name: archive.get_tensor(name).clone() for name in archive.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} is truncated or not a safetensors file") from error
    if text is None:
        raise CheckpointError(
            f"{path} does not say which network it holds; visionmlp.load_dense reads save_dense's files"
        )
    try:
        info = _info(text, str(path), tensors=len(state))
        twin = network_on_meta(info)
        own = twin.state_dict()
        state = counted(plain_names(state, str(path)), own)
        # before memory is taken for them: a damaged file names sizes of any order
        check_fit(f"a {info.task} network of {info.model}", own, state, str(path))
        _require(sum(buffer.numel() for buffer in twin.buffers()) <= LARGEST + sum(map(Tensor.numel, state.values())))
        network = _built(info)
    except CheckpointError:
        raise
    except _Damaged as error:
        raise CheckpointError(f"{path} has damaged metadata: {error}") from error
    except (VisionMLPError, TypeError, ValueError, ArithmeticError, RuntimeError, MemoryError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path} was written for a network that this version cannot build: {reason}") from error
    network.load_state_dict(state, assign=True)
    return network, info


def is_dense(path: str | os.PathLike[str]) -> bool:
    """Whether a file says that `save_dense` wrote it."""
    path = Path(path)
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    try:
        with safe_open(path, framework="pt") as archive:
            return "options" in json.loads((archive.metadata() or {}).get(METADATA_KEY, "{}"))
    except (OSError, SafetensorError, ValueError, RecursionError, TypeError):
        return False


class _Damaged(ValueError):
    """Metadata that `save_dense` does not write."""


def _require(rule: bool, name: str = "config") -> None:
    if not rule:
        raise _Damaged(f"its {name} has no value that can be")


def network_on_meta(info: DenseInfo) -> DenseNetwork:
    """A network without memory, in evaluation mode."""
    with torch.device("meta"):
        return _built(info)


def _built(info: DenseInfo) -> DenseNetwork:
    """A network with other weights, in evaluation mode."""
    module, function = _BUILDERS[info.task]
    create: Callable[..., DenseNetwork] = getattr(importlib.import_module(module), function)
    with torch.random.fork_rng(devices=[]):
        network = create(create_model(info.model, **info.config), **info.options).eval()
    return network if info.form == "training" else cast("DenseNetwork", reparameterize(network))


def _info(text: str, source: str, *, tensors: int) -> DenseInfo:
    """What a checkpoint says.

    Args:
        text: JSON.
        source: file.
        tensors: how many it holds; no network has more blocks.

    Raises:
        CheckpointError: for a classifier.
        _Damaged: for a value that `save_dense` does not write, naming it.
        UnknownModel: for a model that does not exist.
    """
    try:
        fields: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _Damaged(f"it is no JSON, {first_line(error)}") from error
    _require(isinstance(fields, dict) and isinstance(fields.get("model"), str), "model")
    if "options" not in fields:
        raise CheckpointError(f"{source} holds a classifier, {fields['model']}; load it with visionmlp.load_model")
    for name in ("config", "options", "preprocessing"):
        _require(isinstance(fields.get(name), dict), name)
    _require(isinstance(fields.get("task"), str) and fields["task"] in _BUILDERS, "task")
    _require(fields.get("form") in ("training", "deploy"), "form")
    try:
        require_config(fields["model"], fields["config"], tensors=tensors)
    except UnknownModel:  # a ValueError too
        raise
    except ValueError as error:
        raise _Damaged(str(error)) from error
    for name, value in fields["options"].items():
        _require(is_moderate(value), name)
    for name, value in fields["preprocessing"].items():
        _require(is_preprocessing(name, value), name)
    names, count = fields.get("class_names"), fields["options"].get("num_classes")
    of_all = isinstance(names, list) and all(isinstance(name, str) for name in names) and len(names) == count
    _require(names is None or of_all, "class_names")
    known = {field.name for field in dataclasses.fields(DenseInfo) if field.name != "source"}
    return DenseInfo(**{name: value for name, value in fields.items() if name in known}, source=source)
