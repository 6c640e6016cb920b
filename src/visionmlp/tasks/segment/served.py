"""A trained network as ``eval`` and ``predict`` use it."""

import dataclasses
from typing import NamedTuple

import torch

from visionmlp.errors import CheckpointError, InvalidConfig
from visionmlp.measure.catalog import is_name
from visionmlp.measure.timing import open_device
from visionmlp.models.checkpoint import path_of
from visionmlp.models.dense_network import DenseInfo, load_dense
from visionmlp.models.segmenter import Segmenter
from visionmlp.tasks.segment.building import Preparation
from visionmlp.tasks.segment.definition import SegmenterOptions


class Served(NamedTuple):
    """What the options name."""

    network: Segmenter
    """In evaluation mode, on the device."""
    info: DenseInfo
    preparation: Preparation
    names: list[str]
    """Of the classes."""


def load_served(options: SegmenterOptions) -> Served:
    """The network, and how it looks at images: as in its training, where the options say nothing.

    Raises:
        CheckpointError: for a file that is not of a segmentation network.
        InvalidConfig: for options that cannot work.
    """
    if options.threads is not None:
        if options.threads < 1:
            raise InvalidConfig(f"threads must be at least 1, got {options.threads}")
        torch.set_num_threads(options.threads)
    if not options.scales or min(options.scales) <= 0:
        raise InvalidConfig(f"scales must be positive factors, got {list(options.scales)}")
    if path_of(options.model) is None and is_name(options.model):
        raise CheckpointError(
            f"{options.model} has no head; give the run folder or checkpoint of a segmentation network"
        )
    device = open_device(options.device)
    network, info = load_dense(options.model)
    if not isinstance(network, Segmenter):
        raise CheckpointError(f"{options.model} holds a network for {info.task}, not for segment")
    preparation = Preparation.from_saved(info.preprocessing, network)
    inference = preparation.inference
    if options.inference is not None:
        inference = dataclasses.replace(inference, mode=options.inference)
    slides = inference.mode == "slide"
    for name in ("window", "stride"):
        if (given := getattr(options, name)) is not None:
            if not slides:
                raise InvalidConfig(f"--{name} is of sliding windows; give --inference slide, or leave it out")
            inference = dataclasses.replace(inference, **{name: given})
    preparation = dataclasses.replace(
        preparation,
        inference=dataclasses.replace(inference, flip=options.flip),
        resize=options.resize or preparation.resize,
        exif_orientation=(
            preparation.exif_orientation if options.exif_orientation is None else options.exif_orientation == "apply"
        ),
    )
    names = info.class_names or [f"class {number}" for number in range(network.num_classes)]
    return Served(network.to(device), info, preparation, names)
