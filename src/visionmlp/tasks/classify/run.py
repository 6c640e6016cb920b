"""Train image classifiers."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from visionmlp.data import Preprocessing
from visionmlp.data.sources import ImageSource
from visionmlp.data.summary import RunData
from visionmlp.engine import RunFolder
from visionmlp.engine.launch import agree, on_rank_zero
from visionmlp.models.backbone import Backbone
from visionmlp.models.checkpoint import save_checkpoint
from visionmlp.tasks.building import build_backbone, evaluation_batches, open_data, synchronise, training_batches
from visionmlp.tasks.classify.config import ClassifyConfig
from visionmlp.tasks.classify.distillation import Distillation, open_distillation
from visionmlp.tasks.classify.evaluation import Evaluation, evaluate
from visionmlp.tasks.classify.figures import write_confusion, write_report
from visionmlp.tasks.classify.metrics import ClassificationMetric
from visionmlp.tasks.classify.task import Classification
from visionmlp.tasks.definition import TrainResult
from visionmlp.tasks.running import Prepared, bad_images_of, config_of_run, launched_config, run_training

__all__ = ["ClassifyConfig", "Evaluation", "TrainResult", "build_model", "evaluate", "read_config", "train"]

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def train(config: ClassifyConfig, *, resume: bool = False) -> TrainResult:
    """Train a classifier into a run folder.

    Args:
        config: all options.
        resume: continue the run in ``config.output`` from its newest checkpoint.

    Raises:
        VisionMLPError: for everything that a user can act on.
        KeyboardInterrupt: at SIGINT or SIGTERM, when all is saved.
    """
    config = launched_config(config)
    return run_training(config, lambda fabric, run: _prepared(fabric, config, run), write_report, resume=resume)


def read_config(folder: Path) -> ClassifyConfig:
    """See `config_of_run`."""
    return config_of_run(folder, ClassifyConfig)


def build_model(config: ClassifyConfig, num_classes: int) -> Backbone:
    """The model of a run before training, a function of the configuration.

    Raises:
        VisionMLPError: for a model that cannot be built or loaded, or a deploy form.
    """
    model = build_backbone(config, num_classes)
    if config.frozen == "backbone":
        _freeze_backbone(model, config.seed)
    if config.head_bias is not None:
        classifier = model.get_classifier()
        assert isinstance(classifier, nn.Linear)
        nn.init.constant_(classifier.bias, config.head_bias)
    return model


def _freeze_backbone(model: Backbone, seed: int) -> None:
    """Leave a fresh classifier to be trained, drawn as linear evaluation does: N(0, 0.01)."""
    model.requires_grad_(False)
    classifier = model.get_classifier()
    assert isinstance(classifier, nn.Linear)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        nn.init.normal_(classifier.weight, std=0.01)
    nn.init.zeros_(classifier.bias)
    classifier.requires_grad_(True)


def _distillation(
    fabric: "Fabric", config: ClassifyConfig, preprocessing: Preprocessing, source: ImageSource
) -> Distillation | None:
    if config.teacher is None:
        return None
    opened: list[Distillation] = []

    def open_one() -> None:
        opened.append(open_distillation(config, preprocessing, source))

    on_rank_zero(fabric, open_one)  # first, so that it alone downloads
    if not opened:
        open_one()
    return opened[0]


def open_task(
    fabric: "Fabric", config: ClassifyConfig, preprocessing: Preprocessing, source: ImageSource
) -> tuple[Classification, Distillation | None]:
    """Loss and metric of a run, and its teacher, who is to be closed.

    Raises:
        VisionMLPError: for a teacher that cannot be loaded.
    """
    distillation = _distillation(fabric, config, preprocessing, source)
    task = Classification(
        len(source.class_names),
        loss=config.loss,
        label_smoothing=config.label_smoothing,
        mixing=config.mixing,
        distillation=distillation,
        compiled=config.compile,
    )
    return task, distillation


def _prepared(fabric: "Fabric", config: ClassifyConfig, run: RunFolder) -> Prepared:
    log = bad_images_of(config, run)
    # rank 0 first, so that it alone downloads
    training_source, evaluation_source = on_rank_zero(fabric, lambda: open_data(config))
    class_names = training_source.class_names
    model = agree(fabric, lambda: build_model(config, len(class_names)))
    synchronise(model, config, fabric)
    preprocessing = config.preprocessing(model)
    training = training_batches(
        config,
        fabric,
        training_source,
        config.augmentation.transform(preprocessing),
        preprocessing,
        log,
        repeats=config.repeated_augmentation,
    )
    evaluation = evaluation_batches(config, fabric, evaluation_source, preprocessing, log)
    task, distillation = open_task(fabric, config, preprocessing, training_source)

    def write_weights(path: Path, weights: nn.Module) -> None:
        assert isinstance(weights, Backbone)
        save_checkpoint(path, weights, class_names=class_names, preprocessing=preprocessing.to_saved())

    def keep_best(weights: nn.Module, metric: ClassificationMetric) -> None:
        write_weights(run.model, weights)
        write_confusion(run.confusion, metric.confusion, class_names)

    return Prepared(
        model=model,
        task=task,
        training=training,
        evaluation=evaluation,
        data=RunData(training=training_source.summary(), evaluation=evaluation_source.summary()),
        write_weights=write_weights,
        keep_best=keep_best,
        opened=(training, evaluation, distillation),
    )
