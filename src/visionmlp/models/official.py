"""Reading the authors' checkpoints: their files, wrappers and names, loaded strictly."""

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from visionmlp.errors import CheckpointError, CheckpointMismatch
from visionmlp.layers.grid_mixer import GridMixer
from visionmlp.models.backbone import Backbone, FusibleBackbone, size_text

WRAPPERS = ("model", "state_dict", "model_ema")
_LISTED = 6

BackboneT = TypeVar("BackboneT", bound=Backbone)


def load_official(
    model: BackboneT,
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    img_size: int | tuple[int, int] | None = None,
) -> BackboneT:
    """Load weights in the authors' format into a training form, in place, strictly.

    Token matrices of another image size are resized by 4-D interpolation.

    Args:
        model: from `create_model`, with the checkpoint's number of classes; ``reset_classifier`` comes afterwards.
        source: a ``.pth``, ``.npz`` or ``.safetensors`` file, or a mapping of the authors' names to tensors or arrays.
            Wrappers (``model``, ``state_dict``, ``model_ema``) and ``module.`` prefixes are taken off.
        img_size: height and width that the source was made for, if its maps are not square.

    Returns:
        The model.

    Raises:
        CheckpointError: for a file that is missing, truncated, of unknown layout or would run code.
        CheckpointMismatch: listing every missing, unexpected and misshapen key; the model is unchanged.
    """
    if not isinstance(model, FusibleBackbone):
        raise CheckpointError(f"{model.name} is a deploy form; load into the training form, then reparameterize it")
    label = "the mapping" if isinstance(source, Mapping) else str(source)
    official = _unwrap(source if isinstance(source, Mapping) else _read(Path(source)), label)
    if isinstance(img_size, int):
        img_size = (img_size, img_size)
    try:
        state = resize_tokens(model, model.from_official(official), img_size)
    except (RuntimeError, IndexError) as error:  # a tensor of a rank that its name does not have
        raise CheckpointMismatch(f"{label} does not fit {model.name}: {' '.join(str(error).split())}") from error
    load_strictly(model, state, label)
    return model


def load_strictly(model: Backbone, state: Mapping[str, Tensor], label: str, *, assign: bool = False) -> None:
    """Load a state dict that must fit exactly.

    Args:
        model: target.
        state: our names.
        label: what the message calls the source.
        assign: take the tensors themselves, with their dtype, rather than copying into the model's.

    Raises:
        CheckpointMismatch: with the attributes ``missing``, ``unexpected`` and ``misshapen``, sorted lists of keys.
    """
    own = model.state_dict()
    absent = own.keys() - state.keys()
    if model.feature_norms and absent in _feature_norm_gaps(own):
        # a classifier starts a dense model, or a dense model has no classifier: what is absent keeps its values
        state = {**{name: own[name] for name in absent}, **state}
        absent = set()
    missing = sorted(absent)
    unexpected = sorted(state.keys() - own.keys())
    misshapen = sorted(k for k in own.keys() & state.keys() if own[k].shape != state[k].shape)
    if missing or unexpected or misshapen:
        shapes = [f"{k} is {size_text(state[k].shape)}, not {size_text(own[k].shape)}" for k in misshapen]
        parts = [
            f"{len(keys)} {kind} ({', '.join(shown[:_LISTED])}{', ...' if len(keys) > _LISTED else ''})"
            for kind, keys, shown in (
                ("missing", missing, missing),
                ("unexpected", unexpected, unexpected),
                ("misshapen", misshapen, shapes),
            )
            if keys
        ]
        raise CheckpointMismatch(
            f"{label} does not fit {model.name}: {'; '.join(parts)}",
            missing=missing,
            unexpected=unexpected,
            misshapen=misshapen,
        )
    model.load_state_dict(dict(state), assign=assign)


def _feature_norm_gaps(own: Mapping[str, Tensor]) -> tuple[set[str], set[str]]:
    """What a classification checkpoint and a dense one each lack of a model with ``feature_norms``."""
    return (
        {name for name in own if name.startswith("feature_norms.")},
        {name for name in own if name.startswith(("norm.", "head."))},
    )


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"no checkpoint file {path}")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):
            raise CheckpointError(
                f"{path} holds pickled objects that could run code, so it was not opened; "
                "ask its author for a file of tensors only"
            ) from error
        raise CheckpointError(f"{path} is truncated, or a pickle that could run code; it was not opened") from error
    except Exception as error:  # on hostile bytes the readers raise whatever they trip over
        raise CheckpointError(f"{path} is truncated or not a checkpoint") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds {type(content).__name__}, not a state dict")
    return content


def _unwrap(content: Mapping[str, Any], label: str) -> dict[str, Tensor]:
    while wrapper := next((key for key in WRAPPERS if isinstance(content.get(key), Mapping)), None):
        content = content[wrapper]
    numbers = "fiu"  # kinds of arrays that tensors can hold
    state: dict[str, Any] = {
        name: torch.from_numpy(value) if isinstance(value, np.ndarray) and value.dtype.kind in numbers else value
        for name, value in content.items()
    }
    strangers = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if strangers or not state:
        found = f"an entry {strangers[0]!r} that is no tensor" if strangers else "no tensors"
        raise CheckpointError(f"{label} has {found} and no {', '.join(WRAPPERS)} to look into")
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state


def resize_tokens(model: Backbone, state: dict[str, Tensor], img_size: tuple[int, int] | None) -> dict[str, Tensor]:
    """A state dict with its token weights brought to the model's grids, where the source's grid is known or square.

    Args:
        model: target.
        state: our names.
        img_size: height and width that the state was made for; ``None`` takes its grids for square.
    """
    own, own_size = model.state_dict(), model.config.img_size
    resized = dict(state)
    for prefix, mixer in model.named_modules():
        if not isinstance(mixer, GridMixer):
            continue
        old = None
        if img_size is not None:
            old = (img_size[0] * mixer.grid[0] // own_size[0], img_size[1] * mixer.grid[1] // own_size[1])
        for entry in mixer.grid_entries:
            name = f"{prefix}.{entry}"
            # without a given size equal counts mean equal grids; with one, 2x8 may have become 4x4
            if name in state and (old is not None or state[name].shape != own[name].shape):
                resized[name] = mixer.resized(entry, state[name], old)
    return resized
