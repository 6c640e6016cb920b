"""Train and evaluate image classifiers."""

import contextlib
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, cast

import torch
from torch import Tensor, nn

from visionmlp.data import (
    BadImageLog,
    Batch,
    EvaluationBatches,
    Preprocessing,
    open_evaluation_data,
)
from visionmlp.data.policy import OnBadImage
from visionmlp.data.sources import ImageSource
from visionmlp.data.summary import RunData
from visionmlp.deploy.session import SessionModel, preprocessing_of
from visionmlp.engine import RunFolder, fit
from visionmlp.engine import evaluate as evaluate_task
from visionmlp.engine.launch import agree, as_launched, launch, on_rank_zero
from visionmlp.errors import require
from visionmlp.models.backbone import Backbone
from visionmlp.models.checkpoint import (
    CheckpointInfo,
    save_checkpoint,
)
from visionmlp.tasks.building import build_backbone, evaluation_batches, open_data, synchronise, training_batches
from visionmlp.tasks.classify.config import ClassifyConfig
from visionmlp.tasks.classify.distillation import Distillation, open_distillation
from visionmlp.tasks.classify.figures import write_confusion, write_report
from visionmlp.tasks.classify.metrics import ClassificationMetric
from visionmlp.tasks.classify.task import Classification

__all__ = ["ClassifyConfig", "Evaluation", "TrainResult", "build_model", "evaluate", "read_config", "train"]

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainResult:
    """How a run ended."""

    folder: Path
    """The run folder, with ``model.safetensors`` and ``report.html``."""
    metrics: dict[str, float]
    """``top1``, ``top5`` (percent) and ``loss`` of ``model.safetensors``."""
    best_step: int
    """Step that its weights are of."""
    steps: int
    """Steps of the run."""
    seconds: float
    """Duration of training in this session."""
    rank: int = 0
    """Of this process among those that trained together."""


class Evaluation(TypedDict):
    """A model on a dataset."""

    top1: float
    """Percent."""
    top5: float
    """Percent."""
    loss: float
    """Cross-entropy."""
    images: int
    skipped: int
    """Images that could not be read."""
    confusion: Tensor
    """(K, K), int64: true classes in rows, predictions in columns."""
    class_names: list[str]


def train(config: ClassifyConfig, *, resume: bool = False) -> TrainResult:
    """Train a classifier into a run folder.

    Args:
        config: all options.
        resume: continue the run in ``config.output`` from its newest checkpoint.

    Raises:
        VisionMLPError: for everything that a user can act on.
        KeyboardInterrupt: at SIGINT or SIGTERM, when all is saved.
    """
    require("matplotlib", extra="plots")  # now rather than behind the training
    config = as_launched(config)
    return launch(config, lambda fabric: _train(fabric, config, resume))


def evaluate(
    model: Backbone | SessionModel,
    info: CheckpointInfo,
    *,
    data: str,
    data_root: Path | None = None,
    split: str = "validation",
    batch_size: int = 64,
    num_workers: int = 0,
    on_bad_image: OnBadImage = "stop",
) -> Evaluation:
    """Evaluate a classifier, in either form, on the device that it is on.

    Args:
        model: from `visionmlp.load_model`, or an exported file at work.
        info: says how images are prepared, and the names of the classes.
        data: dataset, as in `ClassifyConfig`; a folder may also hold the class folders themselves.
        data_root: as in `ClassifyConfig`.
        split: ``validation``, ``train`` or ``test``.
        batch_size: images at a time.
        num_workers: processes that load images.
        on_bad_image: ``stop`` or ``skip``.

    Raises:
        DataError: if the data cannot be used, or has classes that the model lacks.
        InvalidConfig: for a number that breaks its rule.
    """
    ClassifyConfig.require(batch_size >= 1, f"batch_size must be at least 1, got {batch_size}")
    ClassifyConfig.require(num_workers >= 0, f"num_workers must not be negative, got {num_workers}")
    source = open_evaluation_data(
        data, split=split, root=data_root, class_names=info.class_names, num_classes=model.num_classes
    )
    preprocessing = Preprocessing.from_saved(preprocessing_of(model, info))
    batches = EvaluationBatches(
        source,
        preprocessing.transform(),
        batch_size=batch_size,
        mode=preprocessing.mode,
        exif_orientation=preprocessing.exif_orientation,
        bad_images=BadImageLog(on_bad_image),
        num_workers=num_workers,
    )
    like = next(model.parameters())
    task = Classification(model.num_classes)

    def prepare(batch: Batch) -> Batch:
        return batch._replace(images=batch.images.to(like), labels=batch.labels.to(like.device))

    with contextlib.closing(batches):
        metric = cast("ClassificationMetric", evaluate_task(task, model, batches, prepare=prepare))
    metrics = metric.compute()
    return Evaluation(
        top1=metrics["top1"],
        top5=metrics["top5"],
        loss=metrics["loss"],
        images=metric.images,
        skipped=len(source) - metric.images,
        confusion=metric.confusion,
        class_names=source.class_names,
    )


def read_config(folder: Path) -> ClassifyConfig:
    """The configuration of a run.

    Raises:
        RunFolderError: if there is none.
        InvalidConfig: if it was edited and breaks a rule.
    """
    return ClassifyConfig.from_plain(RunFolder(folder).read_config())


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


def _train(fabric: "Fabric", config: ClassifyConfig, resume: bool) -> TrainResult:
    # rank 0 first, so that it alone downloads
    training_source, evaluation_source = on_rank_zero(fabric, lambda: open_data(config))
    class_names = training_source.class_names
    model = agree(fabric, lambda: build_model(config, len(class_names)))
    synchronise(model, config, fabric)
    preprocessing = config.preprocessing(model)
    run = RunFolder(config.output)
    log = BadImageLog(config.on_bad_image, run.bad_images)
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
    distillation = _distillation(fabric, config, preprocessing, training_source)
    task = Classification(
        len(class_names),
        loss=config.loss,
        label_smoothing=config.label_smoothing,
        mixing=config.mixing,
        distillation=distillation,
    )

    def write_weights(path: Path, weights: nn.Module) -> None:
        assert isinstance(weights, Backbone)
        save_checkpoint(path, weights, class_names=class_names, preprocessing=preprocessing.to_saved())

    def keep_best(weights: nn.Module, metric: ClassificationMetric) -> None:
        write_weights(run.model, weights)
        write_confusion(run.confusion, metric.confusion, class_names)

    with contextlib.ExitStack() as stack:
        for opened in (training, evaluation, distillation):
            if opened is not None:
                stack.callback(opened.close)
        result = fit(
            fabric=fabric,
            model=model,
            task=task,
            training=training,
            evaluation=evaluation,
            config=config,
            run=run,
            write_weights=write_weights,
            keep_best=keep_best,
            data=RunData(training=training_source.summary(), evaluation=evaluation_source.summary()),
            resume=resume,
        )
    on_rank_zero(fabric, lambda: write_report(run.path))
    return TrainResult(
        folder=config.output,
        metrics=result.metrics,
        best_step=result.best_step,
        steps=result.steps,
        seconds=result.seconds,
        rank=fabric.global_rank,
    )
