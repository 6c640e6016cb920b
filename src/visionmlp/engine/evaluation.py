"""One pass over the evaluation data."""

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from visionmlp.engine.metrics import Metric
from visionmlp.engine.processes import Processes
from visionmlp.engine.task import Task
from visionmlp.errors import DataError


def evaluate(
    task: Task,
    model: nn.Module,
    batches: Iterable[Any],
    *,
    prepare: Callable[[Any], Any],
    precision: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    after_batch: Callable[[], None] = lambda: None,
    agree: Callable[[Callable[[], int]], int] = lambda function: function(),
    processes: Processes | None = None,
) -> Metric:
    """The task's metric over the batches of all processes, in evaluation mode, which the model stays in.

    Args:
        task: the task.
        model: not wrapped for data-parallel training, as processes may see different numbers of batches.
        batches: of this process.
        prepare: moves a batch to the model's device and dtype.
        precision: context of the computation, such as autocast.
        after_batch: called behind each batch.
        agree: calls the pass over this process's batches; raises in all processes what one of them raises.
        processes: all; None for this one alone.

    Raises:
        DataError: if no process has a batch.
    """
    processes = processes or Processes()
    metric = task.new_metric()
    model.eval()

    def run() -> int:
        count = 0
        with torch.no_grad():
            for batch in batches:
                with precision():
                    task.evaluate(model, prepare(batch), metric)
                count += 1
                after_batch()
        return count

    count = processes.sum(torch.tensor(agree(run)))
    if not count:
        raise DataError("no image of the evaluation data can be read")
    metric.merge(processes)
    return metric
