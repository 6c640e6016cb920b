"""Reading and writing dense networks in the authors' layout: that of mmseg 0.11 and mmdet 2.11, on mmcv.

A file is ``{"meta", "state_dict", ...}``; names are ``backbone.*``, in each family's own layout, then ``neck.*``,
``decode_head.*`` and so on, which `DenseNetwork.official_name` knows.
"""

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from visionmlp.errors import CheckpointError, InvalidConfig
from visionmlp.files import whole_file
from visionmlp.models.backbone import FusibleBackbone
from visionmlp.models.dense_network import DenseNetwork
from visionmlp.models.official import (
    adapted,
    check_fit,
    counted,
    from_official,
    label_of,
    mismatch_of,
    official_file,
    read_official,
    resize_tokens,
)
from visionmlp.models.wrappers import unwrapped_to

_BACKBONE = "backbone."

NetworkT = TypeVar("NetworkT", bound=nn.Module)


def load_official_dense(
    network: NetworkT,
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    only: Collection[str] | None = None,
) -> NetworkT:
    """Load weights in mmseg's or mmdet's layout into a training form, in place, strictly.

    Token matrices of another image size are resized, as in `visionmlp.load_official`. Layers of the pyramid, which
    those files do not know, keep their values.

    Args:
        network: from ``create_segmenter`` and its like; may be compiled or wrapped.
        source: a ``.pth`` or ``.safetensors`` file, or a mapping of names to tensors; wrappers are taken off.
        only: first parts of the names that are taken, such as ``{"backbone", "neck"}`` for other classes than the
            file's; everything else keeps its values. All if None.

    Returns:
        The network.

    Raises:
        CheckpointError: for a deploy form, or a file that is missing, truncated, of another layout or would run code.
        CheckpointMismatch: listing every missing, unexpected and misshapen key; the network is unchanged.
        InvalidConfig: for an ``only`` that is no part of the file.
    """
    target = unwrapped_to(DenseNetwork, network)
    backbone, prefix = _backbone_of(target)
    label = label_of(source)
    official = read_official(source)
    parts = {name.partition(".")[0] for name in official}
    if "backbone" not in parts:
        raise CheckpointError(
            f"{label} has no backbone.* and so is no file of mmseg or mmdet; load a classifier's weights into the "
            "backbone, by load_official, before the network is built"
        )
    if only is not None:
        if unknown := sorted(set(only) - parts):
            raise InvalidConfig(f"{label} has no part {unknown[0]}; it has {', '.join(sorted(parts))}")
        official = {name: value for name, value in official.items() if name.partition(".")[0] in only}
    own = target.state_dict()
    ours_of = {theirs: name for name in own if (theirs := target.official_name(name)) is not None}
    state = {ours_of.get(name, name): value for name, value in official.items()}
    theirs = {name.removeprefix(_BACKBONE): value for name, value in official.items() if name.startswith(_BACKBONE)}
    if theirs:
        ours = adapted(backbone, from_official(backbone, theirs, label), label)
        with mismatch_of(backbone, label):
            ours = resize_tokens(backbone, ours, None)
        state = {name: value for name, value in state.items() if not name.startswith(_BACKBONE)}
        state |= {prefix + name: value for name, value in ours.items()}
    kept = {name: value for name, value in own.items() if not _is_wanted(target, name, prefix, only)}
    whole = counted({**kept, **state}, own)
    check_fit(f"a {target.task} network of {backbone.name}", own, whole, label)
    target.load_state_dict(whole)
    return network


def save_official_dense(path: str | os.PathLike[str], network: nn.Module) -> None:
    """Write a training form's weights as mmseg or mmdet reads them; `load_official_dense` gives them back bit by bit.

    Args:
        path: ``.pth`` file.
        network: training form of a family with authors' code, on its own levels at strides 4 to 32.

    Raises:
        CheckpointError: for a deploy form, layers that the layout has no names for, another suffix, or if the file
            cannot be written.
    """
    path, network = Path(path), unwrapped_to(DenseNetwork, network)
    backbone, prefix = _backbone_of(network)
    official_file(backbone, Path(f"{path.stem}.safetensors"))  # refuses families without authors' code
    if path.suffix != ".pth":
        raise CheckpointError(f"{path}: networks in mmseg's layout go into a .pth file")
    own = {name: value.detach().cpu() for name, value in network.state_dict().items()}
    of_backbone = {name.removeprefix(prefix): value for name, value in own.items() if name.startswith(prefix)}
    state = {_BACKBONE + name: value for name, value in backbone.to_official(of_backbone).items()}
    for name, value in own.items():
        if name.startswith(prefix):
            continue
        theirs = network.official_name(name)
        if theirs is None:
            raise CheckpointError(f"mmseg's layout has no name for {name}; only four-stage families fit it")
        state[theirs] = value
    with whole_file(path) as partial, partial.open("wb") as file:
        torch.save({"meta": {}, "state_dict": state}, file)


def _backbone_of(network: DenseNetwork) -> tuple[FusibleBackbone, str]:
    """The backbone, and what its names begin with in the network's state."""
    backbone = network.backbone
    if not isinstance(backbone, FusibleBackbone):
        raise CheckpointError(
            f"this {network.task} network is a deploy form; the authors' files hold training forms only"
        )
    return backbone, next(f"{name}." for name, module in network.named_modules() if module is backbone)


def _is_wanted(network: DenseNetwork, name: str, prefix: str, only: Collection[str] | None) -> bool:
    """Whether an entry of ours is to come from the file."""
    theirs = _BACKBONE if name.startswith(prefix) else network.official_name(name)
    return theirs is not None and (only is None or theirs.partition(".")[0] in only)
