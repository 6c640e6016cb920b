"""What the loop needs to be told."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from torch import Tensor, nn


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingLoss:
    """What a task says about one batch of training."""

    value: Tensor
    """Mean loss of the batch, a scalar."""
    routing: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    """Scalars about routed experts, averaged over a log interval into ``router.csv``; none for other models."""


class Task(Protocol):
    """Where model, loss and metric meet.

    All methods are pure: randomness comes from the global generators, which the loop seeds before every batch.
    """

    metric: str
    """Key of `metrics` that tells the best weights; higher is better."""

    def training_loss(self, model: nn.Module, batch: Any) -> TrainingLoss:
        """Loss of a batch, with what is logged beside it: the same names for every batch."""
        ...

    def evaluation_sums(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Quantities of a batch that add up over batches and processes."""
        ...

    def metrics(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Numbers to report, from the sums over all batches."""
        ...


class EpochData(Protocol):
    """Training batches that can start anywhere in an epoch."""

    def __len__(self) -> int:
        """Batches of an epoch, on this process."""
        ...

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Any]:
        """The batches of an epoch behind the first ``skip``."""
        ...
