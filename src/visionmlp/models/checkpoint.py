"""Our checkpoints: safetensors that say which model they hold, in training or deploy form."""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from visionmlp.errors import CheckpointError, CheckpointMismatch, InvalidConfig, VisionMLPError
from visionmlp.files import whole_file
from visionmlp.layers.fusible import is_training_form, reparameterize
from visionmlp.models.backbone import Backbone
from visionmlp.models.official import load_official, load_strictly, resize_tokens
from visionmlp.models.registry import create_model, is_model, variant

_METADATA_KEY = "visionmlp"


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
    source: str = "fresh weights"
    """Where the weights come from."""


def default_preprocessing(model: Backbone) -> dict[str, Any]:
    """The evaluation preprocessing of the published weights, at the size that the model was built for."""
    cfg = model.pretrained_cfg
    return {key: cfg[key] for key in ("input_size", "mean", "std", "interpolation", "crop_pct")}


def save_checkpoint(
    path: str | os.PathLike[str],
    model: Backbone,
    *,
    class_names: Sequence[str] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
) -> None:
    """Write weights, beside the target first and then renamed, so that a crash leaves the old file.

    Args:
        path: ``.safetensors`` file.
        model: training or deploy form.
        class_names: names of the classifier's outputs.
        preprocessing: see `CheckpointInfo`; ``None`` is that of the published weights.

    Raises:
        CheckpointError: if the file cannot be written.
    """
    path = Path(path)
    metadata = {
        "model": model.name,
        "config": dataclasses.asdict(model.config),
        "form": "training" if is_training_form(model) else "deploy",
        "class_names": list(class_names) if class_names is not None else None,
        "preprocessing": dict(preprocessing if preprocessing is not None else default_preprocessing(model)),
    }
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with whole_file(path) as partial:
        save_file(tensors, partial, metadata={_METADATA_KEY: json.dumps(metadata)})


def load_checkpoint(path: str | os.PathLike[str]) -> tuple[Backbone, CheckpointInfo]:
    """Read a checkpoint that `save_checkpoint` wrote, in the form it was saved in, in evaluation mode.

    A deploy form is built without memory or arithmetic for its training form.

    Raises:
        CheckpointError: if the file is missing, truncated or not one of ours.
        CheckpointMismatch: if it holds other tensors than its model has.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint file {path}")
    try:
        with safe_open(path, framework="pt") as archive:
            text = (archive.metadata() or {}).get(_METADATA_KEY)
            state = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} is truncated or not a safetensors file") from error
    if text is None:
        raise CheckpointError(
            f"{path} does not say which model it holds; give the model's name and this file beside it"
        )
    try:
        metadata = json.loads(text)
        info = CheckpointInfo(
            model=metadata["model"],
            form=metadata["form"],
            class_names=metadata["class_names"],
            preprocessing=metadata["preprocessing"],
            source=str(path),
        )
        config = dict(metadata["config"])
        names = info.class_names
        whole = isinstance(info.model, str) and info.form in ("training", "deploy") and "features_only" not in config
        if not whole or not (names is None or (len(names) == config.get("num_classes") and isinstance(names, list))):
            raise ValueError("a value has the wrong type")
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path} has damaged metadata") from error
    try:
        with torch.device("meta"):
            model = create_model(info.model, **config).eval()
            if info.form == "deploy":
                model = cast("Backbone", reparameterize(model))
    except (VisionMLPError, TypeError) as error:
        raise CheckpointError(f"{path} was written for a model that this version cannot build: {error}") from error
    load_strictly(model, state, str(path), assign=True)
    return model, info


def load_model(
    reference: str | os.PathLike[str],
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    pretrained: bool = False,
    **fields: Any,
) -> tuple[Backbone, CheckpointInfo]:
    """A model in evaluation mode from whatever names one.

    Args:
        reference: a model name, a run folder (its ``model.safetensors``) or a checkpoint of ours.
        checkpoint: weights for a model name: a checkpoint of ours or the authors' file.
        pretrained: fetch the authors' weights for a model name, see `create_model`.
        **fields: configuration. With weights, ``num_classes`` resets the classifier and ``img_size`` resizes the token
            matrices; a checkpoint of ours takes other fields as long as its weights fit.

    Raises:
        CheckpointError: for a file that cannot be used.
        InvalidConfig: for a deploy form that is to change.
        UnknownModel: if it is neither file, folder nor model name.
    """
    if "features_only" in fields:
        raise InvalidConfig("features_only gives no classifier to load; use visionmlp.create_model")
    path, name = Path(reference), str(reference)
    # a model's name means the model, whatever lies beside it; ./name means the path
    if not is_model(name) and (path.exists() or path.suffix or len(path.parts) > 1):
        if checkpoint is not None or pretrained:
            word = "pretrained" if pretrained else "checkpoint"
            raise InvalidConfig(f"{path} holds weights already; give {word} with a model name only")
        if path.is_dir():
            if not (path / "model.safetensors").is_file():
                raise CheckpointError(
                    f"{path} is no run folder with a finished evaluation: it has no model.safetensors"
                )
            path = path / "model.safetensors"
        elif path.is_file() and path.suffix != ".safetensors":
            raise CheckpointError(
                f"{path} does not say which model it holds; give the model's name and this file beside it"
            )
        return _changed(*load_checkpoint(path), fields)
    if checkpoint is None:
        model = create_model(name, pretrained=pretrained, **fields).eval()
        info = CheckpointInfo(model=model.name, form="training", preprocessing=default_preprocessing(model))
        return model, dataclasses.replace(info, source=model.pretrained_cfg["url"]) if pretrained else info
    if pretrained:
        raise InvalidConfig(f"give {name} either checkpoint or pretrained, not both")
    if is_ours(checkpoint):
        model, info = load_checkpoint(checkpoint)
        if info.model != variant(name).name:
            raise CheckpointMismatch(f"{checkpoint} holds {info.model}, not {name}")
        return _changed(model, info, fields)
    model = load_official(
        create_model(name, **{key: value for key, value in fields.items() if key != "num_classes"}), checkpoint
    ).eval()
    info = CheckpointInfo(
        model=model.name, form="training", preprocessing=default_preprocessing(model), source=str(checkpoint)
    )
    return _changed(model, info, {key: value for key, value in fields.items() if key == "num_classes"})


def _changed(model: Backbone, info: CheckpointInfo, fields: Mapping[str, Any]) -> tuple[Backbone, CheckpointInfo]:
    """A loaded model with other configuration: its weights, resized or with a fresh classifier where need be."""
    others = {key: value for key, value in fields.items() if key != "num_classes"}
    if others:
        if info.form == "deploy":
            raise InvalidConfig(f"{info.source} is a deploy form, which fixes its {', '.join(others)}")
        changed = create_model(model.name, **{**dataclasses.asdict(model.config), **others}).eval()
        load_strictly(changed, resize_tokens(changed, model.state_dict(), model.config.img_size), info.source)
        size = (changed.config.in_chans, *changed.config.img_size)
        info = dataclasses.replace(info, preprocessing={**(info.preprocessing or {}), "input_size": size})
        model = changed
    if "num_classes" in fields and fields["num_classes"] != model.num_classes:
        model.reset_classifier(fields["num_classes"])
        info = dataclasses.replace(info, class_names=None)
    return model, info


def is_ours(path: str | os.PathLike[str]) -> bool:
    """Whether a file says that `save_checkpoint` wrote it."""
    path = Path(path)
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    try:
        with safe_open(path, framework="pt") as archive:
            return _METADATA_KEY in (archive.metadata() or {})
    except (OSError, SafetensorError):
        return False
