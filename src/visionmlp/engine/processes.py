"""What the processes of a run tell each other: sums and lists."""

import time
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lightning_fabric import Fabric

T = TypeVar("T")

_HANDOVER_SECONDS = 0.2


def leave_group() -> None:
    """Destroy the default process group."""
    if torch.__version__ < "2.9":
        # A thread of gloo may still hold the last tensor, and needs the interpreter's lock to free it. Its end is
        # waited for with that lock held, so it gets the lock before. Newer PyTorch waits without (pull 154976).
        time.sleep(_HANDOVER_SECONDS)
    torch.distributed.destroy_process_group()


class Processes:
    """Sums and lists over all processes; a single process gets back what it gives.

    Args:
        fabric: launched; None for a process of its own.
    """

    def __init__(self, fabric: "Fabric | None" = None) -> None:
        self._fabric = fabric
        self.count = 1 if fabric is None else fabric.world_size
        self.rank = 0 if fabric is None else fabric.global_rank

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes, on the device of ``value``."""
        if self._fabric is None or self.count == 1:
            return value
        total: Any = self._fabric.all_reduce(value.to(self._fabric.device), reduce_op="sum")
        return total.to(value.device)

    def rows(self, value: Tensor) -> Tensor:
        """The rows (B, ...) of all processes, by rank, without gradient; each has as many."""
        if self._fabric is None or self.count == 1:
            return value.detach()
        parts = [torch.empty_like(value) for _ in range(self.count)]
        torch.distributed.all_gather(parts, value.detach().contiguous())
        return torch.cat(parts)

    def gather(self, item: T) -> list[T]:
        """What every process gives, by rank."""
        if self.count == 1:
            return [item]
        items: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(items, item)
        return items
