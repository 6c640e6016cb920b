"""Evaluate image classifiers."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict, cast

from torch import Tensor, nn

from visionmlp.data import BadImageLog, Batch, EvaluationBatches, Preprocessing, open_evaluation_data
from visionmlp.data.classes import imagenet_outputs
from visionmlp.data.policy import OnBadImage
from visionmlp.data.real_labels import real_labels_of
from visionmlp.data.sources import ImageSource
from visionmlp.deploy.session import SessionModel, preprocessing_of
from visionmlp.engine import evaluate as evaluate_task
from visionmlp.errors import DataError
from visionmlp.models.backbone import Backbone
from visionmlp.models.checkpoint import CheckpointInfo
from visionmlp.tasks.classify.config import ClassifyConfig
from visionmlp.tasks.classify.metrics import EvaluationMetric
from visionmlp.tasks.classify.task import Classification
from visionmlp.tasks.classify.ten_crop import TenCropModel


class Evaluation(TypedDict):
    """A model on a dataset. Where no image has a class, all that needs one is NaN or zero."""

    top1: float
    """Percent."""
    top5: float
    """Percent."""
    loss: float
    """Cross-entropy."""
    ece: float
    """Expected calibration error, percent."""
    real: float | None
    """Percent by ReaL labels; None without them."""
    real_images: int | None
    """Images that count for it."""
    real_empty: int | None
    """Images that do not, since their list is empty."""
    images: int
    skipped: int
    """Images that could not be read."""
    confusion: Tensor
    """(K, K), int64: true classes in rows, predictions in columns."""
    calibration: Tensor
    """(15, 3): of each bin the images, the sum of their confidences, and how many are right."""
    class_names: list[str]


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
    ten_crop: bool = False,
    real_labels: Path | None = None,
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
        ten_crop: average the probabilities of ten crops, see `visionmlp.data.Preprocessing.ten_crop`.
        real_labels: the ``real.json`` of ImageNet's validation images, which may then also lie in one folder, without
            classes; see `visionmlp.data.real_labels`.

    Raises:
        DataError: if the data cannot be used, has classes that the model lacks, or does not fit the ReaL labels.
        InvalidConfig: for a number that breaks its rule.
    """
    ClassifyConfig.require(batch_size >= 1, f"batch_size must be at least 1, got {batch_size}")
    ClassifyConfig.require(num_workers >= 0, f"num_workers must not be negative, got {num_workers}")
    source = open_evaluation_data(
        data,
        split=split,
        root=data_root,
        class_names=info.class_names,
        num_classes=model.num_classes,
        flat=real_labels is not None,
    )
    answers = None if real_labels is None else _real_answers(source, real_labels, info, model.num_classes)
    preprocessing = Preprocessing.from_saved(preprocessing_of(model, info))
    batches = EvaluationBatches(
        source,
        preprocessing.ten_crop() if ten_crop else preprocessing.transform(),
        batch_size=batch_size,
        mode=preprocessing.mode,
        exif_orientation=preprocessing.exif_orientation,
        bad_images=BadImageLog(on_bad_image),
        num_workers=num_workers,
    )
    like = next(model.parameters())
    task = _Judged(model.num_classes, answers)

    def prepare(batch: Batch) -> Batch:
        return batch._replace(images=batch.images.to(like), labels=batch.labels.to(like.device))

    judged = TenCropModel(model) if ten_crop else model
    with contextlib.closing(batches):
        metric = cast("EvaluationMetric", evaluate_task(task, judged, batches, prepare=prepare))
    metrics = metric.compute()
    return Evaluation(
        top1=metrics["top1"],
        top5=metrics["top5"],
        loss=metrics["loss"],
        ece=metrics["ece"],
        real=metrics.get("real"),
        real_images=None if metric.real is None else metric.real.images,
        real_empty=None if metric.real is None else metric.real.empty,
        images=metric.images,
        skipped=len(source) - metric.images,
        confusion=metric.classification.confusion,
        calibration=metric.calibration.bins,
        class_names=source.class_names,
    )


class _Judged(Classification):
    """Classification with all that is said once about a model, not at each epoch."""

    def __init__(self, num_classes: int, real: Sequence[Sequence[int]] | None) -> None:
        super().__init__(num_classes)
        self.real = real

    def new_metric(self) -> EvaluationMetric:  # type: ignore[override] (none that trains)
        return EvaluationMetric(self.num_classes, self.real)

    def evaluate(self, model: nn.Module, batch: Batch, metric: EvaluationMetric) -> None:  # type: ignore[override]
        assert batch.keys is not None
        metric.update(model(batch.images), batch.labels, batch.keys[:, 2])


def _real_answers(source: ImageSource, path: Path, info: CheckpointInfo, num_classes: int) -> list[list[int]]:
    outputs = imagenet_outputs(info.class_names, num_classes)
    if outputs is None:
        names = f" ({', '.join(info.class_names[:3])}, ...)" if info.class_names else ""
        raise DataError(
            f"ReaL labels are ImageNet's 1000 classes, and the {num_classes} outputs of {info.model}{names} are not "
            "known to be these; leave out --real-labels, or name the outputs by synsets"
        )
    return real_labels_of(source, path, outputs)
