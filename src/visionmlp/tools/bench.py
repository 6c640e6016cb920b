"""Speed and size of models: all contenders take turns, the matrix products that they are rated by included."""

import csv
import dataclasses
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from visionmlp.errors import InvalidConfig
from visionmlp.layers.fusible import is_training_form, reparameterize
from visionmlp.models.backbone import Backbone
from visionmlp.models.checkpoint import load_model
from visionmlp.tools.catalog import count_macs, count_params, count_text
from visionmlp.tools.timing import Machine, check_seconds, describe_machine, interleave, open_device, peak_memory

Form = Literal["training", "deploy"]
Runtime = Literal["eager", "compile"]

TIMM_MODELS = {
    "resmlp_s12": "resmlp_12_224",
    "resmlp_s24": "resmlp_24_224",
    "resmlp_s36": "resmlp_36_224",
    "resmlp_b24": "resmlp_big_24_224",
    **{f"mlpmixer_{size}": f"mixer_{size}_224" for size in ("s32", "s16", "b32", "b16", "l32", "l16")},
}
"""timm's model of the same architecture."""

GEMM_SIDES = (1024, 2048, 4096)
"""Sides of the square matrices whose product sets the GEMM rate; the best of them counts."""

_MIB = 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """One contender at one batch size."""

    model: str
    form: str
    """training, deploy, or timm for timm's model."""
    runtime: str
    dtype: str
    batch_size: int
    params: int
    macs: int
    """Multiply-accumulates of one image in this form."""
    images_per_second: float
    """From the median latency."""
    p50_ms: float
    p99_ms: float
    calls: int
    """Timed calls behind the percentiles."""
    gemm_efficiency: float
    """2 x MACs x images per second over the GEMM rate; 1 would be a model that is one large matrix product."""
    peak_mib: float
    """Weights, images and the largest sum of tensors alive in one call."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A finished run."""

    machine: Machine
    measurements: list[Measurement]


def gemm_efficiency(macs: int, images_per_second: float, gemm_flops: float) -> float:
    """Share of the matrix-product rate (operations per second) that a model turns into its own multiply-accumulates."""
    return 2 * macs * images_per_second / gemm_flops


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Contender:
    model: str
    form: str
    runtime: Runtime
    module: nn.Module
    """As built: counted."""
    run: nn.Module
    """As called: perhaps compiled."""
    input_size: tuple[int, int, int]


def bench(
    models: Sequence[str],
    *,
    batch_sizes: Sequence[int],
    dtype: Literal["float32", "bfloat16"] = "float32",
    forms: Sequence[Form] = ("training", "deploy"),
    runtimes: Sequence[Runtime] = ("eager",),
    compare: Literal["none", "timm"] = "none",
    seconds: float = 2.0,
    threads: int | None = None,
    device: str = "cpu",
    channels_last: bool = False,
    gemm_sides: Sequence[int] = GEMM_SIDES,
) -> Benchmark:
    """Measure models under ``torch.inference_mode``, all contenders and the matrix products taking turns.

    Args:
        models: names, run folders or checkpoint files.
        batch_sizes: images per call.
        dtype: of weights and images, whatever a checkpoint holds.
        forms: which forms of each model; a deploy checkpoint has no training form.
        runtimes: plain PyTorch or ``torch.compile`` (default mode, fixed shapes).
        compare: also timm's model, where timm has the architecture.
        seconds: time for each contender.
        threads: CPU threads.
        device: where to run.
        channels_last: memory format of images and convolution kernels.
        gemm_sides: see `GEMM_SIDES`.

    Raises:
        InvalidConfig: if there is nothing to measure, or an option cannot work.
        VisionMLPError: if a model cannot be loaded.
    """
    if min(batch_sizes, default=0) < 1:
        raise InvalidConfig("batch-size needs one or more numbers, each at least 1")
    check_seconds(seconds)
    if threads is not None and threads < 1:
        raise InvalidConfig(f"threads must be at least 1, got {threads}")
    place, kind = open_device(device), getattr(torch, dtype)
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads or threads_before)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    try:
        contenders = [
            contender
            for reference in models
            for contender in _contenders(reference, forms, runtimes, compare, place, kind, memory_format)
        ]
        if not contenders:
            raise InvalidConfig("nothing to measure: none of the models has one of the forms, or timm's twin")
        images = {
            (size, batch): torch.randn(batch, *size, device=place, dtype=kind).to(memory_format=memory_format)
            for size in {contender.input_size for contender in contenders}
            for batch in batch_sizes
        }
        calls: dict[Any, Callable[[], object]] = {
            (index, batch): _synchronised(contender.run, images[contender.input_size, batch])
            for index, contender in enumerate(contenders)
            for batch in batch_sizes
        }
        for side in gemm_sides:
            a, b = (torch.randn(side, side, device=place, dtype=kind) for _ in range(2))
            calls["gemm", side] = _synchronised(a.matmul, b)
        with torch.inference_mode():
            durations = interleave(calls, seconds=seconds)
        gemm_flops = max(2 * side**3 / statistics.median(durations["gemm", side]) for side in gemm_sides)
        measurements = [
            _measurement(contender, batch, durations[index, batch], images[contender.input_size, batch], gemm_flops)
            for batch in batch_sizes
            for index, contender in enumerate(contenders)
        ]
        return Benchmark(machine=describe_machine(place, gemm_flops), measurements=measurements)
    finally:
        torch.set_num_threads(threads_before)


def _contenders(
    reference: str,
    forms: Sequence[Form],
    runtimes: Sequence[Runtime],
    compare: str,
    device: torch.device,
    dtype: torch.dtype,
    memory_format: torch.memory_format,
) -> list[_Contender]:
    model, info = load_model(reference)
    input_size = (model.config.in_chans, *model.config.img_size)
    modules: dict[str, nn.Module] = {}
    if "training" in forms and is_training_form(model):
        modules["training"] = model
    if "deploy" in forms:
        modules["deploy"] = reparameterize(model)
    if compare == "timm" and model.name in TIMM_MODELS:
        modules["timm"] = _timm_twin(model)
    for module in modules.values():
        module.to(device, dtype).to(memory_format=memory_format).eval()
    label = info.model if info.model == reference else f"{info.model} ({reference})"
    return [
        _Contender(
            model=TIMM_MODELS[model.name] if form == "timm" else label,
            form=form,
            runtime=runtime,
            module=module,
            run=_compiled(module) if runtime == "compile" else module,
            input_size=input_size,
        )
        for form, module in modules.items()
        for runtime in runtimes
    ]


def _timm_twin(model: Backbone) -> nn.Module:
    import timm

    return timm.create_model(
        TIMM_MODELS[model.name],
        num_classes=model.num_classes,
        in_chans=model.config.in_chans,
        img_size=model.config.img_size,
    )


def _compiled(module: nn.Module) -> nn.Module:
    # all models share the code of Backbone.forward; past the limit a graph would silently run uncompiled,
    # which fullgraph turns into an error
    torch._dynamo.config.recompile_limit = 256
    compiled = torch.compile(module, dynamic=False, fullgraph=True)
    assert isinstance(compiled, nn.Module)
    return compiled


def _synchronised(run: Callable[[Tensor], Any], argument: Tensor) -> Callable[[], object]:
    """One call, finished when it returns."""
    if argument.device.type != "cuda":
        return lambda: run(argument)

    def call() -> None:
        run(argument)
        torch.cuda.synchronize(argument.device)

    return call


def _measurement(
    contender: _Contender, batch: int, durations: Sequence[float], images: Tensor, gemm_flops: float
) -> Measurement:
    macs = count_macs(contender.module, contender.input_size)
    median = statistics.median(durations)
    return Measurement(
        model=contender.model,
        form=contender.form,
        runtime=contender.runtime,
        dtype=str(images.dtype).removeprefix("torch."),
        batch_size=batch,
        params=count_params(contender.module),
        macs=macs,
        images_per_second=batch / median,
        p50_ms=1e3 * median,
        p99_ms=1e3 * float(np.percentile(durations, 99)),
        calls=len(durations),
        gemm_efficiency=gemm_efficiency(macs, batch / median, gemm_flops),
        peak_mib=peak_memory(contender.run, images) / _MIB,
    )


def bench_table(result: Benchmark) -> Table:
    """Measurements, with the machine above."""
    machine = result.machine
    place = machine.cpu if machine.device == "cpu" else f"{machine.device}, {machine.cpu}"
    title = (
        f"{place}, {machine.threads} threads, torch {machine.torch}, {machine.date}, GEMM {machine.gemm_gflops} GFLOP/s"
    )
    table = Table(title=title, title_justify="left")
    for heading in ("model", "form", "runtime", "dtype"):
        table.add_column(heading)
    for heading in ("batch", "params", "MACs", "images/s", "p50 ms", "p99 ms", "GEMM eff. %", "peak MiB"):
        table.add_column(heading, justify="right")
    for m in result.measurements:
        numbers = (
            count_text(m.params),
            count_text(m.macs),
            f"{m.images_per_second:.1f}",
            f"{m.p50_ms:.2f}",
            f"{m.p99_ms:.2f}",
            f"{100 * m.gemm_efficiency:.1f}",
            f"{m.peak_mib:.1f}",
        )
        # as Text, since a name of a file may look like rich's markup
        table.add_row(Text(m.model), m.form, m.runtime, m.dtype, str(m.batch_size), *numbers)
    return table


def write_csv(result: Benchmark, path: Path) -> None:
    """One row per measurement, each with the machine's columns."""
    machine = dataclasses.asdict(result.machine)
    rows = [{**dataclasses.asdict(measurement), **machine} for measurement in result.measurements]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
