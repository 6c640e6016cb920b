"""How fast images come, how fast a model takes them, and how long training waits: one row for each number of workers.

All three are taken from what training itself uses: its batches, and its loop.
"""

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from rich.table import Table

from visionmlp.bench.bench import write_rows
from visionmlp.engine.task import EpochData
from visionmlp.errors import InvalidConfig
from visionmlp.measure.timing import Machine

WINDOWS = 5
"""Parts of a measurement; its result is their median, so that a neighbour's burst of work does not count."""

WARM_UP = 5
"""Batches before the first window: caches and allocators fill, and what workers had fetched ahead is used up."""


class Batches(EpochData, Protocol):
    """Training batches that may have workers."""

    def close(self) -> None:
        """End the workers."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputMeasurement:
    """Training with one number of workers."""

    model: str
    data: str
    height: int
    """Of the images that the model takes, in pixels."""
    width: int
    batch_size: int
    """Images at a time on the device."""
    num_workers: int
    """Processes that load images; 0 is the training process itself."""
    loader_images_per_second: float
    """Of batches that nobody trains on."""
    step_images_per_second: float
    """Of training steps on one batch that is in memory."""
    training_images_per_second: float
    """Of training."""
    waiting: float
    """Share of training's time in which it waits for the next batch, in [0, 1]."""
    steps: int
    """Batches of each measurement, behind the warm-up."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputBenchmark:
    """A finished run."""

    machine: Machine
    measurements: Sequence[InputMeasurement]

    def rows(self) -> list[dict[str, Any]]:
        """One for each measurement, with the machine's columns."""
        machine = dataclasses.asdict(self.machine)
        return [{**dataclasses.asdict(row), **machine} for row in self.measurements]

    def write_csv(self, path: Path) -> None:
        """`rows` as a table."""
        write_rows(self.rows(), path)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speeds:
    """One measurement; fields are those of `InputMeasurement`."""

    loader_images_per_second: float
    step_images_per_second: float
    training_images_per_second: float
    waiting: float


class TimedBatches:
    """Batches that note when they were asked for and when they came.

    Args:
        batches: what is timed.
        clock: seconds that have passed.
    """

    def __init__(self, batches: EpochData, clock: Callable[[], float] = time.perf_counter) -> None:
        self.batches, self.clock = batches, clock
        self.asked: list[float] = []
        self.came: list[float] = []

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Any]:
        """As those that are timed."""
        asked = self.clock()
        for batch in self.batches.epoch(epoch, skip):
            self.asked.append(asked)
            self.came.append(self.clock())
            yield batch
            asked = self.clock()

    def windows(self, count: int = WINDOWS, warm_up: int = WARM_UP) -> list[tuple[int, float, float]]:
        """Batches, seconds, and seconds of waiting of each part, behind the warm-up.

        A part goes from the arrival of one batch to that of another, so that its work and its waiting are whole.
        """
        last = len(self.came) - 1
        edges = [warm_up + (last - warm_up) * part // count for part in range(count + 1)]
        return [
            (
                end - start,
                self.came[end] - self.came[start],
                sum(self.came[at] - self.asked[at] for at in range(start + 1, end + 1)),
            )
            for start, end in itertools.pairwise(edges)
        ]


class SameBatch:
    """One batch again and again: training that never waits."""

    def __init__(self, batch: Any, length: int) -> None:
        self.batch, self.length = batch, length

    def __len__(self) -> int:
        return self.length

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Any]:  # noqa: ARG002 (all are the same)
        """It, to the end of the epoch."""
        return (self.batch for _ in range(skip, self.length))


def measure_speeds(
    batches: Batches,
    train: Callable[[EpochData, int], None],
    *,
    batch_size: int,
    steps: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Speeds:
    """Measure batches, training, and training that never waits, one behind the other.

    Args:
        batches: of training; closed at the end.
        train: trains on batches, at least so many.
        batch_size: images of one batch.
        steps: batches of each measurement, behind the warm-up.
        clock: seconds that have passed.

    Raises:
        InvalidConfig: if there are fewer steps than parts of a measurement.
    """
    if steps < WINDOWS:
        raise InvalidConfig(
            f"steps must be at least {WINDOWS}, since a result is the median of so many parts, got {steps}"
        )
    count = WARM_UP + steps + 1
    try:
        trained = TimedBatches(batches, clock)
        train(trained, count)
        alone = TimedBatches(batches, clock)
        batch = _take(alone, count)
    finally:
        batches.close()
    still = TimedBatches(SameBatch(batch, len(batches)), clock)
    train(still, count)
    return Speeds(
        loader_images_per_second=_rate(alone, batch_size),
        step_images_per_second=_rate(still, batch_size),
        training_images_per_second=_rate(trained, batch_size),
        waiting=statistics.median(waited / seconds for _, seconds, waited in trained.windows()),
    )


def input_table(result: InputBenchmark) -> Table:
    """A row for each number of workers, with the machine above."""
    first = result.measurements[0]
    about = f"{first.model}, {first.height}x{first.width}, batch {first.batch_size}, on {first.data}"
    table = Table(title=f"{result.machine}\n{about}", title_justify="left")
    for heading in ("workers", "loader alone, images/s", "model alone, images/s", "training, images/s", "waiting %"):
        table.add_column(heading, justify="right")
    for row in result.measurements:
        speeds = (row.loader_images_per_second, row.step_images_per_second, row.training_images_per_second)
        numbers = [f"{speed:.1f}" for speed in speeds]
        table.add_row(str(row.num_workers), *numbers, f"{100 * row.waiting:.1f}")
    return table


def _take(batches: TimedBatches, count: int) -> Any:
    """The last of so many batches, over as many epochs as that takes."""
    epoch = taken = 0
    while True:
        for batch in batches.epoch(epoch):
            taken += 1
            if taken == count:
                return batch
        epoch += 1


def _rate(timed: TimedBatches, batch_size: int) -> float:
    return statistics.median(batches * batch_size / seconds for batches, seconds, _ in timed.windows())
