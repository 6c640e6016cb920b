"""Sums over processes that gradients go through."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _Sum(torch.autograd.Function):
    """Its gradient is such a sum too, as every process's loss contains the value."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        return _summed(x, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _summed(gradients[0], ctx.group), None


def sum_over_processes(x: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """The sum of what each process gives, on each of them.

    Args:
        x: of one shape on all processes.
        group: of processes; all of them if None.
    """
    return _Sum.apply(x, group)  # type: ignore[return-value]


def are_several() -> bool:
    """Whether this process works together with others."""
    return dist.is_initialized() and dist.get_world_size() > 1


def _summed(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    total = x.contiguous().clone()
    dist.all_reduce(total, group=group)
    return total
