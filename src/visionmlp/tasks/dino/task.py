"""DINO's loss, teacher and centre. Caron et al., arXiv 2104.14294, section 3.1; orders and means as the authors'."""

import contextlib
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionmlp.data.batches import ViewBatch
from visionmlp.engine.processes import Processes
from visionmlp.engine.sharding import Part
from visionmlp.engine.task import RunContext, Task, TrainingLoss
from visionmlp.heads.projection import DinoHead
from visionmlp.layers.auxiliary import balance_of, collect_auxiliary
from visionmlp.models.backbone import Backbone
from visionmlp.tasks.building import parts_of
from visionmlp.tasks.dino.config import DinoConfig
from visionmlp.tasks.protocols.knn import BankBatch, KnnMetric, features_of, take
from visionmlp.tasks.self_supervised.run import cosine
from visionmlp.tasks.self_supervised.teacher import follow, spread, teacher_mode, teacher_of

_GLOBAL = 2
_COLLAPSED = 1e-3
"""Share of ln K within which an epoch's mean entropy says that every image has the same target."""


class DinoNetwork(nn.Module):
    """A backbone and its head, for views of several sizes."""

    def __init__(self, backbone: Backbone, head: DinoHead) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, views: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """V views (B, C, H, W) to scores (V, B, K) and features (V, B, D); equal sizes go through together."""
        sizes = [view.shape[-2:] for view in views]
        starts = [place for place, size in enumerate(sizes) if place == 0 or size != sizes[place - 1]]
        groups = [views[start:end] for start, end in zip(starts, [*starts[1:], len(views)], strict=True)]
        features = torch.cat([features_of(self.backbone, torch.cat(list(group))) for group in groups])
        scores = self.head(features)
        return scores.unflatten(0, (len(views), -1)), features.unflatten(0, (len(views), -1))

    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}


def dino_loss(
    student: Tensor, teacher: Tensor, centre: Tensor, *, student_temperature: float, teacher_temperature: float
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each image (B,), over all pairs of a global and another view; and the targets' entropy (B,).

    Args:
        student: scores (V, B, K) of all views, the global ones first.
        teacher: scores (2, B, K) of the global views.
        centre: (K,).
        student_temperature: of the student's softmax.
        teacher_temperature: of the teacher's.
    """
    log_targets = F.log_softmax((teacher - centre) / teacher_temperature, -1)
    targets = log_targets.exp()
    logs = F.log_softmax(student / student_temperature, -1)
    others = logs.sum(0) - logs[: len(teacher)]
    pairs = len(teacher) * (len(student) - 1)
    return -(targets * others).sum(-1).sum(0) / pairs, -(targets * log_targets).sum(-1).mean(0)


class Dino(Task):
    """The task of `visionmlp.engine.fit` for a `DinoNetwork`; the teacher is evaluated and shipped.

    The teacher is in evaluation mode, but for its BatchNorms, which take the statistics of the batch as the authors'
    do. Its average takes in parameters only.

    Args:
        config: options.
        num_classes: of the images that score it.
    """

    metric: ClassVar[str] = "knn"

    def __init__(self, config: DinoConfig, num_classes: int) -> None:
        self.config, self.num_classes = config, num_classes
        self.step = 0
        self.teacher: nn.Module
        self.centre: Tensor
        self.run: RunContext
        self._sum: Tensor | None = None
        """Of the teacher's scores since the last step."""
        self._rows = 0
        self._entropy = [0.0, 0]
        """Sum and count of the epoch's entropies in this process."""

    def start(self, model: nn.Module, run: RunContext) -> None:
        """Make the teacher, equal to the student."""
        self.run = run
        self.teacher = teacher_of(model)
        like = next(self.teacher.parameters())
        self.centre = torch.zeros(self.config.out_dim, dtype=like.dtype, device=run.device)

    def temperature(self, step: int) -> float:
        """The teacher's, which changes from epoch to epoch."""
        epoch, config = step // self.run.steps_per_epoch, self.config
        rise = config.warmup_teacher_temperature_epochs
        if epoch >= rise:
            return config.teacher_temperature
        share = epoch / max(rise - 1, 1)
        first = config.warmup_teacher_temperature
        return first + share * (config.teacher_temperature - first)

    def training_loss(self, model: nn.Module, batch: ViewBatch) -> TrainingLoss:
        """Loss of a batch, with the signs of collapse beside it."""
        views, images = batch.views, len(batch.labels)
        with torch.no_grad(), self._precision(views[0]):
            teacher_mode(self.teacher)
            like = next(self.teacher.parameters())
            scores, features = self.teacher([view.to(like.dtype) for view in views[:_GLOBAL]])
        scores = scores.to(self.centre.dtype)
        with collect_auxiliary(model) as collected:
            student, _ = model(views)
        loss, entropy = dino_loss(
            student.to(scores.dtype),
            scores,
            self.centre,
            student_temperature=self.config.student_temperature,
            teacher_temperature=self.temperature(self.step),
        )
        total = scores.sum((0, 1))
        self._sum = total if self._sum is None else self._sum + total
        self._rows += _GLOBAL * images
        self._entropy[0] += float(entropy.sum())
        self._entropy[1] += images
        columns = {
            "entropy": entropy.mean(),
            "kl": loss.detach().mean() - entropy.mean(),
            "spread": spread(self.run.processes.rows(features[0])),
        }
        balance, routing = balance_of(collected) if collected else (0.0, {})
        return TrainingLoss(total=loss.sum() + balance * images, count=images, columns=columns, routing=routing)

    def parts(self, model: nn.Module) -> list[Part]:
        """The blocks of the backbone."""
        assert isinstance(model, DinoNetwork)
        return parts_of(model.backbone)

    def before_step(self, model: nn.Module, step: int) -> None:
        """Prototypes rest in the first epochs, without weight decay too."""
        if step < self.config.freeze_last_layer * self.run.steps_per_epoch:
            assert isinstance(model, DinoNetwork)
            for parameter in model.head.prototypes.parameters():
                parameter.grad = None

    def after_step(self, model: nn.Module, step: int, processes: Processes) -> None:
        """Move the teacher and the centre, once for all parts and processes."""
        follow(self.teacher, model, cosine(self.config.teacher_momentum, 1.0, step - 1, self.run.steps))
        assert self._sum is not None
        together = processes.sum(torch.cat([self._sum, self._sum.new_tensor([float(self._rows)])]))
        share = self.config.center_momentum
        self.centre = self.centre * share + together[:-1] / together[-1] * (1 - share)
        self._sum, self._rows, self.step = None, 0, step
        if step % self.run.steps_per_epoch == 0:
            self._warn_of_collapse(step // self.run.steps_per_epoch, processes)

    def _warn_of_collapse(self, epoch: int, processes: Processes) -> None:
        total, count = processes.sum(torch.tensor(self._entropy, dtype=torch.float64)).tolist()
        self._entropy = [0.0, 0]
        most, mean = math.log(self.config.out_dim), total / max(count, 1)
        if processes.rank == 0 and (mean > most * (1 - _COLLAPSED) or mean < most * _COLLAPSED):
            what = f"ln {self.config.out_dim}" if mean > most / 2 else "0"
            remedy = (
                "lower teacher_temperature or lr" if mean > most / 2 else "raise teacher_temperature or center_momentum"
            )
            warnings.warn(
                f"the targets' entropy is {what} over epoch {epoch}: all images have the same target; {remedy}",
                stacklevel=2,
            )

    def _precision(self, like: Tensor) -> contextlib.AbstractContextManager[Any]:
        if self.config.precision != "bf16-mixed":
            return contextlib.nullcontext()
        return torch.autocast(like.device.type, torch.bfloat16)

    def evaluated(self, model: nn.Module) -> nn.Module:  # noqa: ARG002 (the teacher is the task's own)
        """The teacher's backbone."""
        assert isinstance(self.teacher, DinoNetwork)
        return self.teacher.backbone

    def new_metric(self) -> KnnMetric:
        """See `KnnMetric`."""
        return KnnMetric(self.num_classes, k=self.config.knn_k, temperature=self.config.knn_temperature)

    def evaluate(self, model: nn.Module, batch: BankBatch, metric: KnnMetric) -> None:
        """Take a batch into the metric."""
        like = next(model.parameters())
        take(model, batch._replace(batch=batch.batch._replace(images=batch.batch.images.to(like.dtype))), metric)

    def state_dict(self) -> dict[str, Any]:
        """Teacher, centre, and the step that the schedules are functions of."""
        return {
            "teacher": self.teacher.state_dict(),
            "centre": self.centre,
            "step": self.step,
            "entropy": list(self._entropy),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.teacher.load_state_dict(state["teacher"])
        self.centre = state["centre"].to(self.centre)
        self.step, self._entropy = state["step"], list(state["entropy"])
