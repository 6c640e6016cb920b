"""Our checkpoints: safetensors that say which model they hold, in training or deploy form."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from visionmlp.errors import CheckpointError, CheckpointMismatch, InvalidConfig, UnknownModel, VisionMLPError
from visionmlp.files import require_utf8, whole_file
from visionmlp.layers.fusible import is_training_form, reparameterize
from visionmlp.models.backbone import Backbone
from visionmlp.models.metadata import METADATA_KEY, CheckpointInfo, default_preprocessing, read_metadata
from visionmlp.models.official import adapted, check_fit, counted, load_official, load_strictly, resize_tokens
from visionmlp.models.registry import check_options, create_model, is_model, variant
from visionmlp.models.timm_factory import for_channels
from visionmlp.models.wrappers import plain_names, unwrapped

__all__ = [
    "CheckpointInfo",
    "default_preprocessing",
    "is_ours",
    "load_checkpoint",
    "load_model",
    "path_of",
    "read_info",
    "require_trainable",
    "save_checkpoint",
]


def save_checkpoint(
    path: str | os.PathLike[str],
    model: nn.Module,
    *,
    class_names: Sequence[str] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    task: str | None = None,
    network: str | None = None,
) -> None:
    """Write weights, beside the target first and then renamed, so that a crash leaves the old file.

    A model that could not be loaded from its file is refused. Parameters that a model uses in several places are
    written for each of them, and are separate when they are read.

    Args:
        path: ``.safetensors`` file.
        model: training or deploy form, or what ``torch.compile``, `torch.nn.DataParallel` and their like made of it.
        class_names: names of the classifier's outputs.
        preprocessing: see `CheckpointInfo`; ``None`` is that of the published weights.
        task: that it was trained for, as in ``visionmlp train --task``; ``None`` is classification.
        network: see `CheckpointInfo`.

    Raises:
        CheckpointError: if the file cannot be written, or the model was changed so that nothing could load it.
    """
    path, model = Path(path), unwrapped(model)
    tensors = _tensors(model)
    metadata = {
        "model": model.name,
        "config": dataclasses.asdict(model.config),
        "form": "training" if is_training_form(model) else "deploy",
        "class_names": list(class_names) if class_names is not None else None,
        "preprocessing": dict(preprocessing if preprocessing is not None else default_preprocessing(model)),
    }
    said = {"task": task, "network": network}
    metadata.update({key: value for key, value in said.items() if value is not None})
    with whole_file(path) as partial:
        save_file(tensors, partial, metadata={METADATA_KEY: json.dumps(metadata)})


def _tensors(model: Backbone) -> dict[str, Tensor]:
    """What is written of a model: each tensor with memory of its own, under the names that loading asks for.

    Raises:
        CheckpointError: if a model of its configuration has other tensors.
    """
    twin = _on_meta(model.name, dataclasses.asdict(model.config), deploy=not is_training_form(model)).state_dict()
    tensors: dict[str, Tensor] = {}
    written: set[int] = set()
    for name, value in counted(plain_names(model.state_dict(), model.name), twin).items():
        value = value.detach().cpu().contiguous()
        address = value.untyped_storage().data_ptr()
        tensors[name] = value.clone() if address in written else value
        written.add(address)
    try:
        check_fit(model.name, twin, tensors, "the model as it is now")
    except CheckpointMismatch as error:
        raise CheckpointMismatch(
            f"{error}; nothing was written, since nothing could load it",
            missing=error.missing,
            unexpected=error.unexpected,
            misshapen=error.misshapen,
        ) from error
    return tensors


def _on_meta(name: str, config: Mapping[str, Any], *, deploy: bool) -> Backbone:
    """A model without memory."""
    with torch.device("meta"):
        model = create_model(name, **config).eval()
        return cast("Backbone", reparameterize(model)) if deploy else model


def load_checkpoint(path: str | os.PathLike[str]) -> tuple[Backbone, CheckpointInfo]:
    """Read a checkpoint that `save_checkpoint` wrote, in the form it was saved in, in evaluation mode.

    A deploy form is built without memory or arithmetic for its training form.

    Raises:
        CheckpointError: if the file is missing, truncated or not one of ours.
        CheckpointMismatch: if it holds other tensors than its model has.
    """
    path = Path(path)
    with _opened(path) as (text, names, archive):
        # copies: in a file's memory tensors are not aligned, and products of such round in another order
        state = {name: archive.get_tensor(name).clone() for name in names}
    info, config = _metadata(path, text, len(names))
    try:
        model = _on_meta(info.model, config, deploy=info.form == "deploy")
    except (VisionMLPError, TypeError, ValueError, ArithmeticError, RuntimeError, MemoryError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path} was written for a model that this version cannot build: {reason}") from error
    load_strictly(model, plain_names(state, str(path)), str(path), assign=True)
    return model, info


def read_info(path: str | os.PathLike[str]) -> CheckpointInfo:
    """What a checkpoint of ours says about itself, without its weights.

    Raises:
        CheckpointError: if the file is missing, truncated or not one of ours.
    """
    with _opened(Path(path)) as (text, names, _):
        return _metadata(Path(path), text, len(names))[0]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[str | None, list[str], Any]]:
    """The metadata and the names in a safetensors file, and the file itself."""
    if not path.is_file():
        raise CheckpointError(f"no checkpoint file {path}")
    require_utf8(path, CheckpointError)
    try:
        with safe_open(path, framework="pt") as archive:
            yield (archive.metadata() or {}).get(METADATA_KEY), list(archive.keys()), archive
    except (OSError, SafetensorError, ValueError) as error:
        if isinstance(error, VisionMLPError):
            raise
        raise CheckpointError(f"{path} is truncated or not a safetensors file") from error


def _metadata(path: Path, text: str | None, tensors: int) -> tuple[CheckpointInfo, dict[str, Any]]:
    if text is None:
        raise CheckpointError(
            f"{path} does not say which model it holds; give the model's name and this file beside it"
        )
    try:
        return read_metadata(text, str(path), tensors=tensors)
    except UnknownModel as error:
        raise CheckpointError(f"{path} was written for a model that this version cannot build: {error}") from error
    except CheckpointError:  # a ValueError too
        raise
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path} has damaged metadata: {reason}") from error


def load_model(
    reference: str | os.PathLike[str],
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    pretrained: bool = False,
    prefix: str | None = None,
    **fields: Any,
) -> tuple[Backbone, CheckpointInfo]:
    """A model in evaluation mode from whatever names one.

    Args:
        reference: a model name, a run folder (its ``model.safetensors``) or a checkpoint of ours.
        checkpoint: weights for a model name: a checkpoint of ours, the authors' file or a trainer's.
        pretrained: fetch the authors' weights for a model name, see `create_model`.
        prefix: what leads to the weights in ``checkpoint``, if it holds several, see `load_official`.
        **fields: configuration. With weights, ``num_classes`` resets the classifier and ``img_size`` resizes the token
            matrices; a checkpoint of ours takes other fields as long as its weights fit.

    Raises:
        CheckpointError: for a file that cannot be used.
        InvalidConfig: for a deploy form that is to change, or for an unknown field.
        UnknownModel: if it is neither file, folder nor model name.
    """
    if "features_only" in fields:
        raise InvalidConfig("features_only gives no classifier to load; use visionmlp.create_model")
    path, name = path_of(reference), str(reference)
    if path is not None:
        if checkpoint is not None or pretrained:
            word = "pretrained" if pretrained else "checkpoint"
            raise InvalidConfig(f"{path} holds weights already; give {word} with a model name only")
        if path.is_file() and path.suffix != ".safetensors":
            raise CheckpointError(
                f"{path} does not say which model it holds; give the model's name and this file beside it"
            )
        return _changed(*load_checkpoint(path), fields)
    check_options(variant(name), fields)
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
    others = {key: value for key, value in fields.items() if key != "num_classes"}
    model = load_official(create_model(name, **others), checkpoint, prefix=prefix).eval()
    info = CheckpointInfo(
        model=model.name, form="training", preprocessing=default_preprocessing(model), source=str(checkpoint)
    )
    return _changed(model, info, {key: value for key, value in fields.items() if key == "num_classes"})


def path_of(reference: str | os.PathLike[str]) -> Path | None:
    """The checkpoint that a run folder or a path means; ``None`` for a model's name.

    Raises:
        CheckpointError: for a folder that holds none.
    """
    path = Path(reference)
    # a model's name means the model, whatever lies beside it; ./name means the path
    if is_model(str(reference)) or not (path.exists() or path.suffix or len(path.parts) > 1):
        return None
    if path.is_dir():
        if not (path / "model.safetensors").is_file():
            raise CheckpointError(f"{path} is no run folder with a finished evaluation: it has no model.safetensors")
        path = path / "model.safetensors"
    return path


def require_trainable(reference: str | os.PathLike[str]) -> None:
    """Raise InvalidConfig if a checkpoint of ours or a run folder holds a deploy form; other files tell later."""
    path = path_of(reference)
    if path is not None and is_ours(path) and read_info(path).form == "deploy":
        raise InvalidConfig(
            f"{path} is a deploy form, which cannot be trained; give the checkpoint of its training form"
        )


def _changed(model: Backbone, info: CheckpointInfo, fields: Mapping[str, Any]) -> tuple[Backbone, CheckpointInfo]:
    """A loaded model with other configuration: its weights, resized or with a fresh classifier where need be."""
    check_options(variant(model.name), fields)
    others = {key: value for key, value in fields.items() if key != "num_classes"}
    if others:
        if info.form == "deploy":
            raise InvalidConfig(f"{info.source} is a deploy form, which fixes its {', '.join(others)}")
        changed = create_model(model.name, **{**dataclasses.asdict(model.config), **others}).eval()
        state = adapted(changed, model.state_dict(), info.source)
        load_strictly(changed, resize_tokens(changed, state, model.config.img_size), info.source)
        size = (changed.config.in_chans, *changed.config.img_size)
        preprocessing = {**(info.preprocessing or {}), "input_size": size}
        for key in preprocessing.keys() & {"mean", "std"}:
            preprocessing[key] = for_channels(preprocessing[key], changed.config.in_chans)
        info = dataclasses.replace(info, preprocessing=preprocessing)
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
            return METADATA_KEY in (archive.metadata() or {})
    except (OSError, SafetensorError):
        return False
