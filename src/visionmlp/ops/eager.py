"""Whether shortcuts may be taken: those that reuse memory, depend on sizes, or call operators that compilers lack."""

import contextlib
import importlib.util
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch._C._functorch import is_legacy_batchedtensor, peek_interpreter_stack
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode


def is_symbolic(x: Any) -> bool:
    """Whether a value is what ``torch.fx`` puts in its place: it has no size, dtype or device to decide by."""
    return isinstance(x, fx.Proxy)


def is_eager(x: Tensor) -> bool:
    """True for a tensor on a CPU when operators run as they are called, watched by nobody.

    Compilers and exporters get plain operators: they fuse them by themselves, and tracers lose writes through views.
    """
    return (
        not is_symbolic(x)
        and x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and _get_current_dispatch_mode() is None
        and peek_interpreter_stack() is None  # torch.func
        and not is_legacy_batchedtensor(x)  # gradients of several results at once (is_grads_batched)
        and forward_ad._current_level < 0  # the operators have no forward derivative
    )


def in_inference_graph() -> bool:
    """Whether a graph for inference is being made: compiled or exported."""
    return torch.compiler.is_compiling() and not torch.is_grad_enabled()


_as_images = False


@contextlib.contextmanager
def graph_of_images() -> Iterator[None]:
    """Graphs made meanwhile compute channels as 1x1 convolutions of images, not as products of matrices.

    ONNX Runtime's convolutions are faster than its products, where there are more positions than channels.
    """
    global _as_images  # compilers do not follow context variables
    before, _as_images = _as_images, True
    try:
        yield
    finally:
        _as_images = before


def in_graph_of_images() -> bool:
    """Whether `graph_of_images` is on and a graph for inference is being made."""
    return _as_images and in_inference_graph()


def in_eager_inference(x: Tensor) -> bool:
    """`is_eager`, and nothing but the value will be asked for: no gradient."""
    return not torch.is_grad_enabled() and is_eager(x)


def takes_cuda_kernels(x: Tensor) -> bool:
    """Whether the kernels of `visionmlp.ops.cuda` may compute it: in eager mode and in ``torch.compile``.

    Exporters, tracers and whoever watches operators get plain ones.
    """
    if is_symbolic(x) or x.device.type != "cuda" or not _has_triton(x.device.index):
        return False
    if torch.compiler.is_compiling():
        return not _is_exporting()
    return not torch.jit.is_tracing() and _get_current_dispatch_mode() is None and peek_interpreter_stack() is None


def in_cuda_inference(x: Tensor) -> bool:
    """`takes_cuda_kernels`, and nothing but the value will be asked for, in the tensor's own dtype."""
    return not torch.is_grad_enabled() and takes_cuda_kernels(x) and not torch.is_autocast_enabled("cuda")


@torch.compiler.assume_constant_result
def _has_triton(index: int) -> bool:
    if importlib.util.find_spec("triton") is None or torch.version.cuda is None:
        return False
    return torch.cuda.get_device_capability(index) >= _FIRST_WITH_BFLOAT16


@torch.compiler.assume_constant_result
def _is_exporting() -> bool:
    exporting = getattr(torch.compiler, "is_exporting", None)  # since PyTorch 2.7
    return exporting is not None and exporting()


_FIRST_WITH_BFLOAT16 = (8, 0)
"""Compute capability."""
