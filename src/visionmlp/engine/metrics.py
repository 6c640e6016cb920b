"""Metrics as objects: they take in batches, merge over processes, and give numbers."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from visionmlp.engine.processes import Processes


class Metric(Protocol):
    """What evaluation collects. A task fills it batch by batch, in each process with that process's images."""

    def merge(self, processes: Processes) -> None:
        """Take in what the other processes collected: behind it, all hold the same. Every process calls it once."""
        ...

    def compute(self) -> dict[str, float]:
        """Numbers to report, in the order of the table's columns."""
        ...


class Sums:
    """Quantities that add up over batches and processes, such as counts and confusion matrices.

    Args:
        zeros: the quantities by name, of their shape and dtype, at the start.
    """

    def __init__(self, zeros: Mapping[str, Tensor]) -> None:
        self.values = {name: torch.zeros_like(value) for name, value in zeros.items()}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add the quantities of a batch; they may be on another device."""
        for name, value in values.items():
            self.values[name] = self.values[name].to(value.device) + value

    def merge(self, processes: Processes) -> None:
        """See `Metric.merge`."""
        self.values = {name: processes.sum(value) for name, value in self.values.items()}


class Collected:
    """Results that cannot be summed, such as detections and hypotheses, by the number of their image or sentence.

    An item that several processes hold counts once, and the order does not depend on who held it.
    """

    def __init__(self) -> None:
        self.items: dict[int, Any] = {}

    def add(self, number: int, item: Any) -> None:
        """Keep the result of an image; ``item`` can be pickled."""
        self.items[number] = item

    def merge(self, processes: Processes) -> None:
        """See `Metric.merge`."""
        merged = {number: item for part in processes.gather(self.items) for number, item in part.items()}
        self.items = dict(sorted(merged.items()))
