"""Losses that parts of a model have beside the task's, such as the balance of routed experts.

A part hands them over only while somebody collects. So a model costs nothing more elsewhere, holds no graph between two
steps, and a block that is recomputed in the backward pass does not count twice.
"""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

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
