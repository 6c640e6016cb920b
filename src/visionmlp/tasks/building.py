"""The model and the batches that a run on images starts with, a function of its options."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from visionmlp.data import BadImageLog, EvaluationBatches, Preprocessing, TrainingBatches, open_training_data
from visionmlp.data.batches import EpochOrder
from visionmlp.data.sources import ImageSource
from visionmlp.data.transforms import Transform
from visionmlp.data.views import Views
from visionmlp.engine.sharding import Part
from visionmlp.errors import InvalidConfig, Note
from visionmlp.layers.auxiliary import AuxiliaryLoss
from visionmlp.layers.synchronised_balance import synchronise_balance
from visionmlp.layers.synchronised_norm import synchronise_norms
from visionmlp.models.backbone import Backbone
from visionmlp.models.checkpoint import load_model, path_of, read_info, require_trainable
from visionmlp.models.dense_network import DenseNetwork, is_dense, load_dense
from visionmlp.models.dense_start import take_over
from visionmlp.models.registry import create_model, is_model, variant
from visionmlp.tasks.image_config import ImageTrainingConfig, LabelledImagesConfig

if TYPE_CHECKING:
    from lightning_fabric import Fabric

DenseNetworkT = TypeVar("DenseNetworkT", bound=DenseNetwork)


def build_backbone(config: ImageTrainingConfig, num_classes: int) -> Backbone:
    """The model of a run before training.

    Args:
        config: of the run.
        num_classes: outputs of the classifier; 0 for none.

    Raises:
        VisionMLPError: for a model that cannot be built or loaded, or a deploy form.
    """
    fields = _fields(config)
    if fields.get("feature_norms"):
        raise InvalidConfig("a classifier does not use feature_norms; remove it from model_args")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        # as in load_model: a model's name means the model, whatever lies beside it
        if not is_model(config.model) and Path(config.model).exists():
            model = _loaded(config, fields)
            if model.num_classes != num_classes:
                model.reset_classifier(num_classes)
            return model
        return _loaded(config, {**fields, "num_classes": num_classes})


def build_dense_backbone(config: ImageTrainingConfig) -> Backbone:
    """The backbone of a run on dense prediction before training: no classifier, and a norm on each level where the
    family's authors have one.

    Raises:
        VisionMLPError: for a model that cannot be built or loaded, or a deploy form.
    """
    if config.checkpoint is not None and is_dense(config.checkpoint):
        raise InvalidConfig(
            f"{config.checkpoint} holds a network with a head; give it in place of the model {config.model}"
        )
    fields = _fields(config)
    path = path_of(config.model)
    name = config.model if path is None else read_info(path).model
    if "feature_norms" in {field.name for field in dataclasses.fields(variant(name).config)}:
        fields.setdefault("feature_norms", True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = _loaded(config, fields)
        model.reset_classifier(0)
    return model


def build_dense_network(
    config: ImageTrainingConfig, with_head: Callable[[Backbone], DenseNetworkT], class_names: Sequence[str] | None
) -> DenseNetworkT:
    """The network of a run on dense prediction before training.

    Where the model is the run folder or checkpoint of such a network, it begins with what that has learnt, see
    `take_over`; a note says what is fresh.

    Args:
        config: of the run.
        with_head: a backbone to the network, with fresh neck and head.
        class_names: of the data; None if it does not say them.

    Raises:
        VisionMLPError: for a model that cannot be built or loaded, or a deploy form.
    """
    path = path_of(config.model)
    if path is None or not is_dense(path):
        return with_head(build_dense_backbone(config))
    if config.checkpoint is not None or config.pretrained:
        raise InvalidConfig(f"{path} holds weights already; give --checkpoint or --pretrained with a model name only")
    given, info = load_dense(path)
    if info.form == "deploy":
        raise InvalidConfig(f"{path} is a deploy form, which cannot be trained; give that of its training form")
    fields = {**info.config, **_changes(config)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        backbone = create_model(info.model, **fields)
        normalised = {key: info.options.get(f"image_{key}") for key in ("mean", "std")}
        _keep_colours(backbone, {**normalised, **info.preprocessing})
    for name in ("mean", "std"):  # of its images, if the options say no others
        if known := info.options.get(f"image_{name}") or info.preprocessing.get(name):
            backbone.pretrained_cfg = {**backbone.pretrained_cfg, name: tuple(known)}
    network = with_head(backbone)
    same = class_names is not None and list(class_names) == info.class_names
    fresh = take_over(network, given, str(path), same_classes=same)
    said = f"fresh are {', '.join(fresh)}" if fresh else "all of its weights fit"
    warnings.warn(f"begins with {path}; {said}", Note, stacklevel=2)
    return network


def _fields(config: ImageTrainingConfig) -> dict[str, Any]:
    """Of the model's configuration, as the options say; weights must be those of a training form."""
    require_trainable(config.model)
    if config.checkpoint is not None:
        require_trainable(config.checkpoint)
    return _changes(config)


def _changes(config: ImageTrainingConfig) -> dict[str, Any]:
    fields = dict(config.model_args)
    for name in ("reference", "checkpoint", "pretrained", "prefix"):
        if name in fields:
            raise InvalidConfig(f"{name} is no field of a model; remove it from model_args")
    for name in ("img_size", "drop_path_rate"):
        if getattr(config, name) is not None:
            fields[name] = getattr(config, name)
    if "num_classes" in fields:
        raise InvalidConfig("num_classes follows from the data; remove it from model_args")
    return fields


def _loaded(config: ImageTrainingConfig, fields: Mapping[str, Any]) -> Backbone:
    model, info = load_model(
        config.model,
        checkpoint=config.checkpoint,
        pretrained=config.pretrained,
        prefix=config.checkpoint_prefix,
        **fields,
    )
    _keep_colours(model, info.preprocessing or {})
    return model


def _keep_colours(model: Backbone, learnt: Mapping[str, Any]) -> None:
    """Let a model's own normalisation be the one that its weights have learnt by, where a checkpoint says it."""
    colours = {key: tuple(learnt[key]) for key in ("mean", "std") if len(learnt.get(key) or ()) == model.in_chans}
    model.pretrained_cfg = {**model.pretrained_cfg, **colours}


def synchronise(model: nn.Module, config: ImageTrainingConfig, fabric: "Fabric") -> None:
    """Let what is a function of a batch be one of the batches of all processes, where there are several."""
    if fabric.world_size > 1:
        synchronise_balance(model)
        if config.sync_batch_norm:
            synchronise_norms(model)


def parts_of(backbone: nn.Module) -> list[Part]:
    """The blocks of a backbone, as what FSDP gathers at a time; nothing of another model."""
    if not isinstance(backbone, Backbone):
        return []
    blocks = [block for stage in backbone.stages for block in stage.blocks]  # type: ignore[union-attr]
    # a loss beside the output does not wait for the output's gradient, which is what gathers weights again
    return [Part(block, any(isinstance(module, AuxiliaryLoss) for module in block.modules())) for block in blocks]


def open_data(config: LabelledImagesConfig) -> tuple[ImageSource, ImageSource]:
    """The images of a run, to train and to evaluate on.

    Raises:
        DataError: see `visionmlp.data.open_training_data`.
    """
    return open_training_data(
        config.data, root=config.data_root, download=config.download, max_images=config.max_images
    )


def training_batches(
    config: LabelledImagesConfig,
    fabric: "Fabric",
    source: ImageSource,
    transform: Transform | Views,
    preprocessing: Preprocessing,
    log: BadImageLog,
    *,
    repeats: int = 1,
) -> TrainingBatches:
    """Augmented batches of this process; ``repeats`` views of each image within an epoch."""
    order = EpochOrder(
        len(source),
        config.part_size,
        seed=config.seed,
        rank=fabric.global_rank,
        ranks=fabric.world_size,
        repeats=repeats,
    )
    return TrainingBatches(
        source,
        transform,
        order,
        mode=preprocessing.mode,
        exif_orientation=preprocessing.exif_orientation,
        bad_images=log,
        num_workers=config.num_workers,
        pin_memory=fabric.device.type == "cuda",
    )


def evaluation_batches(
    config: LabelledImagesConfig,
    fabric: "Fabric",
    source: ImageSource,
    preprocessing: Preprocessing,
    log: BadImageLog,
) -> EvaluationBatches:
    """This process's share of all images, prepared as evaluation does."""
    return EvaluationBatches(
        source,
        preprocessing.transform(),
        batch_size=config.part_size,
        mode=preprocessing.mode,
        exif_orientation=preprocessing.exif_orientation,
        bad_images=log,
        rank=fabric.global_rank,
        ranks=fabric.world_size,
        num_workers=config.num_workers,
        pin_memory=fabric.device.type == "cuda",
    )
