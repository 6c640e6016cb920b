"""Whether shortcuts may be taken: those that reuse memory, depend on sizes, or call operators that compilers lack."""

import contextlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._C._functorch import is_legacy_batchedtensor, peek_interpreter_stack
from torch.autograd import forward_ad
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks
from torch.utils._python_dispatch import _get_current_dispatch_mode


def is_symbolic(x: Any) -> bool:
    """Whether a value is what ``torch.fx`` puts in its place: it has no size, dtype or device to decide by."""
    return isinstance(x, fx.Proxy)


def passive(hook: Callable[..., None]) -> Callable[..., None]:
    """A hook that neither changes a call nor minds its absence, as a profiler's: `is_watched` passes over it."""
    hook.is_passive = True  # type: ignore[attr-defined]
    return hook


def is_watched(module: nn.Module) -> bool:
    """Whether somebody would see or change the call of a module, or replaced it: no shortcut may leave it out."""
    hooks = (
        *module._forward_hooks.values(),
        *module._forward_pre_hooks.values(),
        *_global_forward_hooks.values(),
        *_global_forward_pre_hooks.values(),
    )
    return "forward" in module.__dict__ or not all(getattr(hook, "is_passive", False) for hook in hooks)


def _is_compiling() -> bool:
    """Whether this thread compiles or exports; PyTorch's own answer is true in all threads while one exports."""
    if not torch.jit.is_scripting():  # which cannot take the rest
        if torch.compiler.is_dynamo_compiling():
            return True
        return torch.compiler.is_compiling() and _get_current_dispatch_mode() is not None
    return False


def is_eager(x: Tensor) -> bool:
    """True for a tensor on a CPU when operators run as they are called, watched by nobody.

    Compilers and exporters get plain operators: they fuse them by themselves, and tracers lose writes through views.
    """
    return (
        not is_symbolic(x)
        and x.device.type == "cpu"
        and not _is_compiling()
        and not torch.jit.is_tracing()
        and _get_current_dispatch_mode() is None
        and peek_interpreter_stack() is None  # torch.func
        and not is_legacy_batchedtensor(x)  # gradients of several results at once (is_grads_batched)
        and forward_ad._current_level < 0  # the operators have no forward derivative
    )


def in_inference_graph() -> bool:
    """Whether a graph for inference is being made: compiled or exported."""
    return _is_compiling() and not torch.is_grad_enabled()


_as_images = False


@contextlib.contextmanager
def graph_of_images() -> Iterator[None]:
    """Graphs made meanwhile compute channels and patches as convolutions of images, not as products of matrices.

    ONNX Runtime's convolutions are faster than its products, where there are more positions than channels, and than its
    gathering of patches.
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
    if is_symbolic(x) or x.device.type != "cuda" or type(x) not in (Tensor, nn.Parameter):
        return False
    if torch.compiler.is_compiling():
        plain = torch.compiler.is_dynamo_compiling() and _compiles_for_inference_or_training()
    else:
        plain = (
            not torch.jit.is_tracing()
            and _get_current_dispatch_mode() is None
            and peek_interpreter_stack() is None
            and not is_legacy_batchedtensor(x)
            and forward_ad._current_level < 0
        )
    return plain and _have_kernels(x.device.index)


def in_cuda_inference(x: Tensor) -> bool:
    """`takes_cuda_kernels`, and nothing but the value will be asked for, in the tensor's own dtype."""
    return not torch.is_grad_enabled() and takes_cuda_kernels(x) and not torch.is_autocast_enabled("cuda")


@torch.compiler.assume_constant_result
def _have_kernels(index: int) -> bool:
    if index not in _kernels_run:
        if torch.cuda.is_current_stream_capturing():  # nothing can be tried now
            return False
        _kernels_run[index] = _try_kernels(index)
    return _kernels_run[index]


_kernels_run: dict[int, bool] = {}
"""Whether Triton's kernels run on a GPU, by its index."""


def _try_kernels(index: int) -> bool:
    """Run the smallest: Triton needs a C compiler and a folder to write to, which not every machine has."""
    if os.environ.get("VISIONMLP_CUDA_KERNELS") == "0" or torch.version.cuda is None:
        return False
    if importlib.util.find_spec("triton") is None or torch.cuda.get_device_capability(index) < _FIRST_WITH_BFLOAT16:
        return False
    from visionmlp.ops.cuda.displaced import Run, displaced_channels

    try:
        with torch.no_grad():
            one = torch.ones(1, 1, 1, 1, device=f"cuda:{index}")
            return displaced_channels(one, (Run(0, 1, 1, 0, 0),)).item() == 1
    except Exception as error:  # of Triton, its compiler or the driver
        warnings.warn(
            "plain operators are used, as Triton's kernels do not run here; VISIONMLP_CUDA_KERNELS=0 says so in "
            f"advance: {next(iter(str(error).splitlines()), type(error).__name__)}",
            stacklevel=2,
        )
        return False


@torch.compiler.assume_constant_result
def _compiles_for_inference_or_training() -> bool:
    """Not for an export. PyTorch 2.6 cannot tell, and cannot take tables of ours into its graphs."""
    is_exporting = getattr(torch.compiler, "is_exporting", None)
    return is_exporting is not None and not is_exporting()


_FIRST_WITH_BFLOAT16 = (8, 0)
"""Compute capability."""
