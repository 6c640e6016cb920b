"""A trained network as ``eval`` and ``predict`` use it, from a checkpoint or an exported file."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import torch

from visionmlp.deploy.runtimes import RUNTIMES, check_threads, open_session
from visionmlp.deploy.session import SessionModel
from visionmlp.errors import CheckpointError, InvalidConfig
from visionmlp.measure.catalog import is_name
from visionmlp.measure.timing import open_device
from visionmlp.models.checkpoint import path_of
from visionmlp.models.config import size_text
from visionmlp.models.dense_network import load_dense
from visionmlp.models.segmenter import Segmenter
from visionmlp.tasks.segment.building import Preparation, own_preparation
from visionmlp.tasks.segment.classes import colour_map
from visionmlp.tasks.segment.definition import SegmenterOptions
from visionmlp.tasks.segment.inference import Inference

_LARGEST_SCALE = 16


class Served(NamedTuple):
    """What the options name."""

    network: Segmenter | SessionModel
    """In evaluation mode, on the device."""
    preparation: Preparation
    names: list[str]
    """Of the classes."""
    record: dict[str, str | None]
    """``model``, ``head`` (None of an exported file, which does not say it), ``form`` and ``weights``."""


def load_served(options: SegmenterOptions) -> Served:
    """The network, and how it looks at images: as in its training, where the options say nothing.

    Raises:
        CheckpointError: for a file that is not of a segmentation network.
        InvalidConfig: for options that cannot work.
    """
    check_threads(options.threads)
    if not options.scales or min(options.scales) <= 0 or max(options.scales) > _LARGEST_SCALE:
        raise InvalidConfig(f"scales must be positive factors of at most {_LARGEST_SCALE}, got {list(options.scales)}")
    if options.resize is not None and min(options.resize) < 1:
        raise InvalidConfig(f"resize must be two sides of at least 1 pixel, got {list(options.resize)}")
    exported = Path(options.model).suffix in RUNTIMES
    served = _exported(options) if exported else _trained(options)
    preparation = served.preparation
    inference = dataclasses.replace(_inference(options, preparation.inference), flip=options.flip)
    if isinstance(served.network, SessionModel):
        inference = _for_graph(options, inference, served.network)
    preparation = dataclasses.replace(
        preparation,
        inference=inference,
        resize=options.resize or preparation.resize,
        exif_orientation=(
            preparation.exif_orientation if options.exif_orientation is None else options.exif_orientation == "apply"
        ),
    )
    return served._replace(preparation=preparation)


def _trained(options: SegmenterOptions) -> Served:
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if path_of(options.model) is None and is_name(options.model):
        raise CheckpointError(
            f"{options.model} has no head; give the run folder or checkpoint of a segmentation network"
        )
    if options.runtime not in (None, "torch"):
        raise InvalidConfig(
            f"{options.model} is no exported file, which {options.runtime} needs; see visionmlp export, or leave "
            "--runtime out"
        )
    device = open_device(options.device)
    network, info = load_dense(options.model)
    if not isinstance(network, Segmenter):
        raise CheckpointError(f"{options.model} holds a network for {info.task}, not for segment")
    own = own_preparation(network.backbone, network.num_classes)
    return Served(
        network.to(device),
        Preparation.from_saved(info.preprocessing, own),
        _names(info.class_names, network.num_classes),
        {"model": info.model, "head": info.options["head"], "form": info.form, "weights": info.source},
    )


def _exported(options: SegmenterOptions) -> Served:
    if options.device != "cpu":
        raise InvalidConfig(f"exported files run on cpu here; leave out --device {options.device}")
    path = Path(options.model)
    session = open_session(path, runtime=options.runtime, threads=options.threads)
    metadata = session.metadata
    if metadata.task != "segment":
        raise CheckpointError(f"{path} holds a network for {metadata.task}, not for segment")
    channels, *size = metadata.input_size
    if channels != 3:
        raise InvalidConfig(f"{path} takes {channels} channels, but images have 3")
    height, width = size
    own = Preparation(
        mean=(0.0,) * channels,
        std=(1.0,) * channels,
        palette=colour_map(metadata.num_classes),
        inference=Inference(window=(height, width), stride=(height, width)),
    )
    return Served(
        SessionModel(session),
        Preparation.from_saved(metadata.preprocessing, own),
        _names(metadata.class_names, metadata.num_classes),
        {"model": metadata.model, "head": None, "form": metadata.form, "weights": str(path)},
    )


def _names(given: list[str] | None, count: int) -> list[str]:
    return given or [f"class {number}" for number in range(count)]


def _inference(options: SegmenterOptions, inference: Inference) -> Inference:
    """The network's own, with what the options say."""
    if options.inference is not None:
        inference = dataclasses.replace(inference, mode=options.inference)
    given = {name: getattr(options, name) for name in ("window", "stride") if getattr(options, name) is not None}
    if given and inference.mode != "slide":
        raise InvalidConfig(f"--{min(given)} is of sliding windows; give --inference slide, or leave it out")
    window = given.get("window", inference.window)
    if "stride" not in given and any(step > side for step, side in zip(inference.stride, window, strict=True)):
        given["stride"] = tuple(max(1, side * 2 // 3) for side in window)
    return dataclasses.replace(inference, **given)


def _for_graph(options: SegmenterOptions, inference: Inference, network: SessionModel) -> Inference:
    """Windows of the size that a graph takes, if it takes one only."""
    metadata = network.session.metadata
    if metadata.sides is not None:
        return inference
    height, width = size = metadata.input_size[1:]
    if options.inference == "whole" or options.window not in (None, size):
        raise InvalidConfig(
            f"{options.model} takes {size_text(size)} only; leave out --inference and --window, so that windows of "
            "this size slide over images"
        )
    if inference.mode == "slide" and inference.window == size:
        return inference
    stride = options.stride or (max(1, height * 2 // 3), max(1, width * 2 // 3))
    return dataclasses.replace(inference, mode="slide", window=size, stride=stride)
