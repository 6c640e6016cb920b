"""Matrix products on CPUs by oneDNN, where PyTorch's own choice is slower.

PyTorch computes float32 products by MKL, which leaves half the rate of CPUs of other makers unused; its convolutions
already use oneDNN. The same operator that ``torch.compile`` emits is called here in eager mode. All functions fall back
to plain operators wherever that one does not apply: other devices and dtypes, autocast, compilers, exporters, tracers,
quantised weights.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionmlp.ops.eager import in_eager_inference, is_eager
from visionmlp.ops.gelu import gelu_

Approximate = Literal["none", "tanh"]


def _find_operator() -> Any:
    """oneDNN's linear layer, where this build of PyTorch has it and the CPU has AVX-512; else None."""
    if not torch.backends.mkldnn.is_available() or "AVX512" not in torch.backends.cpu.get_cpu_capability():
        return None
    try:
        return torch.ops.mkldnn._linear_pointwise
    except AttributeError:  # a build for another processor family
        return None


_LINEAR = _find_operator()


def _applies(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN's operator can take these."""
    return (
        _LINEAR is not None
        and x.dtype == weight.dtype == torch.float32
        and x.dim() > 1
        and x.numel() > 0
        # subclasses of Tensor, quantised weights among them, have products of their own
        and type(weight) in (Tensor, nn.Parameter)
        and type(x) in (Tensor, nn.Parameter)
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled("cpu")
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``.

    Args:
        x: (..., C).
        weight: (O, C); fastest if it is the transpose of a contiguous matrix.
        bias: (O,).
    """
    if in_eager_inference(x) and _applies(x, weight):
        return _LINEAR(x, weight, bias, "none", [], "")
    if is_eager(x) and _applies(x, weight):
        # as a matrix: what a custom function returns must not be a view, or it could not be written to
        return _Linear.apply(x.flatten(0, -2), weight, bias).unflatten(0, x.shape[:-1])
    return F.linear(x, weight, bias)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor | None, approximate: Approximate) -> Tensor:
    """``gelu(x @ weight.T + bias)``; shapes as in `linear`."""
    if in_eager_inference(x) and _applies(x, weight):
        return _LINEAR(x, weight, bias, "gelu", [], approximate)
    return gelu_(linear(x, weight, bias), approximate)


def add_linear(residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``residual + x @ weight.T + bias``; the residual is (..., O), the others as in `linear`."""
    if in_eager_inference(x) and _applies(x, weight):
        return _LINEAR.binary(x, residual, weight, bias, "add")
    return linear(x, weight, bias).add_(residual)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` of two matrices (M, K) and (K, N)."""
    return linear(a, b.t()) if in_eager_inference(a) else a @ b


class _Linear(torch.autograd.Function):
    """`linear` of a matrix (M, C), with a gradient; the backward pass is made of such products too."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _LINEAR(x, weight, bias, "none", [], "")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        del output
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        (gradient,) = gradients
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            linear(gradient, weight.t()) if of_x else None,
            linear(gradient.t(), x.t()) if of_weight else None,
            gradient.sum(0) if of_bias else None,
        )
