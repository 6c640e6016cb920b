"""Speeds and waiting of a pipeline whose times are known."""

from collections.abc import Iterator

import pytest

from visionmlp.bench.input_pipeline import WARM_UP, TimedBatches, measure_speeds
from visionmlp.engine.task import EpochData
from visionmlp.errors import InvalidConfig


class World:
    """A clock, and batches that take a second each but for some."""

    def __init__(self, length: int, slow: "dict[int, float] | None" = None) -> None:
        self.now, self.length, self.slow = 0.0, length, slow or {}
        self.made = self.closed = 0

    def clock(self) -> float:
        return self.now

    def __len__(self) -> int:
        return self.length

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[int]:
        for number in range(skip, self.length):
            self.now += self.slow.get(self.made, 1.0)
            self.made += 1
            yield epoch * self.length + number

    def close(self) -> None:
        self.closed += 1

    def train(self, batches: EpochData, count: int) -> None:
        """Three seconds of work for each batch."""
        epoch = taken = 0
        while taken < count:
            for _ in batches.epoch(epoch):
                self.now += 3.0
                taken += 1
                if taken == count:
                    break
            epoch += 1


@pytest.mark.parametrize("length", [100, 4])
def test_speeds_are_those_of_the_clock(length: int) -> None:
    world = World(length)
    speeds = measure_speeds(world, world.train, batch_size=8, steps=20, clock=world.clock)
    assert speeds.loader_images_per_second == pytest.approx(8.0)
    assert speeds.step_images_per_second == pytest.approx(8 / 3)
    assert speeds.training_images_per_second == pytest.approx(2.0)
    assert speeds.waiting == pytest.approx(0.25)
    assert world.closed == 1


def test_a_slow_start_and_one_disturbance_do_not_count() -> None:
    slow = dict.fromkeys(range(WARM_UP), 50.0) | {WARM_UP + 3: 500.0}
    world = World(100, slow)
    speeds = measure_speeds(world, world.train, batch_size=8, steps=20, clock=world.clock)
    assert speeds.waiting == pytest.approx(0.25)
    assert speeds.training_images_per_second == pytest.approx(2.0)


def test_parts_cover_all_batches_behind_the_warm_up() -> None:
    world = World(100)
    timed = TimedBatches(world, world.clock)
    world.train(timed, WARM_UP + 23 + 1)
    parts = timed.windows()
    assert sum(batches for batches, _, _ in parts) == 23
    assert all(seconds == 4 * batches and waited == batches for batches, seconds, waited in parts)
    assert list(timed.epoch(2, skip=98)) == [298, 299]


def test_too_few_steps_are_refused_and_workers_end_with_an_error() -> None:
    world = World(100)
    with pytest.raises(InvalidConfig, match=r"steps must be at least 5, .*, got 4"):
        measure_speeds(world, world.train, batch_size=8, steps=4)

    def fail(_batches: EpochData, _count: int) -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        measure_speeds(world, fail, batch_size=8, steps=5)
    assert world.closed == 1
