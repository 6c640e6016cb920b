"""Reading and writing the authors' checkpoints: their files, wrappers and names; loading is strict."""

import contextlib
import math
import os
import pickle
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from visionmlp.errors import CheckpointError, CheckpointMismatch, Note
from visionmlp.files import require_utf8, whole_file
from visionmlp.layers.grid_mixer import GridMixer
from visionmlp.layers.wide_embed import depthwise_entries, widened
from visionmlp.models.backbone import Backbone, FusibleBackbone, deploy_mismatch
from visionmlp.models.config import size_text
from visionmlp.models.unpickling import RunsCode, Stranger, read_inert
from visionmlp.models.weights import OFFICIAL_FILES, OfficialFile, family_prefix
from visionmlp.models.wrappers import find_weights, shared_prefix, unwrapped

_LISTED = 6

ModelT = TypeVar("ModelT", bound=nn.Module)


def load_official(
    model: ModelT,
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    img_size: int | tuple[int, int] | None = None,
    prefix: str | None = None,
    ema: bool = False,
) -> ModelT:
    """Load weights in the authors' format, timm's or ours into a training form, in place, strictly.

    Token matrices of another image size are resized by 4-D interpolation, and kernels for another number of input
    channels summed or repeated, which a note says. A model with ``feature_norms`` also takes a classifier's weights,
    and keeps its own norms. With the weights of timm's own model (ResMLP, MLP-Mixer) it computes what that one does.

    Args:
        model: from `create_model`, with the checkpoint's number of classes; ``reset_classifier`` comes afterwards. It
            may be compiled or wrapped.
        source: a ``.pth``, ``.npz`` or ``.safetensors`` file, or a mapping of names to tensors or arrays. Where one
            prefix (``model.``, ``module.``, ``teacher.backbone.``, ...; wrappers are prefixes too) leads to all of the
            model's names, it is taken off; what training scripts leave beside the weights is passed over.
        img_size: height and width that the source was made for, if its maps are not square.
        prefix: what leads to the weights that are wanted, where there are several: ``"teacher"``.
        ema: take the moving average of the weights, which lies beside the weights.

    Returns:
        The model.

    Raises:
        CheckpointError: for a file that is missing, truncated, of unknown layout, without the moving average or prefix
            that was asked for, with several states of the weights, or that would run code.
        CheckpointMismatch: listing every missing, unexpected and misshapen key; the model is unchanged.
    """
    target = unwrapped(model)
    if not isinstance(target, FusibleBackbone):
        raise CheckpointError(f"{target.name} is a deploy form; load into the training form, then reparameterize it")
    label = label_of(source)
    if isinstance(img_size, int):
        img_size = (img_size, img_size)
    if img_size is not None and min(img_size) < 1:
        raise CheckpointError(f"img_size must be positive, got {size_text(img_size)}")
    official = read_official(source, model=target, prefix=prefix, ema=ema)
    if shared := shared_prefix(official):
        label = f"{label}, where all names begin with {shared}.,"
    state = adapted(target, from_official(target, official, label), label)
    with mismatch_of(target, label):
        state = resize_tokens(target, state, img_size)
    load_strictly(target, state, label)
    if is_of_timm(target, official):
        target.compute_as_timm()
    return model


def save_official(path: str | os.PathLike[str], model: Backbone) -> None:
    """Write a training form's weights as the authors' code reads them; `load_official` gives them back bit by bit.

    A feature extractor with ``feature_norms`` and without classifier is written as the authors' dense-prediction
    backbone, which has no final norm.

    Args:
        path: the family's own format (``.npz`` for MLP-Mixer, else ``.pth`` with the wrapper that its loader expects),
            or ``.safetensors`` without wrapper.
        model: training form.

    Raises:
        CheckpointError: for a deploy form, a family without authors' code, another suffix, a precision that the format
            does not hold, or if the file cannot be written.
    """
    path = Path(path)
    layout = official_file(model, path)
    assert isinstance(model, FusibleBackbone)
    own = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    if model.feature_norms and model.num_classes == 0:
        own = {name: value for name, value in own.items() if not name.startswith("norm.")}
    state = model.to_official(own)
    with whole_file(path) as partial:
        if path.suffix == ".safetensors":
            save_file(state, partial)
            return
        with partial.open("wb") as file:
            if layout.suffix == ".npz":
                np.savez(file, **{name: value.numpy() for name, value in state.items()})  # type: ignore[arg-type]
            else:
                torch.save({layout.wrapper: state} if layout.wrapper else state, file)


def official_file(model: Backbone, path: Path) -> OfficialFile:
    """How the authors' loader wants a model's weights, if they can be written to this path.

    Raises:
        CheckpointError: see `save_official`.
    """
    if not isinstance(model, FusibleBackbone):
        raise CheckpointError(f"{model.name} is a deploy form; the authors' files hold training forms only")
    layout = OFFICIAL_FILES.get(family_prefix(model.name))
    if layout is None:
        raise CheckpointError(f"there is no authors' code for {model.name}, so no format to write")
    if path.suffix not in (layout.suffix, ".safetensors"):
        raise CheckpointError(f"{path}: weights of {model.name} go into a {layout.suffix} or .safetensors file")
    bfloat16 = any(value.dtype == torch.bfloat16 for value in model.state_dict().values())
    if path.suffix == ".npz" and bfloat16:
        raise CheckpointError(f"{path}: NumPy has no bfloat16; write .safetensors, or call model.float() first")
    return layout


def read_official(
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    model: FusibleBackbone | None = None,
    prefix: str | None = None,
    ema: bool = False,
) -> dict[str, Tensor]:
    """The state dict of a file or mapping, with the names that it has there, out of its wrappers.

    Args:
        source: see `load_official`.
        model: whose names are looked for; without one, wrappers are known by their own names alone.
        prefix: see `load_official`.
        ema: take the moving average.

    Raises:
        CheckpointError: see `load_official`.
    """
    content = source if isinstance(source, Mapping) else _read(Path(source))
    layouts = () if model is None else _layouts(model)
    return find_weights(content, label_of(source), layouts=layouts, prefix=prefix, ema=ema).tensors


def label_of(source: str | os.PathLike[str] | Mapping[str, Any]) -> str:
    """What messages call a source."""
    return "the mapping" if isinstance(source, Mapping) else str(source)


def _layouts(model: FusibleBackbone) -> list[list[str]]:
    """The names of stem and blocks, which every checkpoint has: the authors', ours and timm's."""
    # files of FrozenBatchNorms do not count batches, those of narrower embeddings have no depth-wise convolutions
    learned = [
        name
        for name in model.state_dict().keys() - depthwise_entries(model)
        if not name.endswith("num_batches_tracked")
    ]
    ours = [name for name in learned if name.startswith(("stem.", "stages."))]
    layouts = [[model.official_entry(name).name for name in ours], ours]
    timms = [entry.name for name in ours if (entry := model.timm_entry(name))]
    return [*layouts, timms] if timms else layouts


def is_of_timm(model: FusibleBackbone, state: Mapping[str, Any]) -> bool:
    """Whether a state dict is that of timm's own model of the network, by its names."""
    found = [len(state.keys() & set(layout)) for layout in _layouts(model)]
    return len(found) > 2 and found[2] > max(found[:2])


def from_official(model: FusibleBackbone, official: Mapping[str, Tensor], label: str) -> dict[str, Tensor]:
    """A state dict with our names, without the constants that the authors' files hold beside what is learned.

    Args:
        model: whose names and constants count.
        official: the authors' names, timm's or ours.
        label: what a message calls the source.

    Raises:
        CheckpointMismatch: if a tensor cannot have the shape that its name needs, or a constant has another value.
    """
    constants = {name: value for name, value in model.official_constants().items() if name in official}
    wrong = sorted(name for name, value in constants.items() if not _equal(official[name], value))
    if wrong:
        raise CheckpointMismatch(
            f"{label} does not fit {model.name}, which computes with another {wrong[0]}; "
            "build the model with the options that the checkpoint was trained with",
            unexpected=wrong,
        )
    learned = {name: value for name, value in official.items() if name not in constants}
    with mismatch_of(model, label):
        return model.from_timm(learned) if is_of_timm(model, learned) else model.from_official(learned)


def adapted(model: Backbone, state: dict[str, Tensor], label: str) -> dict[str, Tensor]:
    """A state dict with the model's kernels: wider embeddings, which change no output, and other input channels.

    First kernels are summed for one channel, else repeated, as timm does it: the answer to a grey image, repeated over
    the channels, stays what it was. A note says so.

    Args:
        model: target, in training form.
        state: our names.
        label: what the line calls the source.
    """
    state = widened(model, state)
    stem = state.get("stem.proj.weight")
    if stem is None or stem.ndim != 4 or 0 in stem.shape or stem.shape[1] == model.in_chans:
        return state
    count, channels = stem.shape[1], model.in_chans
    repeated = stem.repeat(1, math.ceil(channels / count), 1, 1)[:, :channels].double() * (count / channels)
    kernels = stem.double().sum(1, keepdim=True) if channels == 1 else repeated
    warnings.warn(
        f"{label} takes {count} input channels; its first kernels were adapted to {channels}", Note, stacklevel=2
    )
    return {**state, "stem.proj.weight": kernels.to(stem.dtype)}


@contextlib.contextmanager
def mismatch_of(model: Backbone, label: str) -> Iterator[None]:
    """Turn what PyTorch says of a tensor with a rank that its name does not have into a CheckpointMismatch."""
    try:
        yield
    except (RuntimeError, IndexError) as error:
        raise CheckpointMismatch(f"{label} does not fit {model.name}: {' '.join(str(error).split())}") from error


def _equal(value: Tensor, expected: Tensor) -> bool:
    return value.shape == expected.shape and torch.equal(value.to(expected), expected)


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
    whole = counted(state, own)
    try:
        check_fit(model.name, own, whole, label)
    except CheckpointMismatch as error:
        if isinstance(model, FusibleBackbone) and model.is_deploy_state(state):
            raise deploy_mismatch(label, model.name) from error
        raise
    model.load_state_dict(whole, assign=assign)


def counted(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with the batch counts of norms, which frozen norms do not keep and nothing here reads."""
    counts = {name for name in own.keys() - state.keys() if name.endswith(".num_batches_tracked")}
    return {**state, **{name: torch.zeros((), dtype=torch.int64) for name in counts}}


def check_fit(name: str, own: Mapping[str, Tensor], state: Mapping[str, Tensor], label: str) -> None:
    """Raise CheckpointMismatch unless a state dict has the names and shapes of a model's own.

    Args:
        name: of the model.
        own: its state dict.
        state: to be loaded.
        label: what the message calls it.
    """
    missing = sorted(own.keys() - state.keys())
    unexpected = sorted(state.keys() - own.keys())
    misshapen = sorted(k for k in own.keys() & state.keys() if own[k].shape != state[k].shape)
    if not (missing or unexpected or misshapen):
        return
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
        f"{label} does not fit {name}: {'; '.join(parts)}",
        missing=missing,
        unexpected=unexpected,
        misshapen=misshapen,
    )


def _feature_norm_gaps(own: Mapping[str, Tensor]) -> tuple[set[str], set[str]]:
    """What a classification checkpoint and a dense one each lack of a model with ``feature_norms``."""
    return (
        {name for name in own if name.startswith("feature_norms.")},
        {name for name in own if name.startswith(("norm.", "head."))},
    )


def _read(path: Path) -> Mapping[str, Any]:
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; give its model.safetensors, or another file of weights")
    if not path.is_file():
        raise CheckpointError(f"no checkpoint file {path}")
    if path.suffix == ".safetensors":
        require_utf8(path, CheckpointError)
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        if path.suffix == ".safetensors":
            return load_file(path)
        content = _read_pickle(path)
    except RunsCode as error:
        raise CheckpointError(
            f"{path} holds pickled objects that could run code ({error}), so it was not opened; "
            "ask its author for a file of tensors only"
        ) from error
    except Exception as error:  # on hostile bytes the readers raise whatever they trip over
        raise CheckpointError(f"{path} is truncated or not a checkpoint") from error
    if isinstance(content, Stranger):
        raise CheckpointError(
            f"{path} holds an object of {content.name}, not a state dict; ask its author for model.state_dict()"
        )
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds {type(content).__name__}, not a state dict")
    return content


def _read_pickle(path: Path) -> Any:
    """PyTorch's safe loader, and where it refuses, tensors without the objects beside them."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it says of newer pickles is answered below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        return read_inert(path)


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
                unfit = resized[name] is state[name] and state[name].shape != own[name].shape
                if img_size is not None and unfit:
                    raise CheckpointMismatch(f"{name} was not made for img_size {size_text(img_size)}")
    return resized
