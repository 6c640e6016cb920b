"""Image classification: mixup and cutmix, soft or smoothed targets, top-1 and top-5."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from timm.data import Mixup
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn

from visionmlp.data.batches import Batch
from visionmlp.deploy.aotinductor import check_compiler
from visionmlp.engine.sharding import Part
from visionmlp.engine.task import RunContext, Task, TrainingLoss
from visionmlp.errors import InvalidConfig
from visionmlp.layers.auxiliary import AuxiliaryLoss, balance_of, collect_auxiliary
from visionmlp.tasks.building import parts_of
from visionmlp.tasks.classify.config import Mixing
from visionmlp.tasks.classify.distillation import Distillation
from visionmlp.tasks.classify.metrics import ClassificationMetric


class Classification(Task):
    """The task of `visionmlp.engine.fit`.

    Args:
        num_classes: outputs of the model.
        loss: ``cross_entropy``; ``bce``, sigmoid cross-entropy averaged over classes; ``bce_sum``, summed over classes.
        label_smoothing: share of the target that goes to all classes evenly.
        mixing: mixup and cutmix.
        distillation: from a teacher, which sees the images as the model does.
        compiled: whether the model is compiled by ``torch.compile``; its moving average is not.
    """

    metric: ClassVar[str] = "top1"

    def __init__(
        self,
        num_classes: int,
        *,
        loss: Literal["cross_entropy", "bce", "bce_sum"] = "cross_entropy",
        label_smoothing: float = 0.0,
        mixing: Mixing | None = None,
        distillation: Distillation | None = None,
        compiled: bool = False,
    ) -> None:
        self.num_classes, self.distillation, self.compiled = num_classes, distillation, compiled
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

    def start(self, model: nn.Module, run: RunContext) -> None:
        """Move the teacher to the device, compile the model.

        Raises:
            InvalidConfig: if it cannot be compiled.
        """
        if self.distillation is not None:
            self.distillation.teacher.to(run.device)
        if self.compiled:
            _compile(model)

    def parts(self, model: nn.Module) -> list[Part]:
        """The blocks of a backbone."""
        return parts_of(model)

    def state_dict(self) -> dict[str, Any]:
        """Which teacher it is, if there is one; nothing else is kept."""
        return {} if self.distillation is None else self.distillation.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Check that the teacher is that of the run's start.

        Raises:
            InvalidConfig: if it is another.
        """
        if self.distillation is None:
            super().load_state_dict(state)
        else:
            self.distillation.load_state_dict(state)

    def training_loss(self, model: nn.Module, batch: Batch) -> TrainingLoss:
        """Loss of a batch, mixed by draws from NumPy's global generator, plus what parts of the model add.

        A model with routed experts adds their balance; `TrainingLoss.routing` has it as ``balance`` too. Distillation
        adds columns: both its losses, and the percentage of images on which teacher and model agree.
        """
        images, targets = batch.images, batch.labels
        distillation = self.distillation
        # before the draws of mixing, which are a part of a mixed image's name
        names = [] if distillation is None else distillation.names(batch.keys, mixed=self.mix is not None)
        if self.mix is not None:
            images, targets = self.mix(images.clone(), targets)  # in place otherwise
        answers = None if distillation is None else distillation.answers(images, names)
        with collect_auxiliary(model) as collected:
            logits = model(images)
        value, count = self.loss(logits, targets), len(images)
        columns: dict[str, Tensor] = {}
        if distillation is not None and answers is not None:
            value, columns = distillation.combine(value, logits, answers)
        if not collected:
            return TrainingLoss(total=value * count, count=count, columns=columns)
        balance, routing = balance_of(collected)
        return TrainingLoss(total=(value + balance) * count, count=count, columns=columns, routing=routing)

    def new_metric(self) -> ClassificationMetric:
        """See `ClassificationMetric`."""
        return ClassificationMetric(self.num_classes)

    def evaluate(self, model: nn.Module, batch: Batch, metric: ClassificationMetric) -> None:
        """Take a batch into the metric."""
        metric.update(model(batch.images), batch.labels)


def _compile(model: nn.Module) -> None:
    """Compile in place, so that names of weights stay."""
    check_compiler("torch.compile", "leave compile out")
    if any(isinstance(module, AuxiliaryLoss) for module in model.modules()):
        raise InvalidConfig("compile does not take routed experts, whose work depends on the images; leave it out")
    # graphs of an earlier run would be taken for this one's, and past their limit it would silently run uncompiled
    torch._dynamo.reset()
    model.compile(fullgraph=True)
