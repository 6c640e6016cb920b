"""What a checkpoint of ours says about itself beside its weights."""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any, Literal

from visionmlp.errors import CheckpointError
from visionmlp.models.backbone import Backbone
from visionmlp.models.registry import variant

METADATA_KEY = "visionmlp"
"""Name of the metadata in a file."""

LARGEST = 1 << 24
"""Of all sizes and counts in a configuration; building a larger model would take hours before it failed."""


_INTERPOLATIONS = ["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]
"""timm's names."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """What a checkpoint says about itself beside its weights."""

    model: str
    """Variant name."""
    form: Literal["training", "deploy"]
    """Whether its convolution branches and norms are separate or folded."""
    class_names: list[str] | None = None
    """Names of the classifier's outputs, in order."""
    preprocessing: dict[str, Any] | None = None
    """``input_size``, ``mean``, ``std``, ``interpolation`` and ``crop_pct`` for ``timm.data.create_transform``, and
    ``exif_orientation`` where it is off; see `visionmlp.data.Preprocessing`."""
    network: str | None = None
    """Which of the networks of its training it is, such as ``teacher``, where there were several."""
    source: str = "fresh weights"
    """Where the weights come from."""


def default_preprocessing(model: Backbone) -> dict[str, Any]:
    """The evaluation preprocessing of the published weights, at the size that the model was built for."""
    cfg = model.pretrained_cfg
    return {key: cfg[key] for key in ("input_size", "mean", "std", "interpolation", "crop_pct")}


def read_metadata(text: str, source: str, *, tensors: int) -> tuple[CheckpointInfo, dict[str, Any]]:
    """What a checkpoint says, with the fields of its model's configuration.

    Args:
        text: JSON.
        source: file.
        tensors: how many it holds; no model has more blocks.

    Raises:
        ValueError: for a value that `save_checkpoint` does not write, naming it.
        VisionMLPError: for a model that does not exist, or a network with another head.
    """
    try:
        metadata = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is too deep") from error
    name, config = (metadata.get(key) if isinstance(metadata, dict) else None for key in ("model", "config"))
    if not isinstance(name, str) or not isinstance(config, dict):
        raise ValueError("it names no model with its configuration")
    if "options" in metadata:
        raise CheckpointError(
            f"{source} holds a network for dense prediction ({metadata.get('task')} on {name}), not a classifier; "
            "load it with visionmlp.load_dense"
        )
    require_config(name, config, tensors=tensors)
    _require(metadata.get("form") in ("training", "deploy"), "form")
    names, preprocessing = metadata.get("class_names"), metadata.get("preprocessing")
    _require(names is None or (_is_list_of(names, str) and len(names) == config.get("num_classes")), "class_names")
    _require(preprocessing is None or isinstance(preprocessing, dict), "preprocessing")
    for key, value in (preprocessing or {}).items():
        _require(is_preprocessing(key, value), f"preprocessing: {key}")
    form: Literal["training", "deploy"] = metadata["form"]
    network = metadata.get("network")
    _require(network is None or isinstance(network, str), "network")
    info = CheckpointInfo(
        model=name, form=form, class_names=names, preprocessing=preprocessing, network=network, source=source
    )
    return info, config


def require_config(name: str, config: Mapping[str, Any], *, tensors: int) -> None:
    """Raise ValueError for a configuration that no checkpoint has, before anything is built by it.

    Args:
        name: of the variant.
        config: fields and values.
        tensors: of the checkpoint.

    Raises:
        VisionMLPError: for a model that does not exist.
    """
    known = {field.name for field in dataclasses.fields(variant(name).config)}
    _require(config.keys() <= known, "config")
    for key, value in config.items():
        _require(is_moderate(value), key)
    depths = config.get("blocks", config.get("depth", 1))
    depths = depths if isinstance(depths, list) else [depths]
    _require(all(isinstance(depth, int) for depth in depths) and sum(depths) <= tensors, "blocks or depth")


def is_moderate(value: Any) -> bool:
    """Whether a value has no number, alone or in a list, that only a network of absurd size has."""
    sizes = value if isinstance(value, list) else [value]
    return all(size <= LARGEST for size in sizes if isinstance(size, int))


def _require(rule: bool, key: str) -> None:
    if not rule:
        raise ValueError(f"its {key} has no value that can be")


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(type(item) is kind for item in value)


def is_preprocessing(key: str, value: Any) -> bool:
    """Whether a value of ``preprocessing`` is one that it can have."""
    if key == "input_size":
        return _is_list_of(value, int) and len(value) == 3 and all(0 < side < 1 << 20 for side in value)
    if key in ("mean", "std"):
        return isinstance(value, list) and all(_is_number(item) for item in value) and (key == "mean" or all(value))
    if key == "crop_pct":
        return _is_number(value) and 0 < value <= 10
    if key == "exif_orientation":
        return isinstance(value, bool)
    return key != "interpolation" or value in _INTERPOLATIONS


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
