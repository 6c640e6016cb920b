import os

import pytest
import torch
from torch import nn

from visionmlp.errors import InvalidConfig
from visionmlp.measure.gemm import GemmRate, copy_call, gemm_calls, gemm_rate
from visionmlp.measure.timing import TrainingStep, interleave, open_device, peak_memory


class FakeClock:
    """Seconds that pass only when a call says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def __call__(self) -> float:
        return self.now

    def call(self, name: str, *durations: float):
        """A call that takes the given durations, the last one from then on."""
        remaining = list(durations)

        def run() -> None:
            self.log.append(name)
            self.now += remaining.pop(0) if len(remaining) > 1 else remaining[0]

        return run


def test_calls_take_turns_and_the_warm_up_is_not_timed() -> None:
    clock = FakeClock()
    calls = {"a": clock.call("a", 9.0, 8.0, 0.5), "b": clock.call("b", 7.0, 6.0, 0.25)}
    durations = interleave(calls, seconds=2.0, turns=2, clock=clock)
    # a turn is one second, after one untimed call, and all are warmed up before the first
    assert durations == {"a": [0.5] * 4, "b": [0.25] * 8}
    assert clock.log == ["a", "b"] + ["a"] * 3 + ["b"] * 5 + ["a"] * 3 + ["b"] * 5


def test_a_call_longer_than_its_turn_is_timed_once_per_turn() -> None:
    clock = FakeClock()
    durations = interleave({"slow": clock.call("slow", 5.0)}, seconds=1.0, turns=3, clock=clock)
    assert durations == {"slow": [5.0] * 3}
    assert len(clock.log) == 2 + 3


def test_peak_memory_is_weights_images_and_the_largest_sum_of_live_tensors() -> None:
    model = nn.Sequential(nn.Linear(256, 1024), nn.GELU(), nn.Linear(1024, 256)).eval()
    images = torch.randn(512, 256)
    weights = 4 * (2 * 256 * 1024 + 1024 + 256)
    # input and output of the GELU
    assert peak_memory(model, images) == weights + images.nbytes + 2 * 4 * 512 * 1024


def test_peak_memory_of_a_training_step_holds_activations_and_gradients() -> None:
    model = nn.Sequential(nn.Linear(256, 1024), nn.Sigmoid(), nn.Linear(1024, 256))
    images = torch.randn(512, 256)
    step = TrainingStep(model, model, images, 256)
    inference, training = peak_memory(model, images), peak_memory(model, images, run=step)
    # the sigmoid's input is gone, its output is kept; its gradient arrives while that is still there
    assert training >= inference + sum(4 * parameter.numel() for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_slow_call_takes_no_turns_once_its_time_is_used_up() -> None:
    clock = FakeClock()
    durations = interleave(
        {"slow": clock.call("slow", 5.0), "fast": clock.call("fast", 0.25)}, seconds=5.0, clock=clock
    )
    assert len(durations["slow"]) == 3  # the least that a median needs
    assert len(durations["fast"]) == 20


def test_a_call_that_raises_is_left_out_and_the_others_go_on() -> None:
    clock = FakeClock()
    failing = iter([None, None, RuntimeError("out of memory")])

    def fail_later() -> None:
        clock.now += 1.0
        if (error := next(failing)) is not None:
            raise error

    told = {}
    durations = interleave(
        {"bad": fail_later, "good": clock.call("good", 1.0)}, seconds=5.0, clock=clock, on_error=told.__setitem__
    )
    assert list(durations) == ["good"]
    assert len(durations["good"]) == 5
    assert str(told["bad"]) == "out of memory"
    with pytest.raises(ZeroDivisionError):
        interleave({"bad": lambda: 1 / 0}, seconds=1.0, clock=clock)


def test_gemm_rate_is_the_best_of_libraries_and_sides() -> None:
    rate = gemm_rate({("torch.matmul", 10): [1.0, 2.0, 3.0], ("torch.matmul", 20): [4.0], ("oneDNN", 10): [0.4]})
    assert rate == GemmRate(best=5000.0, library="oneDNN", matmul=4000.0)
    rate = gemm_rate({("torch.matmul", 10): [1.0], ("oneDNN", 10): [0.25]})
    assert (rate.best, rate.library, rate.matmul) == (8000.0, "oneDNN", 2000.0)
    assert "torch.matmul" in str(rate)


def test_gemm_calls_multiply_the_same_matrices() -> None:
    calls = gemm_calls(torch.float32, torch.device("cpu"), (16,))
    assert {library for library, _ in calls} <= {"torch.matmul", "oneDNN"}
    for call in calls.values():
        product = call()
        assert isinstance(product, torch.Tensor)
        assert product.shape == (16, 16)
    copy_call(torch.device("cpu"), 1024)()


def test_device_names() -> None:
    assert open_device("cpu").type == "cpu"
    with pytest.raises(InvalidConfig, match="cuda:99"):
        open_device("cuda:99")


def test_reading_the_profiler_keeps_standard_error_clean(capfd) -> None:
    peak_memory(nn.Linear(2, 2), torch.randn(1, 2))
    assert capfd.readouterr().err == ""
    assert os.environ["KINETO_LOG_LEVEL"] == "99"
