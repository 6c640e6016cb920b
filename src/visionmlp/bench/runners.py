"""Contenders made ready to run: one call for each runtime, dtype and task."""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch._inductor.config
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from visionmlp.bench.contenders import Contender
from visionmlp.bench.precision import Dtype, computing_in, in_precision, torch_dtype
from visionmlp.bench.watch import Operation, operations
from visionmlp.deploy.aotinductor import check_compiler
from visionmlp.deploy.division import part_of
from visionmlp.deploy.graphs import export_program, openvino_model
from visionmlp.deploy.in_openvino import openvino_call
from visionmlp.deploy.quantize import MINIMUM_IMAGES, quantize_openvino
from visionmlp.deploy.runtimes import session_of
from visionmlp.errors import InvalidConfig, require
from visionmlp.layers.packing import prepack
from visionmlp.measure.catalog import count_macs
from visionmlp.measure.gemm import fused_bound, synchronised
from visionmlp.measure.timing import TrainingStep, peak_memory

Runtime = Literal[
    "eager", "packed", "compile", "cuda-graphs", "compile-cuda-graphs", "onnxruntime", "openvino", "aotinductor"
]
Task = Literal["inference", "training step"]

CUDA_RUNTIMES: tuple[Runtime, ...] = ("cuda-graphs", "compile-cuda-graphs")
CUDA_DTYPES: tuple[Dtype, ...] = ("tf32", "float16")

EXPORTED: dict[Runtime, str | None] = {"onnxruntime": "export", "openvino": "openvino", "aotinductor": None}
"""Runtimes that take a graph, with the extra that installs each; AOTInductor comes with PyTorch."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """What one row of a benchmark measures."""

    contender: Contender
    task: Task
    runtime: Runtime
    dtype: Dtype
    batch_size: int

    def __str__(self) -> str:
        _, height, width = self.contender.input_size
        head = () if self.contender.head == "classifier" else (self.contender.head,)
        words = (self.contender.model, *head, self.contender.form, self.task, self.runtime, self.dtype)
        return f"{' '.join(words)}, {height}x{width}, batch {self.batch_size}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """An entry's call, and how to find the memory that it takes."""

    call: Callable[[], object]
    """Finished when it returns."""
    peak_memory: Callable[[], int] | None
    """Bytes, see `visionmlp.measure.timing.peak_memory`; None where PyTorch's allocator does not see them."""


def check_runtimes(runtimes: Sequence[Runtime], dtypes: Sequence[Dtype], device: torch.device) -> None:
    """Refuse what can never run here.

    Raises:
        InvalidConfig: for CUDA graphs, TF32 or float16 without CUDA, a CPU runtime on another device, int8 without
            OpenVINO, or AOTInductor without a C++ compiler.
        MissingExtra: if a runtime is not installed.
    """
    for name in (*CUDA_RUNTIMES, *CUDA_DTYPES):
        if name in (*runtimes, *dtypes) and device.type != "cuda":
            raise InvalidConfig(f"{name} needs a CUDA device, not {device}; give --device cuda on a machine with one")
    if "packed" in runtimes and device.type != "cpu":
        raise InvalidConfig("packed weights are for the CPU; give --device cpu, or leave packed out")
    for runtime, extra in EXPORTED.items():
        if runtime in runtimes:
            if device.type != "cpu":
                raise InvalidConfig(f"{runtime} runs on the CPU here; give --device cpu, or leave it out")
            if extra is None:
                check_compiler()
            else:
                require(runtime, extra=extra)
    if "int8" in dtypes:
        if "openvino" not in runtimes:
            raise InvalidConfig("int8 runs in openvino only; add --runtime openvino")
        require("nncf", extra="int8")


class Runners:
    """Builds calls; modules, compiled modules, images and counts are shared by the entries that need the same.

    Args:
        device: where to run.
        memory_format: of images and convolution kernels.
        threads: CPU threads of the exported runtimes.
    """

    def __init__(self, device: torch.device, memory_format: torch.memory_format, threads: int) -> None:
        self.device, self.memory_format, self.threads = device, memory_format, threads
        self._modules: dict[tuple[Contender, Dtype, Task], nn.Module] = {}
        self._compiled: dict[nn.Module, Callable[[Tensor], Tensor]] = {}
        self._images: dict[Any, Tensor] = {}
        self._macs: dict[tuple[nn.Module, tuple[int, int, int], Task], int] = {}
        self._operations: dict[Contender, list[Operation]] = {}

    def prepare(self, entry: Entry) -> Prepared:
        """The call of an entry. What can go wrong is up to the library that runs it."""
        with computing_in(entry.dtype, self.device):
            prepared = self._prepared(entry)
        calls = {name: getattr(prepared, name) for name in ("call", "peak_memory")}
        calls = {name: call and in_precision(call, entry.dtype, self.device) for name, call in calls.items()}
        return Prepared(**calls)

    def _prepared(self, entry: Entry) -> Prepared:
        images = self.images(entry)
        if entry.runtime in EXPORTED:
            return self._exported(entry, images)
        module = self.module(entry)
        run: Callable[[Tensor], Tensor] = module
        if entry.runtime in ("compile", "compile-cuda-graphs"):
            run = self._compile(module)
        elif entry.runtime == "packed":
            run = prepack(module)
        if entry.task == "training step":
            step = TrainingStep(module, run, images, entry.contender.classes)
            return Prepared(
                call=synchronised(step, self.device), peak_memory=lambda: peak_memory(module, images, run=step)
            )
        if entry.runtime in CUDA_RUNTIMES:
            return Prepared(call=synchronised(_captured(run, images), self.device), peak_memory=None)
        call = torch.inference_mode()(lambda: run(images))
        if entry.runtime == "compile" and self.device.type == "cpu":
            # weights as constants, which compile packs and folds; it asks for this when it meets a shape, and the
            # option of the same name that torch.compile takes does nothing
            with torch._inductor.config.patch(freezing=True):
                call()
        return Prepared(call=synchronised(call, self.device), peak_memory=lambda: peak_memory(module, images, run=call))

    def module(self, entry: Entry) -> nn.Module:
        """The module behind an entry in its dtype (float32 for int8), on the device."""
        # compiled for one kind of products only, so those of TF32 are modules of their own
        dtype: Dtype = "float32" if entry.dtype == "int8" else entry.dtype
        key = entry.contender, dtype, entry.task
        if key not in self._modules:
            module = copy.deepcopy(entry.contender.module).to(self.device, torch_dtype(dtype))
            module = module.to(memory_format=self.memory_format)  # type: ignore[call-overload]
            self._modules[key] = module.train(entry.task == "training step")
        return self._modules[key]

    def images(self, entry: Entry) -> Tensor:
        """Random images of an entry."""
        dtype = torch_dtype(entry.dtype)
        key = entry.contender.input_size, entry.batch_size, dtype
        if key not in self._images:
            images = torch.randn(entry.batch_size, *entry.contender.input_size)
            self._images[key] = images.to(self.device, dtype).to(memory_format=self.memory_format)
        return self._images[key]

    def macs(self, entry: Entry) -> int:
        """Multiply-accumulates of one image; for a training step of forward and backward pass together."""
        module, size = entry.contender.module, entry.contender.input_size
        key = module, size, entry.task
        if key not in self._macs:
            count = count_macs if entry.task == "inference" else count_step_macs
            self._macs[key] = count(module, size)
        return self._macs[key]

    def fused_bound(self, entry: Entry, *, gemm_flops: float, bandwidth: float) -> float:
        """Seconds of one call with perfect fusion in every layer, see `visionmlp.measure.gemm.fused_bound`.

        A training step reads each weight in both passes and writes its gradient.
        """
        contender = entry.contender
        if contender not in self._operations:
            module = copy.deepcopy(contender.module).to("cpu", torch.float32).eval()
            self._operations[contender] = operations(module, torch.randn(1, *contender.input_size)).operations
        passes = 3 if entry.task == "training step" else 1
        computed = self.macs(entry) / self.macs(dataclasses.replace(entry, task="inference"))
        bytes_each = 1 if entry.dtype == "int8" else torch_dtype(entry.dtype).itemsize
        return sum(
            fused_bound(
                entry.batch_size * computed * operation.macs,
                passes * operation.weight_bytes * bytes_each / torch.float32.itemsize,
                gemm_flops=gemm_flops,
                bandwidth=bandwidth,
            )
            for operation in self._operations[contender]
        )

    def _compile(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        if module not in self._compiled:
            # all models share the code of Backbone.forward; past the limit a graph would silently run uncompiled,
            # which fullgraph turns into an error
            torch._dynamo.config.cache_size_limit = 256  # by its older name, which newer ones keep
            self._compiled[module] = torch.compile(module, dynamic=False, fullgraph=True)
        return self._compiled[module]

    def _exported(self, entry: Entry, images: Tensor) -> Prepared:
        module, array = self.module(entry), images.float().contiguous().numpy()
        if entry.dtype == "int8":
            session = _int8_session(module, images, threads=self.threads)
        else:
            session = session_of(module, images, runtime=entry.runtime, threads=self.threads)  # type: ignore[arg-type]
        return Prepared(call=lambda: session(array), peak_memory=None)


def _int8_session(module: nn.Module, images: Tensor, *, threads: int) -> Callable[[np.ndarray], object]:
    """The model in int8 by OpenVINO, calibrated on random images: its speed does not depend on the ranges."""
    part = images[: part_of(len(images), threads)]
    graph = openvino_model(export_program(module, part, batch=len(part)))
    calibration = [np.random.default_rng(0).standard_normal(part.shape, dtype=np.float32)] * MINIMUM_IMAGES
    return openvino_call(quantize_openvino(graph, calibration), "int8", threads, divided=len(part) < len(images))


def count_step_macs(module: nn.Module, input_size: tuple[int, int, int]) -> int:
    """Multiply-accumulates of one image (C, H, W) in a forward and backward pass; counted as `count_macs` does."""
    shadow = copy.deepcopy(module).to("meta")
    images = torch.empty(2, *input_size, device="meta", dtype=next(shadow.parameters()).dtype)
    # two images, in evaluation mode: batch statistics of a single one may not exist, and count nothing
    with FlopCounterMode(display=False) as counter:
        shadow(images).sum().backward()
    return counter.get_total_flops() // 4


def _captured(run: Callable[[Tensor], Tensor], images: Tensor) -> Callable[[], object]:
    """One call as a CUDA graph, replayed."""
    warm_up = torch.cuda.Stream(images.device)
    warm_up.wait_stream(torch.cuda.current_stream(images.device))
    with torch.inference_mode():
        with torch.cuda.stream(warm_up):  # libraries allocate their workspaces on first use, which cannot be captured
            for _ in range(3):
                run(images)
        torch.cuda.current_stream(images.device).wait_stream(warm_up)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run(images)
    return graph.replay
