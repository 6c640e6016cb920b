"""Whether shortcuts may be taken: those that reuse memory, depend on sizes, or call operators that compilers lack."""

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


def in_eager_inference(x: Tensor) -> bool:
    """`is_eager`, and nothing but the value will be asked for: no gradient."""
    return not torch.is_grad_enabled() and is_eager(x)
