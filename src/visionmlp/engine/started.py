"""Who started the processes of a run, and which of them this one is. Needs no torch, as errors come before it is there.

torchrun and SLURM start processes by themselves; elsewhere Lightning Fabric runs the command again for each device.
"""

import os
import time
from typing import NamedTuple

_GRACE = 2.0
"""Seconds in which the first process says what all know."""


class Started(NamedTuple):
    """What a launcher has started."""

    by: str
    """Its name."""
    nodes: int
    devices: int
    """Processes on each node; 0 if they differ."""


def started() -> Started | None:
    """What torchrun or SLURM's srun has started; None for a process of its own, or one that Fabric started."""
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        return _shared("torchrun", int(env["WORLD_SIZE"]), int(env["WORLD_SIZE"]) // int(env["LOCAL_WORLD_SIZE"]))
    if _in_slurm():
        return _shared("SLURM", int(env["SLURM_NTASKS"]), int(env.get("SLURM_NNODES", "1")))
    return None


def rank() -> int:
    """The number of this process among those of its run."""
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        return int(env["RANK"])
    return int(env.get("SLURM_PROCID", "0") if _in_slurm() else env.get("LOCAL_RANK", "0"))


def first_is_silent() -> bool:
    """Wait for the first process to say what is wrong; whether it did not, as only this one knows.

    A launcher ends all processes when the first one ends with an error, so whoever still runs then is alone with it.
    """
    parent = os.getppid()
    time.sleep(_GRACE)
    return os.getppid() == parent


def _shared(by: str, processes: int, nodes: int) -> Started:
    return Started(by, nodes, processes // nodes if processes % nodes == 0 else 0)


def _in_slurm() -> bool:
    # as Lightning Fabric decides: within an interactive job, processes are started by hand
    return "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")
