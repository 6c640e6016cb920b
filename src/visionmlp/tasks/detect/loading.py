"""Detectors from checkpoints, with what their labels mean."""

import torch

from visionmlp.deploy.runtimes import check_threads
from visionmlp.errors import CheckpointError, InvalidConfig
from visionmlp.measure.timing import open_device
from visionmlp.models.dense_network import DenseInfo, load_dense
from visionmlp.models.detector import Detector
from visionmlp.tasks.detect.annotations import Categories
from visionmlp.tasks.detect.definition import DetectorOptions


def load_detector(options: DetectorOptions) -> tuple[Detector, DenseInfo]:
    """The detector of a run folder or a checkpoint, in evaluation mode, on the device.

    Raises:
        InvalidConfig: for a number that breaks its rule.
        VisionMLPError: if there is none, or the device cannot be used.
    """
    if options.batch_size < 1:
        raise InvalidConfig(f"batch-size must be at least 1, got {options.batch_size}")
    check_threads(options.threads)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = open_device(options.device)
    network, info = load_dense(options.model)
    if not isinstance(network, Detector):
        raise CheckpointError(f"{options.model} holds a network for {info.task}, not for detect")
    if not all(value.isfinite().all() for value in network.parameters()):
        # scores of NaN are above no threshold, as if there were nothing to find
        raise CheckpointError(f"{info.source} has weights that are NaN or infinite; take an earlier checkpoint")
    return network.to(device), info


def categories_of(info: DenseInfo) -> Categories:
    """Names and ids of a checkpoint's labels; "class N" and N where it does not say them."""
    count = info.options["num_classes"]
    names = info.class_names or [f"class {label}" for label in range(1, count + 1)]
    ids = info.preprocessing.get("category_ids") or list(range(1, count + 1))
    numbers = isinstance(ids, list) and all(type(one) is int for one in ids)
    if not numbers or not len(names) == len(ids) == len({*ids}) == len({*names}) == count:
        raise CheckpointError(f"{info.source} has {count} classes, but other names or category ids")
    return Categories(names=tuple(names), ids=tuple(ids))


def exif_orientation_of(info: DenseInfo, options: DetectorOptions) -> bool:
    """Whether images may be turned as their EXIF says."""
    if options.exif_orientation is not None:
        return options.exif_orientation == "apply"
    return bool(info.preprocessing.get("exif_orientation", True))
