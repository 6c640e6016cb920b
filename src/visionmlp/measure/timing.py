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
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from visionmlp.errors import InvalidConfig

TURNS = 5
"""How often each contender's turn comes; a turn is many calls."""

LEAST_CALLS = 3
"""Timed calls of a contender so slow that fewer would fill its time."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """Where and when a benchmark ran."""

    cpu: str
    device: str
    """What the models ran on: "cpu" or the accelerator's name."""
    threads: int
    torch: str
    date: str

    def __str__(self) -> str:
        """One line for titles and footers."""
        place = self.cpu if self.device == "cpu" else f"{self.device}, {self.cpu}"
        return f"{place}, {self.threads} threads, torch {self.torch}, {self.date}"


def interleave(
    calls: Mapping[Any, Callable[[], object]],
    *,
    seconds: float,
    turns: int = TURNS,
    clock: Callable[[], float] = time.perf_counter,
    on_error: Callable[[Any, Exception], None] | None = None,
) -> dict[Any, list[float]]:
    """Durations of calls that take turns, so that a machine whose speed drifts treats all alike.

    All are called once to warm up. In a turn a call is repeated for ``seconds / turns``, at least once, after an
    untimed repetition that brings its weights back into the cache (left out where one call fills the turn, since then
    it hardly matters). One whose time is used up takes no more turns, once it has been timed `LEAST_CALLS` times.

    Args:
        calls: what to time, by any key.
        seconds: time for each call, in all its turns together.
        turns: rounds through all calls.
        clock: seconds that have passed.
        on_error: told of a call that raises, which is then left out; without it the error is raised.

    Returns:
        Seconds of every timed repetition, by key; of calls that raise, nothing.
    """
    share = seconds / turns
    durations: dict[Any, list[float]] = {key: [] for key in calls}

    def turn(key: Any) -> None:
        call, samples = calls[key], durations[key]
        if len(samples) >= LEAST_CALLS and sum(samples) >= seconds:
            return
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

    # before anything is timed, as compilers work on in other processes
    rounds = [lambda key: calls[key](), *[turn] * turns]
    for take_turn in rounds:
        for key in list(durations):
            try:
                take_turn(key)
            except Exception as error:
                if on_error is None:
                    raise
                del durations[key]
                on_error(key, error)
    return durations


def check_seconds(seconds: float) -> None:
    """Refuse a time that no measurement can fill.

    Raises:
        InvalidConfig: unless it is positive and finite.
    """
    if not 0 < seconds < math.inf:
        raise InvalidConfig(f"seconds must be positive and finite, got {seconds}")


class TrainingStep:
    """Forward pass, cross-entropy on random labels, backward pass; without the optimizer.

    Args:
        model: in training mode; its gradients are ``None`` before and after a step.
        run: the model as called: itself, or compiled.
        images: (B, C, H, W).
        classes: outputs of the model.
    """

    def __init__(self, model: nn.Module, run: Callable[[Tensor], Tensor], images: Tensor, classes: int) -> None:
        self.model, self.run, self.images = model, run, images
        self.labels = torch.randint(classes, (len(images),), device=images.device)

    def __call__(self) -> None:
        """One step."""
        F.cross_entropy(self.run(self.images).float(), self.labels).backward()
        self.model.zero_grad(set_to_none=True)


def peak_memory(model: nn.Module, images: Tensor, *, run: Callable[[], object] | None = None) -> int:
    """Bytes of weights, images and the largest sum of tensors alive at once in one call, its output included.

    On a CPU: what PyTorch's allocator is asked for, read from the profiler, which leaves out scratch memory inside the
    matrix libraries and the interpreter. On CUDA: ``max_memory_allocated`` above what stood before the call.

    Args:
        model: holds the weights.
        images: (B, C, H, W).
        run: the call, such as a training step; by default inference on the images.
    """
    fixed = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers(), images))
    call = run or torch.inference_mode()(lambda: model(images))
    if images.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(images.device)
        before = torch.cuda.memory_allocated(images.device)
        call()
        return fixed + torch.cuda.max_memory_allocated(images.device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler writes to standard error
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
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


def describe_machine(device: torch.device) -> Machine:
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
    )
