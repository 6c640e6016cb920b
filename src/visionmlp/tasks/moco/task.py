"""MoCo v3's loss and key encoder. Chen et al., arXiv 2104.02057, section 3 and algorithm 1."""

import contextlib
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionmlp.data.batches import ViewBatch
from visionmlp.engine.config import TrainingConfig
from visionmlp.engine.processes import Processes
from visionmlp.engine.sharding import Part
from visionmlp.engine.task import RunContext, Task, TrainingLoss
from visionmlp.layers.auxiliary import balance_of, collect_auxiliary
from visionmlp.models.backbone import Backbone
from visionmlp.tasks.building import parts_of
from visionmlp.tasks.moco.config import MocoConfig
from visionmlp.tasks.protocols.knn import BankBatch, KnnMetric, features_of, take
from visionmlp.tasks.self_supervised.run import cosine
from visionmlp.tasks.self_supervised.teacher import follow, spread, teacher_mode, teacher_of

_COLLAPSED = 1e-3
"""Share of ln N within which an epoch's mean entropy says that all keys look the same."""


class KeyEncoder(nn.Module):
    """A backbone and its projector."""

    def __init__(self, backbone: Backbone, projector: nn.Module) -> None:
        super().__init__()
        self.backbone, self.projector = backbone, projector

    def forward(self, views: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """V views (B, C, H, W) to keys (V, B, D) of any length, and features (V, B, C)."""
        features = [features_of(self.backbone, view) for view in views]
        # each view has its own norm statistics, as if it went through alone
        return torch.stack([self.projector(feature) for feature in features]), torch.stack(features)


class MocoNetwork(KeyEncoder):
    """What is trained: the key encoder's twin, and a predictor."""

    def __init__(self, backbone: Backbone, projector: nn.Module, predictor: nn.Module) -> None:
        super().__init__(backbone, projector)
        self.predictor = predictor

    def forward(self, views: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """V views (B, C, H, W) to queries (V, B, D) of any length, and features (V, B, C)."""
        projected, features = super().forward(views)
        return torch.stack([self.predictor(view) for view in projected]), features


def contrast(queries: Tensor, keys: Tensor, temperature: float, *, first: int = 0) -> tuple[Tensor, Tensor]:
    """2 tau times the cross-entropy of each query (B,) over all keys, and its scores (B, N).

    Args:
        queries: (B, D), of any length.
        keys: (N, D), of any length, of all processes.
        temperature: tau.
        first: place of the first query's own key; the others follow it.
    """
    scores = F.normalize(queries) @ F.normalize(keys).T / temperature
    own = torch.arange(first, first + len(queries), device=queries.device)
    return 2 * temperature * F.cross_entropy(scores, own, reduction="none"), scores


class Moco(Task):
    """The task of `visionmlp.engine.fit` for a `MocoNetwork`; the trained backbone is evaluated and shipped.

    The key encoder moves behind each step. The authors move it at the beginning of the next one, by the same weights
    and that step's momentum, which is the same.

    Args:
        config: options.
        num_classes: of the images that score it.
    """

    metric: ClassVar[str] = "knn"

    def __init__(self, config: MocoConfig, num_classes: int) -> None:
        self.config, self.num_classes = config, num_classes
        self.keys: nn.Module
        self.run: RunContext
        self._most = math.inf
        self._entropy = [0.0, 0]
        """Sum and count of the epoch's entropies in this process."""

    def start(self, model: nn.Module, run: RunContext) -> None:
        """Make the key encoder, equal to the trained one."""
        assert isinstance(model, MocoNetwork)
        self.run = run
        self.keys = teacher_of(KeyEncoder(model.backbone, model.projector))

    def training_loss(self, model: nn.Module, batch: ViewBatch) -> TrainingLoss:
        """Loss of two views, each view's queries with the other's keys; the signs of collapse beside it."""
        images = len(batch.labels)
        with torch.no_grad(), self._precision(batch.views[0]):
            teacher_mode(self.keys)
            like = next(self.keys.parameters())
            keys, features = self.keys([view.to(like.dtype) for view in batch.views])
        with collect_auxiliary(model) as collected:
            queries, _ = model(batch.views)
        queries, keys = queries.to(like.dtype), keys.to(like.dtype)
        first = self.run.processes.rank * images
        total, signs = torch.zeros((), device=queries.device, dtype=queries.dtype), []
        for query, others in ((queries[0], keys[1]), (queries[1], keys[0])):
            loss, scores = contrast(query, self.run.processes.rows(others), self.config.temperature, first=first)
            total = total + loss.sum()
            signs.append(_signs(scores.detach(), first))
        mean = {name: torch.stack([sign[name] for sign in signs]).mean() for name in signs[0]}
        self._entropy[0] += float(mean["entropy"]) * images
        self._entropy[1] += images
        self._most = math.log(images * self.run.processes.count)
        balance, routing = balance_of(collected) if collected else (0.0, {})
        columns = {**mean, "spread": spread(self.run.processes.rows(features[0]))}
        return TrainingLoss(total=total + balance * images, count=images, columns=columns, routing=routing)

    def parts(self, model: nn.Module) -> list[Part]:
        """The blocks of the backbone."""
        assert isinstance(model, MocoNetwork)
        return parts_of(model.backbone)

    def after_step(self, model: nn.Module, step: int, processes: Processes) -> None:
        """Move the key encoder."""
        start = self.config.momentum_encoder
        momentum = cosine(start, 1.0, step, self.run.steps) if self.config.momentum_rises else start
        follow(self.keys, model, momentum)
        if step % self.run.steps_per_epoch == 0:
            total, count = processes.sum(torch.tensor(self._entropy, dtype=torch.float64)).tolist()
            self._entropy = [0.0, 0]
            if processes.rank == 0 and total / max(count, 1) > self._most * (1 - _COLLAPSED):
                warnings.warn(
                    f"the entropy over keys is ln {math.exp(self._most):.0f} over epoch "
                    f"{step // self.run.steps_per_epoch}: all images have the same key; lower lr or temperature",
                    stacklevel=2,
                )

    def _precision(self, like: Tensor) -> contextlib.AbstractContextManager[Any]:
        if self.config.precision != "bf16-mixed":
            return contextlib.nullcontext()
        return torch.autocast(like.device.type, torch.bfloat16)

    def parameter_groups(self, model: nn.Module, config: TrainingConfig) -> list[dict[str, Any]]:
        """One group: the authors decay every parameter."""
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return [{"params": trained, "weight_decay": config.weight_decay}]

    def evaluated(self, model: nn.Module) -> nn.Module:
        """The trained backbone."""
        assert isinstance(model, MocoNetwork)
        return model.backbone

    def new_metric(self) -> KnnMetric:
        """See `KnnMetric`."""
        return KnnMetric(self.num_classes, k=self.config.knn_k, temperature=self.config.knn_temperature)

    def evaluate(self, model: nn.Module, batch: BankBatch, metric: KnnMetric) -> None:
        """Take a batch into the metric."""
        take(model, batch, metric)

    def state_dict(self) -> dict[str, Any]:
        """The key encoder; its schedule is a function of the step."""
        return {"keys": self.keys.state_dict(), "entropy": list(self._entropy)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.keys.load_state_dict(state["keys"])
        self._entropy = list(state["entropy"])


def _signs(scores: Tensor, first: int) -> dict[str, Tensor]:
    logs = scores.log_softmax(1)
    own = torch.arange(first, first + len(scores), device=scores.device)
    return {
        "entropy": -(logs.exp() * logs).sum(1).mean(),
        "kl": -logs.gather(1, own[:, None]).mean(),
        "agreement": 100 * (scores.argmax(1) == own).to(scores.dtype).mean(),
    }
