import csv
import functools
import os

import pytest
import torch
from torch import nn

from visionmlp.bench import contenders, runners
from visionmlp.bench.bench import (
    BenchError,
    Benchmark,
    Measurement,
    bench,
    bench_table,
    check_options,
    gemm_efficiency,
    using_threads,
    write_csv,
)
from visionmlp.bench.runners import count_step_macs
from visionmlp.errors import InvalidConfig
from visionmlp.layers.fusible import reparameterize
from visionmlp.measure.catalog import count_macs
from visionmlp.measure.gemm import GemmRate, copy_call, gemm_calls, gemm_rate
from visionmlp.measure.timing import Machine, TrainingStep, interleave, open_device, peak_memory
from visionmlp.models.checkpoint import load_model, save_checkpoint

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


def test_every_form_runtime_dtype_and_batch_size_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda module, **_: compiled.append(module) or module)
    result = quick(
        ["resmlp_test", "mlpmixer_test"],
        batch_sizes=(1, 3),
        runtimes=("eager", "compile"),
        dtypes=("float32", "bfloat16"),
        training=True,
    )
    rows = [(r.model, r.form, r.task, r.runtime, r.dtype, r.batch_size) for r in result.measurements]
    # a training step has no deploy form
    assert len(rows) == len(set(rows)) == 2 * 3 * 2 * 2 * 2
    assert not result.failures
    assert set(result.gemm) == {"float32", "bfloat16"}
    # inference and training of each model and dtype, and inference of its deploy form; shared by the batch sizes
    assert len(compiled) == 12
    for row in result.measurements:
        assert row.images_per_second == pytest.approx(1e3 * row.batch_size / row.p50_ms)
        assert row.p99_ms >= row.p50_ms
        assert row.calls >= 3
        rate = result.gemm[row.dtype]
        assert row.gemm_efficiency == pytest.approx(gemm_efficiency(row.macs, row.images_per_second, rate.best))
        assert row.matmul_efficiency == pytest.approx(gemm_efficiency(row.macs, row.images_per_second, rate.matmul))
        assert row.gemm_gflops == round(rate.best / 1e9, 1)


def test_weights_are_frozen_when_a_shape_is_compiled_for_inference(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen: dict[tuple[bool, int], list[bool]] = {}

    def compile(module, **_):
        def run(images):
            frozen.setdefault((module.training, len(images)), []).append(torch._inductor.config.freezing)
            return module(images)

        return run

    monkeypatch.setattr(torch, "compile", compile)
    quick(["resmlp_test"], forms=("training",), batch_sizes=(1, 2), runtimes=("compile",), training=True)
    assert set(frozen) == {(training, batch) for training in (False, True) for batch in (1, 2)}
    for (training, _), calls in frozen.items():
        assert calls[0] is not training
        assert not any(calls[1:])


def test_macs_are_those_of_the_measured_form() -> None:
    training, deploy = quick(["repmlpnet_test"]).measurements
    model, _ = load_model("repmlpnet_test")
    assert training.macs == count_macs(model, (3, 32, 32))
    assert deploy.macs < training.macs
    assert deploy.params < training.params


def test_macs_of_a_training_step_are_those_of_both_passes() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5, bias=False), nn.Linear(5, 7, bias=False)).eval()
    # the images need no gradient
    assert count_step_macs(model, (3, 2, 2)) == 3 * (12 * 5 + 5 * 7) - 12 * 5
    model, _ = load_model("resmlp_test")
    assert count_step_macs(model, (3, 32, 32)) > 2 * count_macs(model, (3, 32, 32))
    assert next(model.parameters()).grad is None


def test_training_rows_are_steps_in_training_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []

    class Watched(TrainingStep):
        def __call__(self) -> None:
            steps.append(self.model.training and torch.is_grad_enabled())
            super().__call__()

    monkeypatch.setattr(runners, "TrainingStep", Watched)
    rows = quick(["resmlp_test"], training=True).measurements
    assert [(row.form, row.task) for row in rows] == [
        ("training", "inference"),
        ("training", "training step"),
        ("deploy", "inference"),
    ]
    assert len(steps) >= 4
    assert all(steps)
    inference, step, _ = rows
    assert step.peak_mib > inference.peak_mib  # type: ignore[operator]
    assert step.macs > 2 * inference.macs


def test_dtype_threads_and_memory_format_have_an_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def measure(model: nn.Module, images: torch.Tensor, **_: object) -> int:
        kernel = next(parameter for parameter in model.parameters() if parameter.dim() == 4)
        channels_last = images.is_contiguous(memory_format=torch.channels_last) and kernel.is_contiguous(
            memory_format=torch.channels_last
        )
        seen.append((images.dtype, kernel.dtype, channels_last))
        return 0

    monkeypatch.setattr(runners, "peak_memory", measure)
    before = torch.get_num_threads()
    result = quick(["resmlp_test"], forms=("training",), dtypes=("bfloat16",), channels_last=True, threads=1)
    assert result.machine.threads == 1
    assert torch.get_num_threads() == before
    quick(["resmlp_test"], forms=("training",))
    assert seen == [(torch.bfloat16, torch.bfloat16, True), (torch.float32, torch.float32, False)]
    assert result.measurements[0].dtype == "bfloat16"


def test_threads_are_given_back_after_an_error() -> None:
    before = torch.get_num_threads()

    def fail() -> None:
        with using_threads(before + 1):
            raise RuntimeError(torch.get_num_threads())

    with pytest.raises(RuntimeError, match=str(before + 1)):
        fail()
    assert torch.get_num_threads() == before


def test_a_model_of_any_size_stays_and_others_are_built_for_the_size() -> None:
    rows = quick(["resmlp_test", "asmlp_test"], forms=("deploy",), input_sizes=(32, 64)).measurements
    assert [(row.model, row.height, row.width) for row in rows] == [
        ("resmlp_test", 32, 32),
        ("asmlp_test", 32, 32),
        ("resmlp_test", 64, 64),
        ("asmlp_test", 64, 64),
    ]
    assert rows[2].params > rows[0].params  # token matrices
    assert rows[3].params == rows[1].params
    assert rows[3].macs > 3 * rows[1].macs


def test_a_size_that_a_model_cannot_take_is_named_and_the_others_are_measured(tmp_path) -> None:
    model, _ = load_model("mlpmixer_test")
    save_checkpoint(tmp_path / "d.safetensors", reparameterize(model))  # type: ignore[arg-type]
    names = ["resmlp_test", str(tmp_path / "d.safetensors")]
    result = quick(names, forms=("deploy",), input_sizes=(32, 33, 64))
    assert [(row.model.partition(" ")[0], row.height) for row in result.measurements] == [
        ("resmlp_test", 32),
        ("mlpmixer_test", 32),
        ("resmlp_test", 64),
    ]
    assert list(result.failures) == ["resmlp_test at 33x33", f"{names[1]} at 33x33", f"{names[1]} at 64x64"]
    assert "not a multiple of 8" in result.failures["resmlp_test at 33x33"]
    assert "deploy form, which fixes its img_size" in result.failures[f"{names[1]} at 64x64"]


def test_compare_timm_measures_the_same_architecture() -> None:
    ours, theirs = quick(["resmlp_s12"], batch_sizes=(1,), forms=("training",), compare=("timm",)).measurements
    assert (theirs.model, theirs.form) == ("resmlp_12_224", "timm")
    assert (theirs.params, theirs.macs) == (ours.params, ours.macs)
    assert ours.paper_top1 == theirs.paper_top1 == 76.6


def test_a_model_without_a_twin_is_measured_alone() -> None:
    assert len(quick(["repmlpnet_test"], forms=("deploy",), compare=("timm",)).measurements) == 1


@pytest.mark.parametrize("peer", contenders.PEERS, ids=lambda peer: peer.name)
def test_peers_cost_about_as_much_as_small_vision_mlps(peer: contenders.Peer) -> None:
    with torch.device("meta"):
        built = contenders.peer_contender(peer)
    assert built.input_size == (3, peer.side, peer.side)
    assert 1.5e9 < count_macs(built.module, built.input_size) < 5e9
    assert 75 < peer.top1 < 83
    assert "arXiv" in peer.source
    assert built.paper_top1 == peer.top1


def test_accuracies_hold_for_the_papers_size_only() -> None:
    peer = contenders.PEERS[0]
    with torch.device("meta"):
        assert contenders.peer_contender(peer, 64).paper_top1 is None
        swin = next(peer for peer in contenders.PEERS if "swin" in peer.name)
        assert contenders.peer_contender(swin, 448).input_size == (3, 448, 448)
    (ours,) = contenders.model_contenders("resmlp_s12", forms=("training",), side=160)
    assert ours.paper_top1 is None


def test_compare_peers_joins_them_in_every_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = contenders.Peer(name="resnet10t", family="ResNet", side=64, top1=1.0, source="")
    monkeypatch.setattr(contenders, "PEERS", (tiny,))
    result = quick(["resmlp_test"], forms=("deploy",), compare=("peers",), runtimes=("eager",), training=True)
    rows = [(row.model, row.family, row.form, row.task, row.height) for row in result.measurements]
    assert rows == [
        ("resmlp_test", "ResMLP", "deploy", "inference", 32),
        ("resnet10t", "ResNet", "peer", "inference", 64),
        ("resnet10t", "ResNet", "peer", "training step", 64),
    ]


def test_a_contender_that_fails_is_one_line_and_the_others_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def session_of(module, images, *, runtime, threads):
        assert (runtime, threads) == ("onnxruntime", 1)
        if len(images) == 3:
            raise RuntimeError("no kernel\nfor this shape")

        def run(array):
            assert array.shape == (len(images), 3, 32, 32)
            if len(images) == 2:
                raise MemoryError("out of memory")
            return module(torch.from_numpy(array)).detach().numpy()

        return run

    monkeypatch.setattr(runners, "session_of", session_of)
    result = quick(
        ["resmlp_test"], forms=("deploy",), batch_sizes=(1, 2, 3), runtimes=("eager", "onnxruntime"), threads=1
    )
    rows = [(row.runtime, row.batch_size) for row in result.measurements]
    assert rows == [("eager", 1), ("onnxruntime", 1), ("eager", 2), ("eager", 3)]
    assert result.measurements[1].peak_mib is None
    assert result.failures == {
        "resmlp_test deploy inference onnxruntime float32, 32x32, batch 3": "no kernel",
        "resmlp_test deploy inference onnxruntime float32, 32x32, batch 2": "out of memory",
    }
    with pytest.raises(BenchError, match="no kernel"):
        quick(["resmlp_test"], forms=("deploy",), batch_sizes=(3,), runtimes=("onnxruntime",), threads=1)


def test_int8_is_rated_by_float32_and_runs_in_openvino_only(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = []

    def int8_session(module, images, *, threads):
        sessions.append((next(module.parameters()).dtype, images.dtype, threads))
        return lambda array: array.sum()

    monkeypatch.setattr(runners, "_int8_session", int8_session)
    monkeypatch.setattr(runners, "session_of", lambda *_, **__: lambda array: array.sum())
    result = quick(
        ["resmlp_test"],
        forms=("deploy",),
        dtypes=("float32", "int8"),
        runtimes=("eager", "onnxruntime", "openvino"),
        threads=1,
    )
    assert [(row.dtype, row.runtime) for row in result.measurements] == [
        ("float32", "eager"),
        ("float32", "onnxruntime"),
        ("float32", "openvino"),
        ("int8", "openvino"),
    ]
    assert sessions == [(torch.float32, torch.float32, 1)]
    assert list(result.gemm) == ["float32"]
    assert result.measurements[-1].gemm_gflops == round(result.gemm["float32"].best / 1e9, 1)


def test_int8_graph_runs() -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    (row,) = quick(["resmlp_test"], forms=("deploy",), dtypes=("int8",), runtimes=("openvino",)).measurements
    assert (row.dtype, row.runtime) == ("int8", "openvino")


@pytest.mark.parametrize(
    "options",
    [
        {"batch_sizes": ()},
        {"batch_sizes": (0,)},
        {"input_sizes": (0,)},
        {"seconds": 0},
        {"threads": 0},
        {"device": "nonesuch"},
        {"forms": ()},
        {"dtypes": ("int8",)},
    ],
)
def test_impossible_options_are_refused(options: dict) -> None:
    with pytest.raises(InvalidConfig):
        quick(["resmlp_test"], **options)
    check_options((1,), (), 1.0, None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_cuda_graphs_need_cuda() -> None:
    with pytest.raises(InvalidConfig, match="cuda-graphs needs a CUDA device"):
        quick(["resmlp_test"], runtimes=("cuda-graphs",))


def test_exported_graphs_stay_on_the_cpu() -> None:
    with pytest.raises(InvalidConfig, match="openvino runs on the CPU"):
        runners.check_runtimes(("openvino",), ("float32",), torch.device("cuda"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_graphs_replay() -> None:
    result = quick(["resmlp_test"], device="cuda", runtimes=("eager", "compile", "cuda-graphs"), training=True)
    assert not result.failures
    assert len(result.measurements) == 8


def test_device_names() -> None:
    assert open_device("cpu").type == "cpu"
    with pytest.raises(InvalidConfig, match="cuda:99"):
        open_device("cuda:99")


def measurement(**changes: object) -> Measurement:
    values: dict = {
        "model": "m",
        "family": "F",
        "form": "deploy",
        "task": "inference",
        "runtime": "eager",
        "dtype": "float32",
        "height": 32,
        "width": 32,
        "batch_size": 4,
        "params": 1,
        "macs": 2,
        "images_per_second": 3.0,
        "p50_ms": 4.0,
        "p99_ms": 5.0,
        "calls": 6,
        "gemm_efficiency": 0.7,
        "matmul_efficiency": 1.4,
        "peak_mib": 8.0,
        "gemm_gflops": 10.0,
        "gemm_library": "oneDNN",
        "matmul_gflops": 5.0,
        "paper_top1": None,
    }
    return Measurement(**{**values, **changes})


MACHINE = Machine(cpu="c", device="cpu", threads=2, torch="2", date="now")


def test_csv_has_a_row_per_measurement_with_the_machine(tmp_path) -> None:
    rate = GemmRate(best=1e10, library="oneDNN", matmul=5e9)
    measurements = [measurement(), measurement(peak_mib=None)]
    result = Benchmark(machine=MACHINE, gemm={"float32": rate}, measurements=measurements, failures={})
    write_csv(result, tmp_path / "b.csv")
    rows = list(csv.DictReader((tmp_path / "b.csv").open()))
    assert len(rows) == 2
    assert rows[0]["gemm_efficiency"] == "0.7"
    assert rows[0]["matmul_efficiency"] == "1.4"
    assert rows[0]["gemm_gflops"] == "10.0"
    assert [row["peak_mib"] for row in rows] == ["8.0", ""]
    assert {row["threads"] for row in rows} == {"2"}


def test_table_says_once_what_all_rows_share() -> None:
    rate = GemmRate(best=1e10, library="oneDNN", matmul=5e9)

    def table(*measurements: Measurement):
        return bench_table(
            Benchmark(machine=MACHINE, gemm={"float32": rate}, measurements=list(measurements), failures={})
        )

    alone = table(measurement())
    assert alone.row_count == 1
    assert "runtime eager" in str(alone.title)
    assert "10.0 GFLOP/s (oneDNN; torch.matmul 5.0)" in str(alone.title)
    both = table(measurement(), measurement(runtime="openvino"))
    assert "runtime" in [column.header for column in both.columns]
    assert "runtime eager" not in str(both.title)


def test_reading_the_profiler_keeps_standard_error_clean(capfd) -> None:
    peak_memory(nn.Linear(2, 2), torch.randn(1, 2))
    assert capfd.readouterr().err == ""
    assert os.environ["KINETO_LOG_LEVEL"] == "99"
