"""Token mixers that are built for one map size, and how their weights reach another one."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from visionmlp.ops.resize import Grid


class GridMixer(nn.Module, ABC):
    """A token mixer whose weights depend on the rows and columns of its map."""

    grid: Grid
    """Rows and columns that its weights are built for."""
    grid_entries: ClassVar[tuple[str, ...]]
    """Its state entries that depend on the grid."""

    @abstractmethod
    def resized(self, entry: str, value: Tensor, old: Grid | None) -> Tensor:
        """One of ``grid_entries``, made for another grid, interpolated to this one.

        Args:
            entry: its name.
            value: weights of the other grid.
            old: rows and columns of the other grid; ``None`` where only the tensor itself can tell.

        Returns:
            The interpolated tensor, or ``value`` itself where its grid cannot be told.
        """
