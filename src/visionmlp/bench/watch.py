"""One call of a model, watched: every operation, its time, its multiply-accumulates and the bytes that it must move.

Every call into PyTorch's Python interface is timed on its own, by a mode that sees calls and changes none: deploy forms
take the same paths as without it, which a profiler built on dispatch modes would not let them.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

from visionmlp.ops.eager import passive

Kind = Literal["product", "norm", "elementwise", "movement", "view"]

_NORMS = ("layer_norm", "batch_norm", "group_norm", "instance_norm", "rms_norm", "var_mean", "std_mean")
_MOVEMENT = (
    *("contiguous", "clone", "copy_", "cat", "concat", "concatenate", "stack", "pad", "roll", "flip", "repeat"),
    *("repeat_interleave", "reshape", "flatten", "unflatten", "to", "float", "half", "bfloat16", "type", "type_as"),
    *("index_select", "index_copy_", "gather", "scatter", "scatter_", "take_along_dim", "__getitem__", "__setitem__"),
    *("unfold", "fold", "pixel_shuffle", "pixel_unshuffle", "fill_", "zero_", "zeros", "ones", "full"),
)
_ALLOCATIONS = ("empty", "empty_like", "empty_strided", "new_empty")
_ONEDNN_LINEAR = "mkldnn._linear_pointwise"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operation:
    """One call into PyTorch."""

    layer: str
    name: str
    kind: Kind
    macs: int
    bytes: int
    weight_bytes: int
    """Of a product's inputs that are the model's own."""
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One watched call of a model."""

    operations: list[Operation]
    """In order."""
    outside: float
    """Seconds between them."""


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


class _Watch(TorchFunctionMode):
    """Times every call that takes or gives tensors, and knows the module that makes it."""

    def __init__(self, module: nn.Module, device: torch.device, known: Sequence[Operation] | None) -> None:
        super().__init__()
        self.parts = {part: name for name, part in module.named_modules()}
        self.device, self.known = device, known
        self.weights = {_place(tensor) for tensor in (*module.parameters(), *module.buffers())}
        self.path = [""]
        self.hooks: list[Any] = []
        self.seen: list[Operation] = []
        self.times: list[Callable[[], float]] = []
        self.began = self.took = self.noting = 0.0

    def __enter__(self) -> "_Watch":
        for part in self.parts:
            enter = passive(lambda part, _: self.path.append(self.parts[part]))
            leave = passive(lambda *_: self._leave())
            self.hooks.append(part.register_forward_pre_hook(enter))
            self.hooks.append(part.register_forward_hook(leave, always_call=True))
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
                own = [tensor for tensor in _tensors((args, kwargs)) if _place(tensor) in self.weights]
                weight_bytes = sum(map(_extent, own)) if macs else 0
                self.seen.append(
                    Operation(
                        layer=self.path[-1],
                        name=name,
                        kind=kind,
                        macs=macs,
                        bytes=moved,
                        weight_bytes=weight_bytes,
                    )
                )
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


def _place(tensor: Tensor) -> int:
    """Equal for a tensor and its views."""
    return id(tensor) if tensor.is_mkldnn else tensor.untyped_storage().data_ptr()


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
