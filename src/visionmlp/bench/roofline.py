"""Where the time of a model goes, layer by layer, against what the machine allows (the roofline).

Every call into PyTorch's Python interface is timed on its own, by a mode that sees calls and changes none: deploy forms
take the same paths as without it, which a profiler built on dispatch modes would not let them.
"""

import dataclasses
import re
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

from visionmlp.bench.bench import check_options, using_threads, write_rows
from visionmlp.bench.contenders import Comparison, Form, gather
from visionmlp.bench.runners import Dtype, Entry, Runners
from visionmlp.measure.catalog import count_text
from visionmlp.measure.gemm import COPY_BYTES, GEMM_SIDES, GemmRate, copy_call, gemm_calls, gemm_rate, synchronised
from visionmlp.measure.timing import Machine, describe_machine, interleave, open_device

Kind = Literal["product", "norm", "elementwise", "movement", "view"]

KINDS: dict[Kind, str] = {
    "product": "matrix products and convolutions",
    "norm": "norms",
    "elementwise": "elementwise work and reductions",
    "movement": "copies",
    "view": "views and allocations",
}
"""What each kind is called in a summary."""

_NORMS = ("layer_norm", "batch_norm", "group_norm", "instance_norm", "rms_norm", "var_mean", "std_mean")
_MOVEMENT = (
    *("contiguous", "clone", "copy_", "cat", "concat", "concatenate", "stack", "pad", "roll", "flip", "repeat"),
    *("repeat_interleave", "reshape", "flatten", "unflatten", "to", "float", "half", "bfloat16", "type", "type_as"),
    *("index_select", "index_copy_", "gather", "scatter", "scatter_", "take_along_dim", "__getitem__", "__setitem__"),
    *("unfold", "fold", "pixel_shuffle", "pixel_unshuffle", "fill_", "zero_", "zeros", "ones", "full"),
)
_ALLOCATIONS = ("empty", "empty_like", "empty_strided", "new_empty")
_ONEDNN_LINEAR = "mkldnn._linear_pointwise"
_SHOWN_SHARE = 0.01
"""Rows of less time than this share are summed up in the table."""


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operation:
    """One call into PyTorch."""

    layer: str
    name: str
    kind: Kind
    macs: int
    bytes: int
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One watched call of a model."""

    operations: list[Operation]
    """In order."""
    outside: float
    """Seconds between them."""


def profile_models(
    models: Sequence[str],
    *,
    batch_sizes: Sequence[int],
    input_sizes: Sequence[int] = (),
    dtypes: Sequence[Dtype] = ("float32",),
    forms: Sequence[Form] = ("training", "deploy"),
    compare: Sequence[Comparison] = (),
    seconds: float = 2.0,
    threads: int | None = None,
    device: str = "cpu",
    channels_last: bool = False,
    gemm_sides: Sequence[int] = GEMM_SIDES,
    copy_bytes: int = COPY_BYTES,
) -> list[Profile]:
    """A profile of each model, form, dtype, image and batch size, in eager mode.

    The plain call, the watched call, the matrix products and the copy take turns.

    Args:
        models: names, run folders or checkpoint files.
        batch_sizes: images per call.
        input_sizes: heights and widths; none is each model's own.
        dtypes: float32 or bfloat16.
        forms: which forms of each model.
        compare: see `visionmlp.bench.bench.bench`.
        seconds: time for each of the calls that take turns.
        threads: CPU threads.
        device: where to run.
        channels_last: memory format of images and convolution kernels.
        gemm_sides: see `visionmlp.measure.gemm.GEMM_SIDES`.
        copy_bytes: size of the copy whose rate is the bandwidth.

    Raises:
        InvalidConfig: if there is nothing to measure, or an option cannot work.
        VisionMLPError: if a model cannot be loaded, or cannot take an image size.
    """
    check_options(batch_sizes, input_sizes, seconds, threads)
    place = open_device(device)
    contenders, refused = gather(models, forms=forms, sides=input_sizes or (None,), compare=compare)
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


def _profile(entry: Entry, runners: Runners, *, seconds: float, gemm_sides: Sequence[int], copy_bytes: int) -> Profile:
    module, images = runners.module(entry), runners.images(entry)
    device = images.device
    products = gemm_calls(images.dtype, device, gemm_sides)
    known = operations(module, images).operations
    runs: list[Run] = []
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
        model=contender.model,
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


def operations(module: nn.Module, images: Tensor, *, known: Sequence[Operation] | None = None) -> Run:
    """Watch one inference.

    Args:
        module: in evaluation mode.
        images: (B, C, H, W).
        known: the operations of an earlier run, which need not be counted again.
    """
    watch = _Watch(module, images.device, known)
    with torch.inference_mode(), watch:
        module(images)
    return watch.run()


def layer_times(runs: Sequence[Sequence[Operation]], *, gemm_flops: float, bandwidth: float) -> list[LayerTime]:
    """Rows from repeated runs of the same operations: medians over the runs, summed by module and operation.

    Args:
        runs: what `operations` gives; all runs have the same operations.
        gemm_flops: operations per second at the roofline.
        bandwidth: bytes per second at the roofline.
    """
    groups: dict[tuple[str, str, Kind], list[tuple[float, int, int]]] = {}
    for same in zip(*runs, strict=True):
        first = same[0]
        took = statistics.median(operation.seconds for operation in same)
        groups.setdefault((first.layer, first.name, first.kind), []).append((took, first.macs, first.bytes))
    return [
        LayerTime(
            layer=layer,
            operation=name,
            kind=kind,
            calls=len(calls),
            seconds=sum(took for took, _, _ in calls),
            macs=sum(macs for _, macs, _ in calls),
            bytes=sum(moved for _, _, moved in calls),
            bound=sum(max(2 * macs / gemm_flops, moved / bandwidth) for _, macs, moved in calls),
        )
        for (layer, name, kind), calls in groups.items()
    ]


class _Watch(TorchFunctionMode):
    """Times every call that takes or gives tensors, and knows the module that makes it."""

    def __init__(self, module: nn.Module, device: torch.device, known: Sequence[Operation] | None) -> None:
        super().__init__()
        self.parts = {part: name for name, part in module.named_modules()}
        self.device, self.known = device, known
        self.path = [""]
        self.hooks: list[Any] = []
        self.seen: list[Operation] = []
        self.times: list[Callable[[], float]] = []
        self.began = self.took = self.noting = 0.0

    def __enter__(self) -> "_Watch":
        for part in self.parts:
            self.hooks.append(part.register_forward_pre_hook(lambda part, _: self.path.append(self.parts[part])))
            self.hooks.append(part.register_forward_hook(lambda *_: self._leave(), always_call=True))
        super().__enter__()
        self.began = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self.took = time.perf_counter() - self.began
        super().__exit__(*error)
        for hook in self.hooks:
            hook.remove()

    def _leave(self) -> None:
        self.path.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        stop = _event_watch() if self.device.type == "cuda" else _stopwatch()
        result = func(*args, **kwargs)
        time_of_call = stop()
        begin = time.perf_counter()
        name = _name(func)
        if isinstance(result, Tensor) or name == "__setitem__" or _tensors(result):
            self.times.append(time_of_call)
            if self.known is None:
                moved = least_bytes(name, args, kwargs, result)
                macs = _count_macs(func, name, args, kwargs) if moved else 0
                kind = _kind(name, macs, moved)
                self.seen.append(Operation(layer=self.path[-1], name=name, kind=kind, macs=macs, bytes=moved))
        self.noting += time.perf_counter() - begin
        return result

    def run(self) -> Run:
        """What was seen, once all of it is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        times = [time_of_call() for time_of_call in self.times]
        known = self.seen if self.known is None else self.known
        return Run(
            operations=[dataclasses.replace(op, seconds=took) for op, took in zip(known, times, strict=True)],
            outside=max(0.0, self.took - self.noting - sum(times)),
        )


def _stopwatch() -> Callable[[], Callable[[], float]]:
    """Starts now; the first call stops it, the second gives the seconds."""
    begin = time.perf_counter()

    def stop() -> Callable[[], float]:
        took = time.perf_counter() - begin
        return lambda: took

    return stop


def _event_watch() -> Callable[[], Callable[[], float]]:
    """The same for the work of a CUDA stream; the seconds are known after a synchronisation."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()

    def stop() -> Callable[[], float]:
        end.record()
        return lambda: start.elapsed_time(end) / 1e3

    return stop


def _name(func: Any) -> str:
    if isinstance(func, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return str(func).removesuffix(".default")
    return getattr(func, "__name__", str(func))


def _kind(name: str, macs: int, moved: int) -> Kind:
    if macs:
        return "product"
    if not moved:
        return "view"
    if name in _MOVEMENT:
        return "movement"
    return "norm" if name.removeprefix("native_") in _NORMS else "elementwise"


def least_bytes(name: str, args: Any, kwargs: Any, result: Any) -> int:
    """Bytes that a call must move at least: every input read once, every output written once; none for a view."""
    target = kwargs.get("out")
    inputs = _tensors((args, {key: value for key, value in kwargs.items() if key != "out"}))
    if name in _ALLOCATIONS:
        return 0
    if name == "__setitem__":
        value = args[2]
        return 2 * _extent(value) if isinstance(value, Tensor) else _extent(args[0][args[1]])
    in_place = target is not None or name.startswith("__i") or (name.endswith("_") and not name.endswith("__"))
    outputs = _tensors(result)
    if not in_place:
        storages = {tensor.untyped_storage().data_ptr() for tensor in inputs}
        outputs = [tensor for tensor in outputs if tensor.untyped_storage().data_ptr() not in storages]
        if not outputs:
            return 0
    if name in ("copy_", "fill_", "zero_"):  # the target is written, not read
        inputs = inputs[1:]
    if name == "__getitem__":  # reads what it takes
        inputs = outputs
    return sum(map(_extent, inputs)) + sum(map(_extent, outputs))


def _tensors(tree: Any) -> list[Tensor]:
    """Each tensor once."""
    return list({id(leaf): leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)}.values())


def _extent(tensor: Tensor) -> int:
    """Bytes of the distinct elements: an expanded dimension counts once."""
    if tensor.is_mkldnn or tensor.layout != torch.strided:
        return tensor.numel() * tensor.element_size()
    sizes = [size if stride else min(size, 1) for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]
    return int(torch.Size(sizes).numel()) * tensor.element_size()


def _count_macs(func: Any, name: str, args: Any, kwargs: Any) -> int:
    """By PyTorch's own rules, on tensors without memory."""
    if name.startswith(_ONEDNN_LINEAR):
        # x, weight, ... or, with something to add, x, other, weight, ...
        weight = args[2] if name.endswith(".binary") else args[1]
        return args[0].numel() * weight.shape[0]
    bare = [tree_map(_without_memory, tree) for tree in (args, kwargs)]
    try:
        with FlopCounterMode(display=False) as counter:
            func(*bare[0], **bare[1])
    except (NotImplementedError, RuntimeError):  # reads values, so it is no product
        return 0
    return counter.get_total_flops() // 2


def _without_memory(leaf: Any) -> Any:
    return torch.empty_like(leaf, device="meta") if isinstance(leaf, Tensor) else leaf


def profile_tables(profile: Profile) -> Group:
    """The layers, grouped so that they fit one screen, and below them the sums by kind."""
    return Group(_layer_table(profile), _summary_table(profile))


def _layer_table(profile: Profile) -> Table:
    title = (
        f"{profile.model}, {profile.form} form, {profile.dtype}, {profile.height}x{profile.width}, "
        f"batch {profile.batch_size}, eager\n{profile.machine}\n"
        f"GEMM {profile.gemm}, copy {profile.bandwidth / 1e9:.1f} GB/s"
    )
    table = Table(title=title, title_justify="left")
    for heading in ("layer", "kind", "operations"):
        table.add_column(heading)
    for heading in ("calls", "ms", "share %", "MACs", "GFLOP/s", "MB", "roofline ms", "times over"):
        table.add_column(heading, justify="right")
    groups: dict[tuple[str, Kind], list[LayerTime]] = {}
    for layer in profile.layers:
        groups.setdefault((layer.group, layer.kind), []).append(layer)
    large = {
        key: rows for key, rows in groups.items() if sum(row.seconds for row in rows) >= _SHOWN_SHARE * profile.seconds
    }
    for (group, kind), rows in large.items():
        names = ", ".join(dict.fromkeys(row.operation for row in rows))
        table.add_row(Text(group), kind, Text(names, overflow="ellipsis"), *_numbers(rows, profile))
    rest = [row for key, rows in groups.items() if key not in large for row in rows]
    if rest:
        table.add_row(f"{len(groups) - len(large)} others", "", "", *_numbers(rest, profile))
    return table


def _numbers(rows: Sequence[LayerTime], profile: Profile) -> tuple[str, ...]:
    took, macs, bound = sum(r.seconds for r in rows), sum(r.macs for r in rows), sum(r.bound for r in rows)
    return (
        str(sum(row.calls for row in rows)),
        f"{1e3 * took:.2f}",
        f"{100 * took / profile.seconds:.1f}",
        count_text(macs) if macs else "",
        f"{2 * macs / took / 1e9:.0f}" if macs else "",
        f"{sum(row.bytes for row in rows) / 1e6:.1f}",
        f"{1e3 * bound:.2f}",
        _times(took, bound),
    )


def _summary_table(profile: Profile) -> Table:
    table = Table()
    table.add_column("where the time goes")
    for heading in ("ms", "share %", "roofline ms", "times over"):
        table.add_column(heading, justify="right")
    for kind, words in KINDS.items():
        rows = [row for row in profile.layers if row.kind == kind]
        _add_sum(table, words, sum(row.seconds for row in rows), sum(row.bound for row in rows), profile.seconds)
    _add_sum(table, "between operations: Python, modules, freeing memory", profile.outside, 0.0, profile.seconds)
    table.add_section()
    _add_sum(table, "all of it", profile.seconds, profile.bound, profile.seconds)
    _add_sum(table, "one call that nobody watches", profile.plain_seconds, profile.bound, profile.seconds)
    return table


def _add_sum(table: Table, words: str, took: float, bound: float, whole: float) -> None:
    table.add_row(words, f"{1e3 * took:.2f}", f"{100 * took / whole:.1f}", f"{1e3 * bound:.2f}", _times(took, bound))


def _times(took: float, bound: float) -> str:
    return f"{took / bound:.2f}" if bound else ""


def write_profiles(profiles: Iterable[Profile], path: Path) -> None:
    """One row for each module and operation, with the machine's columns."""
    rows = []
    for profile in profiles:
        about = {
            "model": profile.model,
            "form": profile.form,
            "dtype": profile.dtype,
            "height": profile.height,
            "width": profile.width,
            "batch_size": profile.batch_size,
            "call_seconds": profile.plain_seconds,
        }
        rates = {
            "gemm_gflops": round(profile.gemm.best / 1e9, 1),
            "gemm_library": profile.gemm.library,
            "copy_gbytes": round(profile.bandwidth / 1e9, 1),
        }
        rows += [
            {**about, **dataclasses.asdict(layer), **rates, **dataclasses.asdict(profile.machine)}
            for layer in profile.layers
        ]
    write_rows(rows, path)
