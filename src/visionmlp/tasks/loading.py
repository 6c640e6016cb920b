"""The model that a command's options name, with what the user should know about it."""

import dataclasses
import warnings
from pathlib import Path

import torch

from visionmlp.deploy.runtimes import RUNTIMES, check_threads, open_session, session_of_model
from visionmlp.deploy.session import SessionModel, preprocessing_of
from visionmlp.errors import InvalidConfig, Note
from visionmlp.models.backbone import Backbone
from visionmlp.models.checkpoint import CheckpointInfo, load_model, path_of
from visionmlp.models.dense_network import DenseInfo, DenseNetwork, is_dense, load_dense
from visionmlp.tasks.options import ModelOptions, ServedOptions
from visionmlp.tasks.register import DEFAULT


def load(options: ModelOptions) -> tuple[Backbone, CheckpointInfo]:
    """A model in evaluation mode.

    Raises:
        VisionMLPError: see `visionmlp.models.checkpoint.load_model`.
    """
    return load_model(
        options.model,
        checkpoint=options.checkpoint,
        pretrained=options.pretrained,
        prefix=options.checkpoint_prefix,
    )


def load_network(options: ModelOptions) -> tuple[Backbone | DenseNetwork, CheckpointInfo | DenseInfo]:
    """What the options name, a classifier or a network for dense prediction, in evaluation mode.

    Raises:
        VisionMLPError: see `load`.
    """
    path = path_of(options.model)
    if path is None or not is_dense(path):
        return load(options)
    if options.checkpoint is not None or options.pretrained:
        raise InvalidConfig(f"{path} holds weights already; give --checkpoint or --pretrained with a model name only")
    return load_dense(path)


def is_fresh(options: ModelOptions, info: CheckpointInfo | DenseInfo) -> bool:
    """Whether the options name a model only, without any weights."""
    weights = options.checkpoint is not None or options.pretrained
    return not weights and options.model.partition(".")[0] == info.model


def load_served(options: ServedOptions) -> tuple[Backbone | SessionModel, CheckpointInfo]:
    """A model in the runtime that the options name. Fresh weights are pointed out: without training it says nothing.

    Raises:
        InvalidConfig: for options that exclude each other.
        VisionMLPError: for a model that cannot be loaded.
    """
    path = Path(options.model)
    check_threads(options.threads)
    if path.suffix not in RUNTIMES and options.runtime in (None, "torch"):
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        model, info = _load_trained(options)
        return model, _reoriented(model, info, options)
    if options.device != "cpu":
        raise InvalidConfig(f"exported models run on cpu here; leave out --device {options.device}")
    if path.suffix in RUNTIMES:
        if options.checkpoint is not None or options.pretrained:
            raise InvalidConfig(
                f"{path} holds weights already; give --checkpoint or --pretrained with a model name only"
            )
        session = open_session(path, runtime=options.runtime, threads=options.threads)
        if session.metadata.task != DEFAULT:
            raise InvalidConfig(
                f"{path} holds a network for {session.metadata.task}; give --task {session.metadata.task}"
            )
    else:
        model, info = _load_trained(options)
        assert options.runtime in ("onnxruntime", "openvino", "aotinductor")
        session = session_of_model(model, info, runtime=options.runtime, threads=options.threads)
    served = SessionModel(session)
    return served, _reoriented(served, session.metadata.info(options.model), options)


def _reoriented(model: Backbone | SessionModel, info: CheckpointInfo, options: ServedOptions) -> CheckpointInfo:
    if options.exif_orientation is None:
        return info
    turn = {"exif_orientation": options.exif_orientation == "apply"}
    return dataclasses.replace(info, preprocessing={**preprocessing_of(model, info), **turn})


def _load_trained(options: ServedOptions) -> tuple[Backbone, CheckpointInfo]:
    model, info = load(options)
    if is_fresh(options, info):
        warnings.warn(
            f"{info.model} has fresh weights; give a run folder, a checkpoint file, --checkpoint or --pretrained",
            Note,
            stacklevel=2,
        )
    return model, info
