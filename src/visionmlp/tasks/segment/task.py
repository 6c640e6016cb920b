"""Semantic segmentation: the loss on two heads, and scores at the size that images have."""

from collections.abc import Collection
from typing import ClassVar

import numpy as np
from torch import nn

from visionmlp.engine.sharding import Part
from visionmlp.engine.task import Task, TrainingLoss
from visionmlp.layers.auxiliary import balance_of, collect_auxiliary
from visionmlp.models.segmenter import Segmenter
from visionmlp.tasks.building import parts_of
from visionmlp.tasks.segment.data import Batch, EvaluationBatch
from visionmlp.tasks.segment.inference import Inference, segmenter_logits
from visionmlp.tasks.segment.loss import SegmentationLoss
from visionmlp.tasks.segment.metrics import SegmentationMetric


class Segmentation(Task):
    """The task of `visionmlp.engine.fit`, of a `Segmenter`.

    Args:
        num_classes: K.
        loss: of training.
        inference: of evaluation.
        shown: numbers of the evaluated images whose predictions are kept for pictures.
    """

    metric: ClassVar[str] = "miou"

    def __init__(
        self, num_classes: int, *, loss: SegmentationLoss, inference: Inference, shown: Collection[int] = ()
    ) -> None:
        self.num_classes, self.loss, self.inference, self.shown = num_classes, loss, inference, frozenset(shown)

    def parts(self, model: nn.Module) -> list[Part]:
        """The blocks of the backbone."""
        assert isinstance(model, Segmenter)
        return parts_of(model.backbone)

    def training_loss(self, model: nn.Module, batch: Batch) -> TrainingLoss:
        """Of all pixels, or of those that count; plus the balance of routed experts, where the backbone has them."""
        with collect_auxiliary(model) as collected:
            logits, auxiliary = model(batch.images, auxiliary=True)
        total, count = self.loss(logits, auxiliary, batch.labels)
        if not collected:
            return TrainingLoss(total=total, count=count)
        balance, routing = balance_of(collected)
        return TrainingLoss(total=total + balance * count, count=count, routing=routing)

    def new_metric(self) -> SegmentationMetric:
        """See `SegmentationMetric`."""
        return SegmentationMetric(self.num_classes)

    def evaluate(self, model: nn.Module, batch: EvaluationBatch, metric: SegmentationMetric) -> None:
        """Take images into the metric, one after the other."""
        logits = segmenter_logits(model)
        for item, number in zip(batch.items, batch.numbers, strict=True):
            labels = item.labels
            predicted = np.zeros(tuple(labels.shape), np.uint8) if number in self.shown else None
            for chunk in self.inference(logits, item.views, (labels.shape[0], labels.shape[1])):
                metric.update(chunk.log_probabilities, chunk.predicted, labels[chunk.rows])
                if predicted is not None:
                    predicted[chunk.rows] = chunk.predicted.cpu().numpy()
            metric.count_image()
            if predicted is not None:
                metric.show(number, predicted)
