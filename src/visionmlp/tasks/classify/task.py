"""Image classification: mixup and cutmix, soft or smoothed targets, top-1 and top-5."""

import dataclasses
from typing import ClassVar, Literal

from timm.data import Mixup
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import nn

from visionmlp.data.batches import Batch
from visionmlp.engine.task import Task, TrainingLoss
from visionmlp.layers.auxiliary import balance_of, collect_auxiliary
from visionmlp.tasks.classify.metrics import ClassificationMetric


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixing:
    """How the images of a batch are mixed in training, by ``timm.data.Mixup``."""

    mixup: float = 0.0
    """Alpha of mixup; 0 leaves it out."""
    cutmix: float = 0.0
    """Alpha of cutmix; 0 leaves it out."""
    probability: float = 1.0
    """Of mixing at all."""
    switch_probability: float = 0.5
    """Of cutmix, where both are on."""
    mode: Literal["batch", "pair", "elem"] = "batch"
    """What shares one draw: a batch, a pair of images, or nothing."""

    @property
    def enabled(self) -> bool:
        """Whether anything is mixed."""
        return (self.mixup > 0 or self.cutmix > 0) and self.probability > 0


class Classification(Task):
    """The task of `visionmlp.engine.fit`.

    Args:
        num_classes: outputs of the model.
        loss: ``cross_entropy``; ``bce``, sigmoid cross-entropy averaged over classes; ``bce_sum``, summed over classes.
        label_smoothing: share of the target that goes to all classes evenly.
        mixing: mixup and cutmix.
    """

    metric: ClassVar[str] = "top1"

    def __init__(
        self,
        num_classes: int,
        *,
        loss: Literal["cross_entropy", "bce", "bce_sum"] = "cross_entropy",
        label_smoothing: float = 0.0,
        mixing: Mixing | None = None,
    ) -> None:
        self.num_classes = num_classes
        mixing = mixing or Mixing()
        self.mix: Mixup | None = None
        if mixing.enabled:
            self.mix = Mixup(
                mixup_alpha=mixing.mixup,
                cutmix_alpha=mixing.cutmix,
                prob=mixing.probability,
                switch_prob=mixing.switch_probability,
                mode=mixing.mode,
                label_smoothing=label_smoothing,
                num_classes=num_classes,
            )
        self.loss: nn.Module
        if loss != "cross_entropy":
            self.loss = BinaryCrossEntropy(label_smoothing, sum_classes=loss == "bce_sum")
        elif self.mix is not None:
            self.loss = SoftTargetCrossEntropy()
        else:
            self.loss = LabelSmoothingCrossEntropy(label_smoothing)

    def training_loss(self, model: nn.Module, batch: Batch) -> TrainingLoss:
        """Loss of a batch, mixed by draws from NumPy's global generator, plus what parts of the model add.

        A model with routed experts adds their balance; `TrainingLoss.routing` has it as ``balance`` too.
        """
        images, targets = batch.images, batch.labels
        if self.mix is not None:
            images, targets = self.mix(images.clone(), targets)  # in place otherwise
        with collect_auxiliary(model) as collected:
            logits = model(images)
        value, count = self.loss(logits, targets), len(images)
        if not collected:
            return TrainingLoss(total=value * count, count=count)
        balance, routing = balance_of(collected)
        return TrainingLoss(total=(value + balance) * count, count=count, routing=routing)

    def new_metric(self) -> ClassificationMetric:
        """See `ClassificationMetric`."""
        return ClassificationMetric(self.num_classes)

    def evaluate(self, model: nn.Module, batch: Batch, metric: ClassificationMetric) -> None:
        """Take a batch into the metric."""
        metric.update(model(batch.images), batch.labels)
