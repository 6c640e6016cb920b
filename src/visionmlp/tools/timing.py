"""Measuring: calls that take turns, peak memory, and the machine that it happened on."""

import dataclasses
import datetime
import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from visionmlp.errors import InvalidConfig

TURNS = 5
"""How often each contender's turn comes; a turn is many calls."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """Where and when a benchmark ran."""

    cpu: str
    device: str
    """What the models ran on: "cpu" or the accelerator's name."""
    threads: int
    torch: str
    date: str
    gemm_gflops: float
    """Best rate of a large matrix product in the same run and dtype, 10^9 operations per second."""


def interleave(
    calls: Mapping[Any, Callable[[], object]],
    *,
    seconds: float,
    turns: int = TURNS,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Any, list[float]]:
    """Durations of calls that take turns, so that a machine whose speed drifts treats all alike.

    All are called once to warm up. In a turn a call is repeated for ``seconds / turns``, at least once, after an
    untimed repetition that brings its weights back into the cache (left out where one call fills the turn, since then
    it hardly matters).

    Args:
        calls: what to time, by any key.
        seconds: time for each call, in all its turns together.
        turns: rounds through all calls.
        clock: seconds that have passed.

    Returns:
        Seconds of every timed repetition, by key.
    """
    share = seconds / turns
    durations: dict[Any, list[float]] = {key: [] for key in calls}
    # before anything is timed, as compilers work on in other processes
    for call in calls.values():
        call()
    for _ in range(turns):
        for key, call in calls.items():
            samples = durations[key]
            if not samples or samples[-1] < share:
                call()
            turn_ends = clock() + share
            while True:
                start = clock()
                call()
                end = clock()
                samples.append(end - start)
                if end >= turn_ends:
                    break
    return durations


def check_seconds(seconds: float) -> None:
    """Refuse a time that no measurement can fill.

    Raises:
        InvalidConfig: unless it is positive and finite.
    """
    if not 0 < seconds < math.inf:
        raise InvalidConfig(f"seconds must be positive and finite, got {seconds}")


def peak_memory(model: nn.Module, images: Tensor) -> int:
    """Bytes of weights, images and the largest sum of tensors alive at once in one call, its output included.

    On a CPU: what PyTorch's allocator is asked for, read from the profiler, which leaves out scratch memory inside the
    matrix libraries and the interpreter. On CUDA: ``max_memory_allocated`` above what stood before the call.
    """
    fixed = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers(), images))
    if images.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(images.device)
        before = torch.cuda.memory_allocated(images.device)
        with torch.inference_mode():
            model(images)
        return fixed + torch.cuda.max_memory_allocated(images.device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler writes to standard error
    with torch.inference_mode(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        model(images)
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]")
    alive = peak = 0
    for _, change in changes:
        alive += change
        peak = max(peak, alive)
    return fixed + peak


def open_device(name: str) -> torch.device:
    """The device of a name.

    Raises:
        InvalidConfig: if this machine does not have it, or it computes nothing.
    """
    try:
        device = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise InvalidConfig(f"no device {name!r} here") from error
    if device.type == "meta":
        raise InvalidConfig(f"device {name!r} computes nothing; give cpu, cuda, ...")
    return device


def describe_machine(device: torch.device, gemm_flops: float) -> Machine:
    """The stamp of a benchmark."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    return Machine(
        cpu=cpu,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        gemm_gflops=round(gemm_flops / 1e9, 1),
    )
