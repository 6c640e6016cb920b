import csv
import functools

import pytest
import torch
from torch import nn

from visionmlp.bench import runners
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
from visionmlp.measure.catalog import count_macs
from visionmlp.measure.gemm import GemmRate
from visionmlp.measure.timing import Machine, TrainingStep
from visionmlp.models.checkpoint import load_model

quick = functools.partial(bench, batch_sizes=(2,), seconds=0.02, gemm_sides=(64,))


def test_gemm_efficiency_of_a_matrix_product_is_one() -> None:
    # 1000 images/s of 5e6 MACs are 1e10 operations per second
    assert gemm_efficiency(5_000_000, 1000.0, 1e10) == pytest.approx(1.0)
    assert gemm_efficiency(5_000_000, 250.0, 1e10) == pytest.approx(0.25)


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
        assert row.fused_roofline >= row.gemm_efficiency * (1 - 1e-9)
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
        "fused_roofline": 0.8,
        "peak_mib": 8.0,
        "gemm_gflops": 10.0,
        "gemm_library": "oneDNN",
        "matmul_gflops": 5.0,
        "copy_gbytes": 20.0,
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
