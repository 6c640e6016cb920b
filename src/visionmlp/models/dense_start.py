"""Networks for dense prediction that begin with what another has learnt, of the same classes or others."""

import dataclasses
from collections.abc import Iterable

from torch import Tensor

from visionmlp.errors import CheckpointMismatch, InvalidConfig
from visionmlp.models.dense_network import DenseInfo, DenseNetwork, network_on_meta
from visionmlp.models.official import adapted, resize_tokens


def take_over(network: DenseNetwork, given: DenseNetwork, label: str, *, same_classes: bool) -> list[str]:
    """Copy the weights of another network, in place, wherever they mean the same.

    The backbone must fit, but for layers that the other one does not have. Each other part, such as neck and head, is
    taken whole or not at all. Layers that know the number of classes are taken for the same classes only.

    Args:
        network: training form, on the same model.
        given: training form.
        label: what to call it in a message.
        same_classes: whether both have the same classes in the same order.

    Returns:
        Names of the parts and layers that keep their own values.

    Raises:
        CheckpointMismatch: for a backbone of other shapes.
        InvalidConfig: for a network on another model.
    """
    if network.backbone.name != given.backbone.name:
        raise InvalidConfig(f"{label} is a network on {given.backbone.name}, not on {network.backbone.name}")
    own, theirs = network.state_dict(), _as_built_here(network, given, label)
    fits = {name: name in theirs and theirs[name].shape == value.shape for name, value in own.items()}
    backbone = f"{network.backbone_name}."
    inner = [name for name in own if name.startswith(backbone)]
    if misshapen := [name for name in inner if name in theirs and not fits[name]]:
        raise CheckpointMismatch(
            f"{label} does not fit {network.backbone.name} as it is built now: {misshapen[0]} has another shape",
            misshapen=misshapen,
        )
    taken = [name for name in inner if fits[name]]
    fresh = _layers(name for name in inner if not fits[name])

    of_classes = set() if same_classes else class_entries(network)
    strides = [one.levels.feature_info.reduction() for one in (network, given)]
    alike = network.task == given.task and network.layout == given.layout
    outer = [name for name in own if not name.startswith(backbone)]
    for part in dict.fromkeys(map(_part, outer)):
        names = [name for name in outer if _part(name) == part]
        wanted = [name for name in names if name not in of_classes]
        # levels of other strides would be taken for each other
        if strides[0] != strides[1] or not (alike or part in ("levels", "neck")) or not all(map(fits.get, wanted)):
            fresh.append(part)
            continue
        taken += wanted
        fresh += _layers(name for name in names if name in of_classes)
    network.load_state_dict({**own, **{name: theirs[name] for name in taken}})
    return fresh


def class_entries(network: DenseNetwork) -> set[str]:
    """Names of the entries whose shapes follow the number of classes."""
    info = DenseInfo(
        task=network.task,
        model=network.backbone.name,
        config=dataclasses.asdict(network.backbone.config),
        options={**network.options, "num_classes": network.options["num_classes"] + 1},
        form="training",
    )
    larger = network_on_meta(info).state_dict()
    return {name for name, value in network.state_dict().items() if value.shape != larger[name].shape}


def _as_built_here(network: DenseNetwork, given: DenseNetwork, label: str) -> dict[str, Tensor]:
    """The state of ``given``, its backbone under our names and brought to our image size and kernels."""
    ours, theirs = (f"{one.backbone_name}." for one in (network, given))
    state = given.state_dict()
    inner = {name.removeprefix(theirs): value for name, value in state.items() if name.startswith(theirs)}
    inner = adapted(network.backbone, inner, label)
    if network.backbone.config.img_size != given.backbone.config.img_size:
        inner = resize_tokens(network.backbone, inner, given.backbone.config.img_size)
    others = {name: value for name, value in state.items() if not name.startswith(theirs)}
    return {**others, **{ours + name: value for name, value in inner.items()}}


def _part(name: str) -> str:
    return name.partition(".")[0]


def _layers(names: Iterable[str]) -> list[str]:
    """That entries are of."""
    return list(dict.fromkeys(name.rpartition(".")[0] for name in names))
