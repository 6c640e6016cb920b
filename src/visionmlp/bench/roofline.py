"""Where the time of a model goes, layer by layer, against what the machine allows (the roofline)."""

import dataclasses
import re
import statistics
from collections.abc import Sequence

import torch

from visionmlp.bench.bench import check_options, using_threads
from visionmlp.bench.contenders import Comparison, Form, Head, gather
from visionmlp.bench.precision import Dtype, computing_in, torch_dtype
from visionmlp.bench.runners import Entry, Runners, check_runtimes
from visionmlp.bench.watch import Kind, Operation, Run, operations
from visionmlp.measure.gemm import (
    GemmRate,
    copy_call,
    copy_size,
    fused_bound,
    gemm_calls,
    gemm_rate,
    synchronised,
)
from visionmlp.measure.timing import Machine, describe_machine, interleave, open_device


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerTime:
    """All calls of one operation by one module."""

    layer: str
    """Path of the innermost module that runs; empty for the model itself."""
    operation: str
    kind: Kind
    calls: int
    seconds: float
    """Sum of the medians of each call."""
    macs: int
    """Multiply-accumulates of the whole batch."""
    bytes: int
    """Least that must move: inputs and weights read once, outputs written once."""
    bound: float
    """Seconds at the roofline, the sum over the calls of max(2 x MACs / GEMM rate, bytes / bandwidth)."""
    fused_bound: float
    """The same with perfect fusion, see `visionmlp.measure.gemm.fused_bound`."""

    @property
    def group(self) -> str:
        """The layer's path, equal for all blocks of a stage."""
        return re.sub(r"\b(blocks|layers|block)\.\d+", r"\1.*", self.layer) or "model"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Profile:
    """Where the time of one model goes."""

    machine: Machine
    model: str
    form: str
    dtype: str
    height: int
    width: int
    batch_size: int
    gemm: GemmRate
    bandwidth: float
    """Bytes per second of a large copy, read and written ones together."""
    plain_seconds: float
    """Median of one call that nobody watches."""
    outside: float
    """Seconds between operations: Python, modules, freeing memory.

    The smaller of two upper bounds: what passes between them while they are watched, which includes the watching; and
    the call alone less all operations, which has the noise of two measurements.
    """
    layers: list[LayerTime]

    @property
    def seconds(self) -> float:
        """The parts of one call together."""
        return self.outside + sum(layer.seconds for layer in self.layers)

    @property
    def bound(self) -> float:
        """Seconds that remain if every operation runs at its roofline and nothing runs between them."""
        return sum(layer.bound for layer in self.layers)

    @property
    def fused_bound(self) -> float:
        """Seconds that remain with perfect fusion in every layer."""
        return sum(layer.fused_bound for layer in self.layers)


def profile_models(
    models: Sequence[str],
    *,
    batch_sizes: Sequence[int],
    input_sizes: Sequence[int] = (),
    dtypes: Sequence[Dtype] = ("float32",),
    forms: Sequence[Form] = ("training", "deploy"),
    heads: Sequence[Head] = ("classifier",),
    compare: Sequence[Comparison] = (),
    seconds: float = 2.0,
    threads: int | None = None,
    device: str = "cpu",
    channels_last: bool = False,
    gemm_sides: Sequence[int] = (),
    copy_bytes: int | None = None,
) -> list[Profile]:
    """A profile of each model, form, dtype, image and batch size, in eager mode.

    The plain call, the watched call, the matrix products and the copy take turns.

    Args:
        models: names, run folders or checkpoint files.
        batch_sizes: images per call.
        input_sizes: heights and widths; none is each model's own.
        dtypes: any but int8, see `visionmlp.bench.precision.Dtype`.
        forms: which forms of each model.
        heads: on each backbone, see `visionmlp.bench.contenders.Head`.
        compare: see `visionmlp.bench.bench.bench`.
        seconds: time for each of the calls that take turns.
        threads: CPU threads.
        device: where to run.
        channels_last: memory format of images and convolution kernels.
        gemm_sides: of the matrices whose products are the GEMM rate; none is `visionmlp.measure.gemm.GEMM_SIDES`.
        copy_bytes: size of the copy whose rate is the bandwidth; none is `visionmlp.measure.gemm.COPY_BYTES`.

    Raises:
        InvalidConfig: if there is nothing to measure, or an option cannot work.
        VisionMLPError: if a model cannot be loaded, or cannot take an image size.
    """
    check_options(batch_sizes, input_sizes, seconds, threads)
    place = open_device(device)
    check_runtimes(("eager",), dtypes, place)
    contenders, refused = gather(models, forms=forms, sides=input_sizes or (None,), compare=compare, heads=heads)
    for error in refused.values():
        raise error
    with using_threads(threads):
        runners = Runners(
            place, torch.channels_last if channels_last else torch.contiguous_format, torch.get_num_threads()
        )
        return [
            _profile(
                Entry(contender=contender, task="inference", runtime="eager", dtype=dtype, batch_size=batch_size),
                runners,
                seconds=seconds,
                gemm_sides=gemm_sides,
                copy_bytes=copy_bytes,
            )
            for batch_size in batch_sizes
            for contender in contenders
            for dtype in dtypes
        ]


def _profile(
    entry: Entry, runners: Runners, *, seconds: float, gemm_sides: Sequence[int], copy_bytes: int | None
) -> Profile:
    module, images = runners.module(entry), runners.images(entry)
    device = images.device
    copy_bytes = copy_bytes or copy_size(device)
    products = gemm_calls(torch_dtype(entry.dtype), device, gemm_sides)
    runs: list[Run] = []
    with computing_in(entry.dtype, device):
        known = operations(module, images).operations
        durations = interleave(
            {
                "plain": synchronised(torch.inference_mode()(lambda: module(images)), device),
                "watched": lambda: runs.append(operations(module, images, known=known)),
                "copy": copy_call(device, copy_bytes),
                **products,
            },
            seconds=seconds,
        )
    gemm = gemm_rate({key: durations[key] for key in products})
    bandwidth = 2 * copy_bytes / statistics.median(durations["copy"])
    plain = statistics.median(durations["plain"])
    layers = layer_times([run.operations for run in runs], gemm_flops=gemm.best, bandwidth=bandwidth)
    between = (
        statistics.median(run.outside for run in runs),
        max(0.0, plain - sum(layer.seconds for layer in layers)),
    )
    contender = entry.contender
    return Profile(
        machine=describe_machine(device),
        model=contender.model if contender.head == "classifier" else f"{contender.model} {contender.head}",
        form=contender.form,
        dtype=entry.dtype,
        height=contender.input_size[1],
        width=contender.input_size[2],
        batch_size=entry.batch_size,
        gemm=gemm,
        bandwidth=bandwidth,
        plain_seconds=plain,
        outside=min(between),
        layers=layers,
    )


def layer_times(runs: Sequence[Sequence[Operation]], *, gemm_flops: float, bandwidth: float) -> list[LayerTime]:
    """Rows from repeated runs of the same operations: medians over the runs, summed by module and operation.

    Args:
        runs: what `operations` gives; all runs have the same operations.
        gemm_flops: operations per second at the roofline.
        bandwidth: bytes per second at the roofline.
    """
    groups: dict[tuple[str, str, Kind], list[tuple[float, Operation]]] = {}
    for same in zip(*runs, strict=True):
        first = same[0]
        took = statistics.median(operation.seconds for operation in same)
        groups.setdefault((first.layer, first.name, first.kind), []).append((took, first))
    return [
        LayerTime(
            layer=layer,
            operation=name,
            kind=kind,
            calls=len(calls),
            seconds=sum(took for took, _ in calls),
            macs=sum(call.macs for _, call in calls),
            bytes=sum(call.bytes for _, call in calls),
            bound=sum(max(2 * call.macs / gemm_flops, call.bytes / bandwidth) for _, call in calls),
            fused_bound=sum(
                fused_bound(call.macs, call.weight_bytes, gemm_flops=gemm_flops, bandwidth=bandwidth)
                for _, call in calls
            ),
        )
        for (layer, name, kind), calls in groups.items()
    ]
