"""What can be exported: classifiers and segmentation networks, and what an export asks of either."""

from pathlib import Path
from typing import Any

import torch

from visionmlp.errors import InvalidConfig
from visionmlp.models.backbone import Backbone
from visionmlp.models.checkpoint import CheckpointInfo, default_preprocessing, load_checkpoint, save_checkpoint
from visionmlp.models.dense import Tiled
from visionmlp.models.dense_network import DenseInfo, DenseNetwork, load_dense, save_dense
from visionmlp.models.segmenter import Segmenter

Network = Backbone | Segmenter
"""Images (B, C, H, W) to logits: of a classifier (B, K), of a segmentation network (B, K, H, W)."""
NetworkInfo = CheckpointInfo | DenseInfo
"""Where it came from: of a classifier `CheckpointInfo`, of others `DenseInfo`."""

CLASSIFY = "classify"
"""The task of a network without a head for another."""


def exportable(network: Backbone | DenseNetwork, source: str) -> Network:
    """The network, if it can be a graph of images and logits.

    Args:
        network: of any task.
        source: where it came from.

    Raises:
        InvalidConfig: for a detector.
    """
    if isinstance(network, (Backbone, Segmenter)):
        return network
    raise InvalidConfig(
        f"{source} holds a network for {network.task}, whose results differ in number from image to image; "
        "give a classifier or a segmentation network"
    )


def classifier_of(network: Network, info: NetworkInfo, what: str) -> tuple[Backbone, CheckpointInfo]:
    """The same, if it is a classifier.

    Raises:
        InvalidConfig: naming what only classifiers have.
    """
    if isinstance(network, Backbone) and isinstance(info, CheckpointInfo):
        return network, info
    raise InvalidConfig(f"{what} is for classifiers; leave it out for a segmentation network")


def backbone_of(network: Network) -> Backbone:
    """Itself, or what its head stands on."""
    return network if isinstance(network, Backbone) else network.backbone


def task_of(network: Network) -> str:
    """Name of the task that its logits are for."""
    return CLASSIFY if isinstance(network, Backbone) else network.task


def has_windows(network: Network) -> bool:
    """Whether it cuts larger images into windows, as many as they need."""
    return backbone_of(network).input_sizes == "multiples" or any(isinstance(part, Tiled) for part in network.modules())


def kept_preprocessing(network: Network, info: NetworkInfo) -> dict[str, Any]:
    """What the checkpoint says, and where it says nothing what the published weights had."""
    given, published = dict(info.preprocessing or {}), default_preprocessing(backbone_of(network))
    if isinstance(network, Backbone):
        return given or published
    # how images are resized belongs to the task; all that is certain are the colours
    return {key: published[key] for key in ("mean", "std")} | given


def chosen_size(network: Network, size: tuple[int, int] | None) -> tuple[int, int]:
    """Height and width of the images that a graph of one size is for, tried out.

    Args:
        network: in evaluation mode.
        size: None is what the backbone is built for.

    Raises:
        InvalidImageSize: if the network does not take it, naming sizes that it does.
    """
    backbone = backbone_of(network)
    if size is None:
        return backbone.config.img_size
    if min(size) < 1:
        raise InvalidConfig(f"input_size must be positive, got {size[0]}x{size[1]}")
    like = next(network.parameters())
    with torch.inference_mode():
        network(torch.zeros(1, backbone.in_chans, *size, dtype=like.dtype))
    return size


def save_network(path: Path, network: Network, info: NetworkInfo, preprocessing: dict[str, Any]) -> None:
    """Write a checkpoint; see `save_checkpoint` and `save_dense`."""
    save = save_checkpoint if isinstance(network, Backbone) else save_dense
    save(path, network, class_names=info.class_names, preprocessing=preprocessing)


def load_saved(path: Path, network: Network) -> Network:
    """Read a checkpoint that was written of such a network."""
    if isinstance(network, Backbone):
        return load_checkpoint(path)[0]
    return exportable(load_dense(path)[0], str(path))
