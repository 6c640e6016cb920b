import csv
import functools
import os

import pytest
import torch
from torch import nn

from visionmlp.errors import InvalidConfig
from visionmlp.models.checkpoint import load_model
from visionmlp.tools.bench import Benchmark, Machine, Measurement, bench, bench_table, gemm_efficiency, write_csv
from visionmlp.tools.catalog import count_macs
from visionmlp.tools.timing import interleave, open_device, peak_memory

quick = functools.partial(bench, batch_sizes=(2,), seconds=0.02, gemm_sides=(64,))


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


def test_gemm_efficiency_of_a_matrix_product_is_one() -> None:
    # 1000 images/s of 5e6 MACs are 1e10 operations per second
    assert gemm_efficiency(5_000_000, 1000.0, 1e10) == pytest.approx(1.0)
    assert gemm_efficiency(5_000_000, 250.0, 1e10) == pytest.approx(0.25)


def test_peak_memory_is_weights_images_and_the_largest_sum_of_live_tensors() -> None:
    model = nn.Sequential(nn.Linear(256, 1024), nn.GELU(), nn.Linear(1024, 256)).eval()
    images = torch.randn(512, 256)
    weights = 4 * (2 * 256 * 1024 + 1024 + 256)
    # input and output of the GELU
    assert peak_memory(model, images) == weights + images.nbytes + 2 * 4 * 512 * 1024


def test_every_form_runtime_and_batch_size_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda module, **_: compiled.append(module) or module)
    result = quick(["resmlp_test", "mlpmixer_test"], batch_sizes=(1, 3), runtimes=("eager", "compile"))
    rows = [(row.model, row.form, row.runtime, row.batch_size) for row in result.measurements]
    assert len(rows) == len(set(rows)) == 2 * 2 * 2 * 2
    assert len(compiled) == 4
    for row in result.measurements:
        assert row.images_per_second == pytest.approx(1e3 * row.batch_size / row.p50_ms)
        assert row.p99_ms >= row.p50_ms
        assert row.calls >= 5
        rate = result.machine.gemm_gflops * 1e9
        assert row.gemm_efficiency == pytest.approx(gemm_efficiency(row.macs, row.images_per_second, rate), rel=0.02)


def test_macs_are_those_of_the_measured_form() -> None:
    training, deploy = quick(["repmlpnet_test"]).measurements
    model, _ = load_model("repmlpnet_test")
    assert training.macs == count_macs(model, (3, 32, 32))
    assert deploy.macs < training.macs
    assert deploy.params < training.params


def test_dtype_threads_and_memory_format_have_an_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def measure(model: nn.Module, images: torch.Tensor) -> int:
        kernel = next(parameter for parameter in model.parameters() if parameter.dim() == 4)
        channels_last = images.is_contiguous(memory_format=torch.channels_last) and kernel.is_contiguous(
            memory_format=torch.channels_last
        )
        seen.append((images.dtype, kernel.dtype, channels_last))
        return 0

    monkeypatch.setattr("visionmlp.tools.bench.peak_memory", measure)
    before = torch.get_num_threads()
    result = quick(["resmlp_test"], forms=("deploy",), dtype="bfloat16", channels_last=True, threads=1)
    assert result.machine.threads == 1
    assert torch.get_num_threads() == before
    quick(["resmlp_test"], forms=("deploy",))
    assert seen == [(torch.bfloat16, torch.bfloat16, True), (torch.float32, torch.float32, False)]
    assert result.measurements[0].dtype == "bfloat16"


def test_compare_timm_measures_the_same_architecture() -> None:
    ours, theirs = quick(["resmlp_s12"], batch_sizes=(1,), forms=("training",), compare="timm").measurements
    assert (theirs.model, theirs.form) == ("resmlp_12_224", "timm")
    assert (theirs.params, theirs.macs) == (ours.params, ours.macs)


def test_a_model_without_a_twin_is_measured_alone() -> None:
    assert len(quick(["repmlpnet_test"], forms=("deploy",), compare="timm").measurements) == 1


@pytest.mark.parametrize(
    "options",
    [{"batch_sizes": ()}, {"batch_sizes": (0,)}, {"seconds": 0}, {"threads": 0}, {"device": "nonesuch"}, {"forms": ()}],
)
def test_impossible_options_are_refused(options: dict) -> None:
    with pytest.raises(InvalidConfig):
        quick(["resmlp_test"], **options)


def test_device_names() -> None:
    assert open_device("cpu").type == "cpu"
    with pytest.raises(InvalidConfig, match="cuda:99"):
        open_device("cuda:99")


def test_csv_has_a_row_per_measurement_with_the_machine(tmp_path) -> None:
    machine = Machine(cpu="c", device="cpu", threads=2, torch="2", date="now", gemm_gflops=10.0)
    row = Measurement(
        model="m",
        form="deploy",
        runtime="eager",
        dtype="float32",
        batch_size=4,
        params=1,
        macs=2,
        images_per_second=3.0,
        p50_ms=4.0,
        p99_ms=5.0,
        calls=6,
        gemm_efficiency=0.7,
        peak_mib=8.0,
    )
    result = Benchmark(machine=machine, measurements=[row, row])
    write_csv(result, tmp_path / "b.csv")
    rows = list(csv.DictReader((tmp_path / "b.csv").open()))
    assert len(rows) == 2
    assert rows[0]["gemm_efficiency"] == "0.7"
    assert rows[0]["gemm_gflops"] == "10.0"
    assert bench_table(result).row_count == 2


def test_reading_the_profiler_keeps_standard_error_clean(capfd) -> None:
    peak_memory(nn.Linear(2, 2), torch.randn(1, 2))
    assert capfd.readouterr().err == ""
    assert os.environ["KINETO_LOG_LEVEL"] == "99"
