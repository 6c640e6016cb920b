"""Losses that parts of a model have beside the task's, such as the balance of routed experts.

A part hands them over only while somebody collects. So a model costs nothing more elsewhere, holds no graph between two
steps, and a block that is recomputed in the backward pass does not count twice.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Auxiliary(NamedTuple):
    """What one part hands over in one forward pass."""

    loss: Tensor
    """Scalar to add to the task's loss, already weighted."""
    statistics: dict[str, Tensor]
    """Scalars to log, without gradients; names are unique within a model."""


class AuxiliaryLoss(nn.Module):
    """A module with a loss of its own."""

    def __init__(self) -> None:
        super().__init__()
        self._collected: list[Auxiliary] | None = None

    @property
    def is_collected(self) -> bool:
        """Whether somebody takes what this module hands over."""
        return self._collected is not None

    def hand_over(self, loss: Tensor, statistics: dict[str, Tensor]) -> None:
        """Add to what is collected; see `Auxiliary`."""
        if self._collected is not None:
            self._collected.append(Auxiliary(loss, statistics))


def balance_of(collected: Sequence[Auxiliary]) -> tuple[Tensor, dict[str, Tensor]]:
    """What all parts add to a loss, and their statistics, with the sum as ``balance``; means over several passes.

    Args:
        collected: of a training step, not empty.
    """
    sums: dict[str, list[Tensor]] = {}
    for part in collected:
        for name, value in part.statistics.items():
            sums.setdefault(name, []).append(value)
    passes = max(len(values) for values in sums.values())
    total = torch.stack([part.loss for part in collected]).sum() / passes
    means = {name: torch.stack(values).mean() for name, values in sums.items()}
    return total, {"balance": total.detach(), **means}


@contextlib.contextmanager
def collect_auxiliary(model: nn.Module) -> Iterator[list[Auxiliary]]:
    """A list that the forward passes within fill; it stays empty for models without such parts, and in evaluation.

    Args:
        model: any model, wrapped or not.
    """
    collected: list[Auxiliary] = []
    parts = [module for module in model.modules() if isinstance(module, AuxiliaryLoss)]
    for part in parts:
        part._collected = collected
    try:
        yield collected
    finally:
        for part in parts:
            part._collected = None
