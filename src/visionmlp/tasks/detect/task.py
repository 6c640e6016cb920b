"""Detection as the loop knows it: the network's losses, and what it finds on the evaluation images."""

from typing import ClassVar

import torch
from torch import nn

from visionmlp.engine.sharding import Part
from visionmlp.engine.task import Task, TrainingLoss
from visionmlp.layers.auxiliary import balance_of, collect_auxiliary
from visionmlp.models.detector import Detector
from visionmlp.tasks.building import parts_of
from visionmlp.tasks.detect.annotations import AnnotatedSet
from visionmlp.tasks.detect.inference import found_on
from visionmlp.tasks.detect.metrics import CocoMetric, Detections
from visionmlp.tasks.detect.samples import DetectionBatch


class Detection(Task):
    """The task of `visionmlp.engine.fit` for a `Detector`.

    The network's losses are means over the images, anchors or regions of a batch on one device, as its definition says,
    so a step's loss is their mean over parts and processes, weighted by images.

    Args:
        truth: the evaluation images.
        masks: whether masks are scored.
        max_detections: see `CocoMetric`.
    """

    metric: ClassVar[str] = "ap"

    def __init__(self, truth: AnnotatedSet, *, masks: bool, max_detections: int = 100) -> None:
        self.truth, self.masks, self.max_detections = truth, masks, max_detections

    def parts(self, model: nn.Module) -> list[Part]:
        """The blocks of the backbone."""
        assert isinstance(model, Detector)
        return parts_of(model.backbone)

    def training_loss(self, model: nn.Module, batch: DetectionBatch) -> TrainingLoss:
        """The sum of the network's losses, each a column too, plus the balance of routed experts."""
        with collect_auxiliary(model) as collected:
            losses: dict[str, torch.Tensor] = model(batch.images, batch.targets)
        balance, routing = balance_of(collected) if collected else (0.0, {})
        count = len(batch.images)
        return TrainingLoss(
            total=(torch.stack(list(losses.values())).sum() + balance) * count,
            count=count,
            columns=losses,
            routing=routing,
        )

    def new_metric(self) -> CocoMetric:
        """See `CocoMetric`."""
        return CocoMetric(self.truth, masks=self.masks, max_detections=self.max_detections)

    def evaluate(self, model: nn.Module, batch: DetectionBatch, metric: CocoMetric) -> None:
        """Take what is found into the metric."""
        for index, result in zip(batch.keys[:, 2].tolist(), found_on(model, batch.images), strict=True):
            metric.add(index, Detections.of(result))
