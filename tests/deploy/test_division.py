import threading

import numpy as np
import pytest
import torch

from visionmlp.deploy.division import DividedCall, part_of


@pytest.mark.parametrize(
    ("batch", "threads", "part"),
    [
        (8, 2, 2),
        (4, 2, 2),
        (6, 2, 3),
        (18, 2, 3),
        (12, 2, 2),
        (10, 2, 5),
        (2, 2, 2),
        (7, 2, 7),
        (9, 2, 9),
        (4, 1, 2),
        (5, 1, 5),
        (64, 16, 2),
        (16, 16, 16),
        (1, 1, 1),
    ],
)
def test_batches_are_divided_into_equal_parts_that_are_worth_it(batch: int, threads: int, part: int) -> None:
    assert part_of(batch, threads) == part
    assert part == batch or batch % (part * threads) == 0


@pytest.mark.parametrize(("pytorch", "part"), [(1, 8), (2, 2)])
def test_without_a_number_of_threads_pytorchs_counts_unless_it_is_one(
    pytorch: int, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: pytorch)
    assert part_of(8, None) == part
    assert part_of(8, 1) == 2


def _doubled(images: np.ndarray) -> np.ndarray:
    if (images < 0).any():
        raise ValueError("negative")
    return 2 * images


@pytest.mark.parametrize("calls", [1, 3])
def test_parts_come_back_in_order_and_a_failed_one_leaves_the_call_usable(calls: int) -> None:
    divided = DividedCall([_doubled] * calls, lambda batch: 2 if batch % 2 == 0 else batch)
    images = np.arange(24.0).reshape(12, 2)
    broken = images.copy()
    broken[5] = -1
    for _ in range(2 * calls + 1):
        assert np.array_equal(divided(images), 2 * images)
        assert np.array_equal(divided(images[:3]), 2 * images[:3])
        with pytest.raises(ValueError, match="negative"):
            divided(broken)


def test_calls_work_at_the_same_time_and_each_on_one_part() -> None:
    both, busy = threading.Barrier(2, timeout=30), [threading.Lock(), threading.Lock()]

    def call_of(own: threading.Lock):
        def call(images: np.ndarray) -> np.ndarray:
            assert own.acquire(blocking=False)
            try:
                both.wait()  # ends only if the other call is at work too
                return images + 1
            finally:
                own.release()

        return call

    divided = DividedCall([call_of(own) for own in busy], lambda _: 1)
    images = np.zeros((8, 3))
    assert np.array_equal(divided(images), images + 1)
