"""Speed and size of models: all contenders take turns, the matrix products that they are rated by included."""

import contextlib
import csv
import dataclasses
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from rich.text import Text

from visionmlp.bench.contenders import Comparison, Contender, Form, Head, gather
from visionmlp.bench.precision import Dtype, in_precision, torch_dtype
from visionmlp.bench.runners import Entry, Prepared, Runners, Runtime, Task, check_runtimes
from visionmlp.deploy.runtimes import check_threads
from visionmlp.errors import InvalidConfig, MissingExtra, VisionMLPError
from visionmlp.measure.catalog import count_params, count_text
from visionmlp.measure.gemm import (
    GemmRate,
    copy_call,
    copy_size,
    gemm_calls,
    gemm_rate,
)
from visionmlp.measure.timing import Machine, check_seconds, describe_machine, interleave, open_device

_MIB = 2**20


class BenchError(VisionMLPError):
    """Nothing could be measured; the message gives the first reason."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """One contender at one batch size."""

    model: str
    family: str
    head: str = "classifier"
    """See `visionmlp.bench.contenders.Head`."""
    form: str
    """training, deploy, timm for timm's model of the same architecture, or peer."""
    task: Task
    runtime: Runtime
    dtype: Dtype
    height: int
    """Of the images, in pixels."""
    width: int
    """Of the images, in pixels."""
    batch_size: int
    params: int
    macs: int
    """Multiply-accumulates of one image in this form; of a training step those of both passes."""
    images_per_second: float
    """From the median latency."""
    p50_ms: float
    p99_ms: float
    calls: int
    """Timed calls behind the percentiles."""
    gemm_efficiency: float
    """2 x MACs x images per second over the GEMM rate; 1 would be a model that is one large matrix product."""
    matmul_efficiency: float
    """The same over the rate of ``torch.matmul``."""
    fused_roofline: float
    """Share of the speed that perfect fusion of every layer would reach, see `visionmlp.measure.gemm.fused_bound`: GEMM
    efficiency, unless reading a layer's weights takes longer than multiplying by them."""
    peak_mib: float | None
    """Weights, images and the largest sum of tensors alive in one call; None where PyTorch does not see them."""
    gemm_gflops: float
    """Best rate of a large matrix product in the same run and dtype (float32 for int8), 10^9 operations per second."""
    gemm_library: str
    """Which library gave it."""
    matmul_gflops: float
    """The same of ``torch.matmul``."""
    copy_gbytes: float
    """Bandwidth, 10^9 bytes per second: a large copy in the same run, read and written bytes together."""
    paper_top1: float | None
    """ImageNet-1k top-1 in percent that a paper states for this model at this size."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A finished run."""

    machine: Machine
    gemm: dict[str, GemmRate]
    """By dtype."""
    measurements: list[Measurement]
    failures: dict[str, str]
    """What could not be measured, and why, one line each."""


def gemm_efficiency(macs: int, images_per_second: float, gemm_flops: float) -> float:
    """Share of the matrix-product rate (operations per second) that a model turns into its own multiply-accumulates."""
    return 2 * macs * images_per_second / gemm_flops


def bench(
    models: Sequence[str],
    *,
    batch_sizes: Sequence[int],
    input_sizes: Sequence[int] = (),
    dtypes: Sequence[Dtype] = ("float32",),
    forms: Sequence[Form] = ("training", "deploy"),
    heads: Sequence[Head] = ("classifier",),
    runtimes: Sequence[Runtime] = ("eager",),
    training: bool = False,
    compare: Sequence[Comparison] = (),
    seconds: float = 2.0,
    threads: int | None = None,
    device: str = "cpu",
    channels_last: bool = False,
    gemm_sides: Sequence[int] = (),
    copy_bytes: int | None = None,
) -> Benchmark:
    """Measure models, all contenders and the matrix products taking turns.

    A contender that fails is named in the result; the others are measured.

    Args:
        models: names, run folders or checkpoint files.
        batch_sizes: images per call.
        input_sizes: heights and widths; none is each model's own. See `visionmlp.bench.contenders.model_contenders`.
        dtypes: of weights and images, whatever a checkpoint holds, see `visionmlp.bench.precision.Dtype`. TF32 and
            float16 need CUDA; int8 is calibrated on random images: good for
            speed, not for accuracy.
        forms: which forms of each model; a deploy checkpoint has no training form.
        heads: on each backbone, see `visionmlp.bench.contenders.Head`.
        runtimes: plain PyTorch, packed weights (deploy forms on the CPU), ``torch.compile`` (fixed shapes, weights
            frozen for inference on CPUs), CUDA graphs of either, or the exported graph in ONNX Runtime, OpenVINO or as
            machine code (AOTInductor).
        training: also measure a training step of everything but deploy forms, plain and compiled.
        compare: also timm's model where timm has the architecture, and `visionmlp.bench.contenders.PEERS`.
        seconds: time for each contender.
        threads: CPU threads.
        device: where to run.
        channels_last: memory format of images and convolution kernels.
        gemm_sides: of the matrices whose products are the GEMM rate; none is `visionmlp.measure.gemm.GEMM_SIDES`.
        copy_bytes: size of the copy whose rate is the bandwidth; none is `visionmlp.measure.gemm.COPY_BYTES`.

    Raises:
        BenchError: if every contender fails.
        InvalidConfig: if there is nothing to measure, or an option cannot work.
        MissingExtra: if a runtime is not installed.
        VisionMLPError: if a model cannot be loaded.
    """
    check_options(batch_sizes, input_sizes, seconds, threads)
    place = open_device(device)
    check_runtimes(runtimes, dtypes, place)
    contenders, refused = gather(models, forms=forms, sides=input_sizes or (None,), compare=compare, heads=heads)
    if training and any(contender.head != "classifier" for contender in contenders):
        raise InvalidConfig("training steps are measured of classifiers; leave training out, or the other heads")
    failures = {name: reason(error) for name, error in refused.items()}
    entries = [
        entry
        for batch_size in batch_sizes
        for contender in contenders
        for entry in _entries(contender, batch_size, dtypes, runtimes, training)
    ]
    with using_threads(threads):
        runners = Runners(
            place, torch.channels_last if channels_last else torch.contiguous_format, torch.get_num_threads()
        )
        prepared: dict[Entry, Prepared] = {}
        for entry in entries:
            try:
                prepared[entry] = runners.prepare(entry)
            except MissingExtra:
                raise
            except Exception as error:  # of whatever library runs it
                failures[str(entry)] = reason(error)
        rated: list[Dtype] = list(dict.fromkeys(_gemm_dtype(entry.dtype) for entry in prepared))
        products = {
            dtype: {
                key: in_precision(call, dtype, place)
                for key, call in gemm_calls(torch_dtype(dtype), place, gemm_sides).items()
            }
            for dtype in rated
        }
        copy_bytes = copy_bytes or copy_size(place)
        calls: dict[Any, Any] = {entry: made.call for entry, made in prepared.items()}
        calls |= {(dtype, *key): call for dtype, group in products.items() for key, call in group.items()}
        calls["copy"] = copy_call(place, copy_bytes)
        durations = interleave(
            calls, seconds=seconds, on_error=lambda key, error: failures.update({str(key): reason(error)})
        )
        gemm = {
            # the largest product may not fit into the memory
            dtype: gemm_rate({key: durations[(dtype, *key)] for key in group if (dtype, *key) in durations})
            for dtype, group in products.items()
        }
        bandwidth = 2 * copy_bytes / statistics.median(durations["copy"])
        measurements = []
        for entry, made in prepared.items():
            if entry not in durations:
                continue
            try:
                rate = gemm[_gemm_dtype(entry.dtype)]
                measurements.append(_measurement(entry, made, durations[entry], rate, bandwidth, runners))
            except Exception as error:  # memory is measured by one more call
                failures[str(entry)] = reason(error)
        if not measurements:
            name, cause = next(iter(failures.items()))
            raise BenchError(f"nothing could be measured; {name}: {cause}")
        return Benchmark(machine=describe_machine(place), gemm=gemm, measurements=measurements, failures=failures)


def check_options(batch_sizes: Sequence[int], input_sizes: Sequence[int], seconds: float, threads: int | None) -> None:
    """Refuse numbers that no measurement can use.

    Raises:
        InvalidConfig: naming the option.
    """
    if min(batch_sizes, default=0) < 1:
        raise InvalidConfig("batch-size needs one or more numbers, each at least 1")
    if min(input_sizes, default=1) < 1:
        raise InvalidConfig(f"input-size must be at least 1, got {min(input_sizes)}")
    check_seconds(seconds)
    check_threads(threads)


@contextlib.contextmanager
def using_threads(threads: int | None) -> Iterator[None]:
    """PyTorch with this number of CPU threads, or as it is."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def reason(error: Exception) -> str:
    """An error in one line; the first, of one that tells a story."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _entries(
    contender: Contender, batch_size: int, dtypes: Sequence[Dtype], runtimes: Sequence[Runtime], training: bool
) -> Iterator[Entry]:
    """The rows of a contender; combinations that do not exist are left out."""
    for dtype in dtypes:
        for runtime in runtimes:
            exists = (dtype != "int8" or runtime == "openvino") and (contender.form == "deploy" or runtime != "packed")
            tasks: list[Task] = ["inference"] if exists else []
            if training and contender.form != "deploy" and dtype != "int8" and runtime in ("eager", "compile"):
                tasks.append("training step")
            for task in tasks:
                yield Entry(contender=contender, task=task, runtime=runtime, dtype=dtype, batch_size=batch_size)


def _gemm_dtype(dtype: Dtype) -> Dtype:
    """The dtype of the products that rate a row: int8 is rated by float32, so that its gain shows."""
    return "float32" if dtype == "int8" else dtype


def _measurement(
    entry: Entry,
    made: Prepared,
    durations: Sequence[float],
    gemm: GemmRate,
    bandwidth: float,
    runners: Runners,
) -> Measurement:
    median, macs = statistics.median(durations), runners.macs(entry)
    speed = entry.batch_size / median
    contender = entry.contender
    return Measurement(
        model=contender.model,
        family=contender.family,
        head=contender.head,
        form=contender.form,
        task=entry.task,
        runtime=entry.runtime,
        dtype=entry.dtype,
        height=contender.input_size[1],
        width=contender.input_size[2],
        batch_size=entry.batch_size,
        params=count_params(contender.module),
        macs=macs,
        images_per_second=speed,
        p50_ms=1e3 * median,
        p99_ms=1e3 * float(np.percentile(durations, 99)),
        calls=len(durations),
        gemm_efficiency=gemm_efficiency(macs, speed, gemm.best),
        matmul_efficiency=gemm_efficiency(macs, speed, gemm.matmul),
        fused_roofline=runners.fused_bound(entry, gemm_flops=gemm.best, bandwidth=bandwidth) / median,
        peak_mib=made.peak_memory() / _MIB if made.peak_memory else None,
        gemm_gflops=round(gemm.best / 1e9, 1),
        gemm_library=gemm.library,
        matmul_gflops=round(gemm.matmul / 1e9, 1),
        copy_gbytes=round(bandwidth / 1e9, 1),
        paper_top1=contender.paper_top1,
    )


def bench_table(result: Benchmark) -> Table:
    """Measurements, with machine and matrix products above; what all rows share stands there too."""
    rows = result.measurements
    texts = {
        "model": [row.model for row in rows],
        "head": [row.head for row in rows],
        "form": [row.form for row in rows],
        "task": [row.task for row in rows],
        "runtime": [row.runtime for row in rows],
        "dtype": [row.dtype for row in rows],
        "image": [f"{row.height}x{row.width}" for row in rows],
        "batch": [str(row.batch_size) for row in rows],
    }
    if set(texts["head"]) == {"classifier"}:
        del texts["head"]
    shared = {name: values[0] for name, values in texts.items() if len(set(values)) == 1 and name != "model"}
    rates = "; ".join(f"{dtype} {rate}" for dtype, rate in result.gemm.items())
    title = f"{result.machine}\nGEMM {rates}, copy {rows[0].copy_gbytes:.1f} GB/s"
    if shared:
        title += "\nall rows: " + ", ".join(f"{name} {value}" for name, value in shared.items())
    table = Table(title=title, title_justify="left")
    shown = [name for name in texts if name not in shared]
    for name in shown:
        table.add_column(name, justify="right" if name in ("image", "batch") else "left")
    for heading in (
        "params",
        "MACs",
        "images/s",
        "p50 ms",
        "p99 ms",
        "GEMM eff. %",
        "of matmul %",
        "fused %",
        "peak MiB",
    ):
        table.add_column(heading, justify="right")
    for index, row in enumerate(rows):
        numbers = (
            count_text(row.params),
            count_text(row.macs),
            f"{row.images_per_second:.1f}",
            f"{row.p50_ms:.2f}",
            f"{row.p99_ms:.2f}",
            f"{100 * row.gemm_efficiency:.1f}",
            f"{100 * row.matmul_efficiency:.1f}",
            f"{100 * row.fused_roofline:.1f}",
            "" if row.peak_mib is None else f"{row.peak_mib:.1f}",
        )
        # as Text, since a name of a file may look like rich's markup
        table.add_row(*(Text(texts[name][index]) for name in shown), *numbers)
    return table


def write_csv(result: Benchmark, path: Path) -> None:
    """One row per measurement, each with the machine's columns."""
    machine = dataclasses.asdict(result.machine)
    write_rows([{**dataclasses.asdict(measurement), **machine} for measurement in result.measurements], path)


def write_rows(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Rows of equal columns as CSV, with a head."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
