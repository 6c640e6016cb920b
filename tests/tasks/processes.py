"""Runs in several processes, for tests: what one group of processes does, run after run.

They are forked from a process that has imported everything, and meet as torchrun's do; so a group costs seconds less.
"""

import contextlib
import multiprocessing
import os
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from visionmlp.engine.loop import _Loop
from visionmlp.engine.processes import leave_group
from visionmlp.errors import InvalidConfig
from visionmlp.tasks.register import load_task


class Stopped(Exception):
    """Stands for SIGKILL: nothing is saved on the way out."""


def run(
    fields: dict[str, Any], *, resume: bool = False, stop_after: int | None = None, refused: str | None = None
) -> None:
    """One run, in this process or as one of several.

    Args:
        fields: options, with the task.
        resume: whether it is continued.
        stop_after: steps after which it is left as it is.
        refused: what the error says that it ends with at once.
    """
    definition = load_task(fields["task"])
    update, left = _Loop.update, iter(range(stop_after or 10**6))

    def counted(self: Any, parts: Any) -> Any:
        if next(left, None) is None:
            raise Stopped
        return update(self, parts)

    end: Any = contextlib.nullcontext()
    if stop_after is not None:
        end = pytest.raises(Stopped)
    elif refused is not None:
        end = pytest.raises(InvalidConfig, match=refused)
    with pytest.MonkeyPatch.context() as patch, end:
        patch.setattr(_Loop, "update", counted)
        for module in (
            "classify",
            "self_supervised",
            "segment",
            "detect",
            "translate",
        ):  # figures take longer than such a run
            patch.setattr(f"visionmlp.tasks.{module}.run.write_report", lambda _folder: None)
        definition.train(definition.config.from_plain(fields), resume=resume)


def group(processes: int, runs: Sequence[dict[str, Any]], folder: Path) -> None:
    """Let so many processes do `run` with each of these arguments."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.tasks.preload"])
    workers = [context.Process(target=_work, args=(rank, processes, runs, folder)) for rank in range(processes)]
    for worker in workers:
        worker.start()
    deadline = time.monotonic() + 240
    while any(worker.is_alive() for worker in workers) and not any(worker.exitcode for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for worker in workers:
        worker.terminate()  # whoever waits for one that has failed
        worker.join()
    errors = [path.read_text() for path in sorted(folder.glob("error*.txt"))]
    assert not errors, "\n".join(errors)
    assert [worker.exitcode for worker in workers] == [0] * processes


def _work(rank: int, processes: int, runs: Sequence[dict[str, Any]], folder: Path) -> None:
    torch.set_num_threads(1)
    world = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "RANK": rank, "LOCAL_RANK": rank}
    os.environ |= {"TORCHELASTIC_RUN_ID": "test", **{name: str(value) for name, value in world.items()}}
    store = f"file://{folder}/meeting{processes}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=processes)
    try:
        for arguments in runs:
            run(**arguments)
        torch.distributed.barrier()  # a process that ends too early takes the others with it
    except BaseException:
        (folder / f"error{rank}.txt").write_text(traceback.format_exc())
        raise
    finally:
        leave_group()
