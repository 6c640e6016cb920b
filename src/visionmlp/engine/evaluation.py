"""One pass over the evaluation data."""

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

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
) -> dict[str, Tensor]:
    """Sums of ``task.evaluation_sums`` over the batches, in evaluation mode, which the model stays in.

    Args:
        task: the task.
        model: not wrapped for data-parallel training, as processes may see different numbers of batches.
        batches: of this process.
        prepare: moves a batch to the model's device and dtype.
        precision: context of the computation, such as autocast.
        after_batch: called behind each batch.

    Raises:
        DataError: if there is no batch.
    """
    model.eval()
    total: dict[str, Tensor] = {}
    with torch.no_grad():
        for batch in batches:
            with precision():
                sums = task.evaluation_sums(model, prepare(batch))
            total = {name: total[name] + value if total else value for name, value in sums.items()}
            after_batch()
    if not total:
        raise DataError("no image of the evaluation data can be read")
    return total
