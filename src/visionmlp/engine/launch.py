"""Processes and devices, and errors that all processes must agree on."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from visionmlp.engine.config import TrainingConfig
from visionmlp.engine.loggers import require_loggers
from visionmlp.errors import InvalidConfig, VisionMLPError, require

if TYPE_CHECKING:
    from lightning_fabric import Fabric

T = TypeVar("T")


def launch(config: TrainingConfig, function: Callable[["Fabric"], T]) -> T:
    """Call a function in one process for each device, which are started by running this command again.

    An error is raised in the first process only; the others end silently.

    Raises:
        InvalidConfig: if this machine does not have the devices.
        MissingExtra: if Lightning Fabric or a logger is not installed.
    """
    lightning = require("lightning_fabric", extra="train")
    require_loggers(config.logger)
    try:
        fabric = lightning.Fabric(
            accelerator=config.accelerator,
            devices=config.devices,
            strategy="ddp" if config.devices > 1 else "auto",
            precision=config.precision,
        )
    except Exception as error:  # Lightning's own classes, RuntimeError, ValueError
        message = " ".join(str(error).split())
        raise InvalidConfig(
            f"this machine cannot run on {config.devices} device(s) of kind {config.accelerator}: {message}"
        ) from error
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    threads = torch.get_num_threads()
    callers_group = torch.distributed.is_initialized()

    def run(launched: "Fabric") -> T:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        torch.use_deterministic_algorithms(config.deterministic, warn_only=True)
        try:
            return function(launched)
        finally:
            if torch.distributed.is_initialized() and not callers_group:
                # its threads would now and then abort the process at exit, when a peer has gone already
                torch.distributed.destroy_process_group()

    try:
        return fabric.launch(run)
    except VisionMLPError:
        if fabric.is_global_zero:
            raise
        sys.exit(2)
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def on_rank_zero(fabric: "Fabric", function: Callable[[], Any]) -> Any:
    """The result of a function that only the first process calls; its errors are raised in all."""
    result: Any = None
    if fabric.is_global_zero:
        try:
            result = function()
        except VisionMLPError as error:
            result = error
    if fabric.world_size > 1:
        result = fabric.broadcast(result)
    if isinstance(result, VisionMLPError):
        raise result
    return result


def agree(fabric: "Fabric", function: Callable[[], T]) -> T:
    """The result of a function that every process calls; if it fails in one, it fails in all."""
    if fabric.world_size == 1:
        return function()
    failure: VisionMLPError | None = None
    result: Any = None
    try:
        result = function()
    except VisionMLPError as error:
        failure = error
    failures = [text for text in _gather(fabric, None if failure is None else str(failure)) if text is not None]
    if failure is not None:
        raise failure
    if failures:
        raise VisionMLPError(failures[0])
    return result


def _gather(fabric: "Fabric", text: str | None) -> list[str | None]:
    # a number first: gathering objects is slow, and nearly always there is nothing to gather
    count: Any = fabric.all_reduce(torch.tensor(float(text is not None)), reduce_op="sum")
    if count.item() == 0:
        return []
    texts: list[str | None] = [None] * fabric.world_size
    torch.distributed.all_gather_object(texts, text)
    return texts
