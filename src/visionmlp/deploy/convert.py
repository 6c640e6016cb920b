"""Weights from the authors' format into our checkpoints and back, bit by bit."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visionmlp.errors import CheckpointError, CheckpointMismatch
from visionmlp.files import OutputError, beside
from visionmlp.models.backbone import Backbone, FusibleBackbone
from visionmlp.models.checkpoint import is_ours, load_model, save_checkpoint
from visionmlp.models.official import (
    from_official,
    is_of_timm,
    load_strictly,
    official_file,
    read_official,
    save_official,
)
from visionmlp.models.registry import create_model, is_model, variant

_IN_THE_TENSORS = {"num_classes", "in_chans", "img_size", "feature_norms"}
"""Fields that `convert_from_official` reads from the tensors, or is told."""
_NOT_OF_THE_WEIGHTS = {"global_pool", "drop_rate", "drop_path_rate", "proj_drop_rate", "layer_scale"}
"""Fields that weights work without: how they are trained, where training starts, what follows the last map."""


def convert_from_official(
    source: Path,
    name: str,
    output: Path,
    *,
    img_size: tuple[int, int] | None = None,
    prefix: str | None = None,
    ema: bool = False,
    force: bool = False,
) -> Backbone:
    """Write the authors' weights as a checkpoint of ours. No value changes: nothing is resized or cast.

    The numbers of classes and input channels, and whether it is a backbone for dense prediction, are those of the file.

    Args:
        source: the authors' ``.pth``, ``.npz`` or ``.safetensors``, or a trainer's or timm's.
        name: the variant that it holds.
        output: ``.safetensors`` file.
        img_size: height and width that the weights were made for; ``None`` is the variant's own size.
        prefix: what leads to the weights in the source, if it holds several, see `visionmlp.load_official`.
        ema: take the moving average of the weights.
        force: replace an existing file.

    Returns:
        The model that was written.

    Raises:
        CheckpointError: if the source cannot be read.
        CheckpointMismatch: if it does not hold this model.
        OutputError: if the output exists or cannot be written.
    """
    if is_ours(source):
        raise CheckpointError(f"{source} is a checkpoint of ours already; convert it to official, or use it as it is")
    _check_paths(source, output)
    with beside(output, force=force, suffix=".safetensors") as partial:
        fields: dict[str, Any] = {} if img_size is None else {"img_size": img_size}
        probe = _on_meta(name, fields | ({"feature_norms": True} if _takes_feature_norms(name) else {}))
        official = read_official(source, model=probe, prefix=prefix, ema=ema)
        _check_one_dtype(official, source)
        state = from_official(probe, official, str(source))
        model = _model_of(state, name, fields)
        try:
            # assigned, not copied: the dtype of the file stays
            load_strictly(model, state, str(source), assign=True)
        except CheckpointMismatch as error:
            if error.misshapen and not (error.missing or error.unexpected or img_size):
                raise CheckpointMismatch(
                    f"{error}; if it was made for another image size, give img_size", misshapen=error.misshapen
                ) from error
            raise
        if is_of_timm(model, official):
            model.compute_as_timm()
        save_checkpoint(partial, model)
    return model


def convert_to_official(
    source: Path, output: Path, *, name: str | None = None, force: bool = False
) -> tuple[Backbone, list[str]]:
    """Write a checkpoint of ours as the authors' code reads it. No value changes.

    Args:
        source: a checkpoint of ours in training form, or a run folder.
        output: see `visionmlp.save_official` for its suffix.
        name: the variant that is expected; ``None`` for any.
        force: replace an existing file.

    Returns:
        The model, and the names of its options that differ from the variant's and that the authors' files do not hold.

    Raises:
        CheckpointError: if the source cannot be read, is a deploy form, or there is no such format.
        CheckpointMismatch: if it holds another model, or parts that the authors' code does not have.
        OutputError: if the output exists or cannot be written.
    """
    if is_model(str(source)) and not source.exists():
        raise CheckpointError(f"{source} is a model's name; give a checkpoint of ours or a run folder")
    _check_paths(source, output)
    model, _ = load_model(source if source.exists() else source.resolve())
    if name is not None and variant(name).name != model.name:
        raise CheckpointMismatch(f"{source} holds {model.name}, not {name}")
    official_file(model, output)
    assert isinstance(model, FusibleBackbone)
    _check_parts(model, source)
    with beside(output, force=force) as partial:
        save_official(partial, model)
    published = variant(model.name).config
    stored = _IN_THE_TENSORS | _NOT_OF_THE_WEIGHTS
    options = [field.name for field in dataclasses.fields(published) if field.name not in stored]
    return model, [option for option in options if getattr(model.config, option) != getattr(published, option)]


def _model_of(state: dict[str, Tensor], name: str, fields: dict[str, Any]) -> FusibleBackbone:
    """A model as these tensors need it."""

    def shape(entry: str) -> torch.Size | None:
        return state[entry].shape if entry in state and state[entry].ndim > 1 else None

    classifier, stem = shape("head.fc.weight"), shape("stem.proj.weight")
    fields = fields | {"num_classes": 0 if classifier is None else classifier[0]}
    if stem is not None:
        fields |= {"in_chans": stem[1]}
    if _takes_feature_norms(name):
        fields |= {"feature_norms": any(entry.startswith("feature_norms.") for entry in state)}
    model = create_model(name, **fields)
    assert isinstance(model, FusibleBackbone)
    return model.eval()


def _check_one_dtype(official: dict[str, Tensor], source: Path) -> None:
    """A checkpoint of ours is used in the precision that it is in, so there must be one."""
    first: dict[torch.dtype, str] = {}
    for name, value in official.items():
        if value.is_floating_point():
            first.setdefault(value.dtype, name)
    if len(first) > 1:
        found = " and ".join(f"{name} is {str(dtype).removeprefix('torch.')}" for dtype, name in first.items())
        raise CheckpointError(f"{source} mixes precisions: {found}; load it with visionmlp.load_official instead")


def _check_parts(model: FusibleBackbone, source: Path) -> None:
    """The authors' code loads strictly, so the variant's tensors must be there, and no others."""
    fields = {"num_classes", "in_chans", "img_size"} | (
        {"feature_norms"} if _takes_feature_norms(model.name) else set()
    )
    published = _on_meta(model.name, {field: getattr(model.config, field) for field in fields}).state_dict()
    own = model.state_dict()
    wrong = [key for key in own.keys() | published.keys() if key not in own or key not in published]
    wrong += [key for key in own.keys() & published.keys() if own[key].shape != published[key].shape]
    if wrong:
        raise CheckpointMismatch(
            f"{source} has other parts than {model.name} of the authors' code ({', '.join(sorted(wrong)[:3])}, ...), "
            "which could not load it",
            unexpected=sorted(wrong),
        )


def _takes_feature_norms(name: str) -> bool:
    return "feature_norms" in {field.name for field in dataclasses.fields(variant(name).config)}


def _on_meta(name: str, fields: dict[str, Any]) -> FusibleBackbone:
    with torch.device("meta"):
        model = create_model(name, **fields)
    assert isinstance(model, FusibleBackbone)
    return model


def _check_paths(source: Path, output: Path) -> None:
    if source.exists() and output.exists() and source.samefile(output):
        raise OutputError(f"{output} is the source itself; give another --output")
