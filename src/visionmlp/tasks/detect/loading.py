"""Detectors from checkpoints, with what their labels mean."""

from visionmlp.errors import CheckpointError, InvalidConfig
from visionmlp.models.dense_network import DenseInfo, load_dense
from visionmlp.models.detector import Detector
from visionmlp.tasks.detect.annotations import Categories
from visionmlp.tasks.options import ServedOptions


def load_detector(options: ServedOptions) -> tuple[Detector, DenseInfo]:
    """The detector of a run folder or a checkpoint, in evaluation mode.

    Raises:
        InvalidConfig: for options that are about classifiers.
        VisionMLPError: if there is none.
    """
    for name in ("checkpoint", "checkpoint_prefix", "pretrained"):
        if getattr(options, name):
            raise InvalidConfig(
                f"--{name.replace('_', '-')} is for backbones; a detector is a run folder or a checkpoint file"
            )
    if options.runtime not in (None, "torch"):
        raise InvalidConfig(f"detectors run in torch, not in {options.runtime}; leave out --runtime")
    network, info = load_dense(options.model)
    if not isinstance(network, Detector):
        raise CheckpointError(f"{options.model} holds a network for {info.task}, not for detect")
    return network, info


def categories_of(info: DenseInfo) -> Categories:
    """Names and ids of a checkpoint's labels; "class N" and N where it does not say them."""
    count = info.options["num_classes"]
    names = info.class_names or [f"class {label}" for label in range(1, count + 1)]
    ids = info.preprocessing.get("category_ids") or range(1, count + 1)
    fits = len(names) == len(ids) == len({*ids}) == len({*names}) == count
    if not fits or not all(type(one) is int for one in ids):
        raise CheckpointError(f"{info.source} has {count} classes, but other names or category ids")
    return Categories(names=tuple(names), ids=tuple(ids))
