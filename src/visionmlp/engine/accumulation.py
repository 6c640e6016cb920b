"""One step's numbers, over its parts and all processes; and gradients of sums turned into those of means."""

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from visionmlp.engine.processes import Processes
from visionmlp.engine.task import TrainingLoss


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepTotals:
    """Sums over all parts of a step and all processes."""

    loss: float
    count: float
    columns: Mapping[str, float]
    """Each value times the count of its part."""
    routing: Mapping[str, float]
    """The same."""
    stop: bool
    """Whether a process was asked to stop."""

    def mean(self) -> float:
        """The step's loss; 0 without a valid element."""
        return self.loss / max(self.count, 1.0)


class StepSums:
    """Takes in the parts of a step in one process."""

    def __init__(self) -> None:
        self.parts: list[tuple[Tensor, Tensor]] = []
        self.weighted: dict[str, dict[str, Tensor]] = {"columns": {}, "routing": {}}

    def add(self, loss: TrainingLoss) -> None:
        """The next part."""
        total = loss.total.detach().double()
        count = torch.as_tensor(loss.count, dtype=torch.float64, device=total.device)
        self.parts.append((total, count))
        for sums, values in ((self.weighted["columns"], loss.columns), (self.weighted["routing"], loss.routing)):
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value.detach().double() * count

    def over(self, processes: Processes, *, stop: bool) -> StepTotals:
        """The sums of all processes, in one exchange."""
        totals, counts = zip(*self.parts, strict=True)
        asked = torch.full_like(totals[0], float(stop))
        columns, routing = self.weighted["columns"], self.weighted["routing"]
        values = [torch.stack(totals).sum(), torch.stack(counts).sum(), asked, *columns.values(), *routing.values()]
        loss, count, asked_stop, *rest = processes.sum(torch.stack(values)).tolist()
        return StepTotals(
            loss=loss,
            count=count,
            columns=dict(zip(columns, rest, strict=False)),
            routing=dict(zip(routing, rest[len(columns) :], strict=True)),
            stop=asked_stop > 0,
        )


def untouched(parameters: Sequence[nn.Parameter], processes: Processes) -> Tensor | float:
    """Zero by way of every parameter: processes wait for each other's gradients, also of what one did not use."""
    if processes.count == 1:
        return 0.0
    return torch.stack([parameter.sum() for parameter in parameters]).sum() * 0.0


def divide_gradients(parameters: Sequence[nn.Parameter], count: float, processes: Processes) -> None:
    """From gradients of the sum, averaged over processes, to those of the mean over ``count`` elements.

    No gradient is a gradient of zero, in one process as in several.
    """
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    torch._foreach_mul_(gradients, processes.count / max(count, 1.0))
