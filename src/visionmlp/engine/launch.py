"""Processes and devices, and errors that all processes must agree on."""

import dataclasses
import sys
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from visionmlp.engine.config import ConfigT, TrainingConfig
from visionmlp.engine.loggers import require_loggers
from visionmlp.engine.processes import leave_group
from visionmlp.engine.started import first_is_silent, rank, started
from visionmlp.errors import InvalidConfig, Note, VisionMLPError, require

if TYPE_CHECKING:
    from lightning_fabric import Fabric

T = TypeVar("T")


def as_launched(config: ConfigT) -> ConfigT:
    """The options of a run with the nodes and devices that torchrun or SLURM has started processes for.

    Raises:
        InvalidConfig: for nodes with different numbers of processes, or options that do not go with so many.
    """
    launched = started()
    if launched is None:
        return config
    config.require(
        launched.devices > 0, f"{launched.by} must start as many processes on each of the {launched.nodes} nodes"
    )
    there = launched.nodes, launched.devices
    if (config.nodes, config.devices) not in ((1, 1), there) and rank() == 0:
        warnings.warn(
            Note(
                f"{launched.by} started {launched.devices} process(es) on each of {launched.nodes} node(s), so nodes "
                f"and devices are not {config.nodes} and {config.devices}"
            ),
            stacklevel=2,
        )
    return dataclasses.replace(config, nodes=launched.nodes, devices=launched.devices)


def launch(config: TrainingConfig, function: Callable[["Fabric"], T]) -> T:
    """Call a function in one process for each device, which torchrun or SLURM has started, or Fabric does.

    An error that all processes have is raised in the first one only; the others end silently.

    Args:
        config: as `as_launched` gives it.
        function: what to do there.

    Raises:
        InvalidConfig: if this machine does not have the devices.
        MissingExtra: if Lightning Fabric or a logger is not installed.
    """
    config.require(
        config.strategy == "ddp" or config.processes > 1,
        "strategy fsdp splits a model over several devices; give devices, start by torchrun, or use strategy ddp",
    )
    if config.nodes > 1 and started() is None:
        raise InvalidConfig(
            f"processes on {config.nodes} nodes are started by torchrun or SLURM's srun, as in docs/scale.md; "
            "use one of them, or nodes 1"
        )
    require_loggers(config.logger)
    fabric = _fabric(config)
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
                leave_group()

    try:
        return fabric.launch(run)
    except VisionMLPError:
        if fabric.is_global_zero or first_is_silent():
            raise
        sys.exit(2)
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _fabric(config: TrainingConfig) -> "Fabric":
    lightning = require("lightning_fabric", extra="train")
    from lightning_fabric.plugins.precision import DoublePrecision
    from lightning_fabric.strategies import ModelParallelStrategy

    class Double(DoublePrecision):
        def convert_output(self, data: Any) -> Any:
            return data  # Fabric's own hands results on in float32

    strategy: Any = "auto"
    if config.processes > 1:
        strategy = "ddp"
        if config.strategy == "fsdp":
            # the loop shards, since the task knows by which parts
            strategy = ModelParallelStrategy(lambda model, _mesh: model, config.processes, 1)
    double = config.precision == "64-true"
    try:
        return lightning.Fabric(
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=config.nodes,
            strategy=strategy,
            precision=None if double else config.precision,
            plugins=Double() if double else None,
        )
    except Exception as error:  # Lightning's own classes, RuntimeError, ValueError
        message = " ".join(str(error).split())
        raise InvalidConfig(
            f"this machine cannot run on {config.devices} device(s) of kind {config.accelerator}: {message}"
        ) from error


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
