"""Matrix products on CPUs by oneDNN, where PyTorch's own choice is slower.

PyTorch computes float32 products by MKL, which on the AMD CPUs that we measured reaches under half of oneDNN's rate
with AVX-512, and 0.65 to 0.95 of it with AVX2 alone (docs/results/speed.md); its convolutions already use oneDNN. The
same operator that ``torch.compile`` emits is called here in eager mode, as `RULES` says. All functions fall back to
plain operators wherever that one does not apply: other devices and dtypes, autocast, compilers, exporters, tracers,
quantised weights.
"""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch._C._functorch import is_legacy_batchedtensor
from torch.nn import functional as F

from visionmlp.errors import InvalidConfig
from visionmlp.ops.eager import in_eager_inference, is_eager, is_symbolic
from visionmlp.ops.gelu import gelu_

Approximate = Literal["none", "tanh"]


_LARGE = 1 << 18
"""Multiply-accumulates of the smallest product that is worth a call of its own."""


class Rules(NamedTuple):
    """How oneDNN's products are used best on an instruction set."""

    gelu_within: bool
    """Whether GELU inside a product takes less time than after it."""
    columns_alias: bool
    """Whether a weight whose columns lie multiples of 4 KiB apart is copied before its product: they all fall into the
    same lines of the first cache."""
    packed_kernels: bool
    """Whether a convolution gains by a kernel in oneDNN's own order; without that, by one in channels-last order."""
    convolved_gradients: bool
    """Whether oneDNN's convolutions and products sum over the rows of two maps, which gives a weight's gradient, in
    less time than PyTorch's products; without that, its products do for few rows and wide results alone."""
    bfloat16: bool


RULES = {
    "AVX512": Rules(
        gelu_within=True, columns_alias=False, packed_kernels=True, convolved_gradients=True, bfloat16=True
    ),
    "AVX2": Rules(
        gelu_within=False, columns_alias=True, packed_kernels=False, convolved_gradients=False, bfloat16=False
    ),
}
"""By instruction set: of linear layers as ``benchmarks/products.py`` measures them in float32, of convolutions and
bfloat16 by whole models. On any other set PyTorch's own products are used. ARM has none yet: nobody has measured it."""

_MANY_ROWS, _VERY_MANY_ROWS = 1024, 8192
"""From which on it matters how a weight's gradient is computed."""
_IMAGES = 16
"""That the rows are taken for, so that threads can share them."""
_PAGE = 4096
_FEWEST_ALIASES = 3
"""Pages between neighbouring columns from which on a copy pays."""
_IMAGES_OF_PARTS = 3
"""That products from the left take where a batch's columns alias."""


def _find_operator() -> tuple[Any, Rules]:
    """oneDNN's linear layer and the rules of this CPU, where this build of PyTorch has it and they are known; else None
    and rules that are not asked."""
    capability = torch.backends.cpu.get_cpu_capability()
    rules = next((rules for name, rules in RULES.items() if name in capability), None)
    if rules is not None and torch.backends.mkldnn.is_available():
        try:
            return torch.ops.mkldnn._linear_pointwise, rules
        except AttributeError:  # a build for another processor family
            pass
    return None, RULES["AVX2"]


_LINEAR, _RULES = _find_operator()
_DTYPES = {torch.float32}
if _LINEAR is not None and _RULES.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported():
    _DTYPES.add(torch.bfloat16)


def _applies(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN's operator can take these."""
    return (
        _LINEAR is not None
        and x.dtype == weight.dtype
        and x.dtype in _DTYPES
        and x.dim() > 1
        and x.numel() > 0
        # subclasses of Tensor, quantised weights among them, have products of their own
        and type(weight) in (Tensor, nn.Parameter)
        and type(x) in (Tensor, nn.Parameter)
        and x.layout == torch.strided
        and not is_legacy_batchedtensor(weight)
        # PyTorch turns it off for all threads while one exports; packed weights have no other product
        and (torch.backends.mkldnn.enabled or weight.is_mkldnn)
        and not torch.is_autocast_enabled("cpu")
    )


def _fits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the shapes are a linear layer's: oneDNN says not what is wrong, and drops a bias without dimensions."""
    return (
        weight.dim() == 2
        and x.shape[-1] == weight.shape[1]
        and (bias is None or (bias.shape == weight.shape[:1] and bias.dtype == weight.dtype))
    )


def _unpacked(weight: Tensor, x: Tensor) -> Tensor:
    """The weight for plain operators."""
    if is_symbolic(weight) or not weight.is_mkldnn:
        return weight
    if not is_symbolic(x) and (x.numel() == 0 or (weight.dim() == 2 and x.shape[-1] != weight.shape[1])):
        return weight.to_dense()
    raise InvalidConfig(
        "a packed model computes in eager inference only, on batches of its own dtype on the CPU; call it under "
        "torch.inference_mode(), without autocast and compilers, or use the model that it was packed from"
    )


def _dense(x: Tensor) -> Tensor:
    """The matrices, or a copy where neither rows nor columns are neighbours: oneDNN has no kernel for that."""
    return x if 1 in x.stride()[-2:] else x.contiguous()


def _dense_weight(weight: Tensor) -> Tensor:
    """The matrix, or a copy if it is part of a larger one: oneDNN has no kernel for that, and takes a thousand times as
    long. Also a copy where its columns alias, see `Rules`."""
    if weight.is_mkldnn or weight.is_contiguous():
        return weight
    return weight if weight.t().is_contiguous() and not _aliases(weight) else weight.contiguous()


def _aliases(weight: Tensor) -> bool:
    return _alias(weight.stride(1) * weight.element_size())


def _alias(distance: int) -> bool:
    """Whether neighbouring columns, so many bytes apart, fall into the same lines of the first cache."""
    pages, rest = divmod(distance, _PAGE)
    return _RULES.columns_alias and pages >= _FEWEST_ALIASES and rest == 0


def images_at_once(x: Tensor) -> int:
    """Of how many images at a time products from the left are computed best: of all, unless their columns alias.

    Args:
        x: (..., B, C), positions first, in eager inference.
    """
    batch, channels = x.shape[-2:]
    if _LINEAR is None:
        return batch
    sizes = (batch, *range(_IMAGES_OF_PARTS, 0, -1))
    return next((size for size in sizes if not _alias(size * channels * x.element_size())), batch)


def can_pack(weight: Tensor) -> bool:
    """Whether `packed` takes it: there is oneDNN, and the weight is an ordinary one in a dtype that it computes."""
    return _LINEAR is not None and weight.device.type == "cpu" and weight.dtype in _DTYPES and not weight.is_mkldnn


def packed(weight: Tensor) -> Tensor:
    """A weight (O, C) in oneDNN's own order, an opaque tensor that the functions here take in its place."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous())


def packed_kernel(conv: nn.Conv2d) -> Tensor:
    """The kernel of a convolution in the order that serves it best, for `packed_conv2d`."""
    weight = conv.weight.detach()
    if not _RULES.packed_kernels:
        return weight.clone(memory_format=torch.channels_last)
    weight = weight.contiguous().to_mkldnn()
    return torch.ops.aten.mkldnn_reorder_conv2d_weight(weight, conv.padding, conv.stride, conv.dilation, conv.groups)


def packed_conv2d(x: Tensor, conv: nn.Conv2d, weight: Tensor) -> Tensor:
    """The convolution (B, C, H, W) with the kernel of `packed_kernel`; its bias and geometry are those of ``conv``."""
    fits = conv.bias is None or conv.bias.dtype == x.dtype
    if weight.is_mkldnn and in_eager_inference(x) and _applies(x, weight) and fits:
        if x.dim() == 3:
            return packed_conv2d(x[None], conv, weight)[0]
        return torch.ops.mkldnn._convolution_pointwise(
            x, weight, conv.bias, conv.padding, conv.stride, conv.dilation, conv.groups, "none", [], ""
        )
    if not weight.is_mkldnn and in_eager_inference(x) and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    return F.conv2d(x, _unpacked(weight, x), conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``.

    Args:
        x: (..., C).
        weight: (O, C); fastest if it is the transpose of a contiguous matrix.
        bias: (O,).
    """
    if in_eager_inference(x) and _applies(x, weight) and _fits(x, weight, bias):
        return _LINEAR(_dense(x), _dense_weight(weight), bias, "none", [], "")
    # products of bfloat16 use oneDNN anyway
    if (
        is_eager(x)
        and x.dtype == torch.float32
        and not weight.is_mkldnn
        and _applies(x, weight)
        and _fits(x, weight, bias)
    ):
        # as a matrix: what a custom function returns must not be a view, or it could not be written to
        return _Linear.apply(x.flatten(0, -2), weight, bias).unflatten(0, x.shape[:-1])
    return F.linear(x, _unpacked(weight, x), bias)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor | None, approximate: Approximate) -> Tensor:
    """``gelu(x @ weight.T + bias)``; shapes as in `linear`."""
    if _RULES.gelu_within and in_eager_inference(x) and _applies(x, weight) and _fits(x, weight, bias):
        return _LINEAR(_dense(x), _dense_weight(weight), bias, "gelu", [], approximate)
    return gelu_(linear(x, weight, bias), approximate)


def linear_relu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``relu(x @ weight.T + bias)``; shapes as in `linear`."""
    if in_eager_inference(x) and _applies(x, weight) and _fits(x, weight, bias):
        return _LINEAR(_dense(x), _dense_weight(weight), bias, "relu", [], "")
    return linear(x, weight, bias).relu_()


def add_linear(residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``residual + x @ weight.T + bias``; the residual is (..., O), the others as in `linear`."""
    if in_eager_inference(x) and _applies(x, weight) and _fits(x, weight, bias):
        return _LINEAR.binary(_dense(x), residual, _dense_weight(weight), bias, "add")
    product = linear(x, weight, bias)
    # autocast's product has fewer digits than the sum needs
    in_place = is_symbolic(product) or product.dtype == residual.dtype
    return product.add_(residual) if in_place else residual + product


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` of two matrices (M, K) and (K, N)."""
    return linear(a, b.t()) if in_eager_inference(a) else a @ b


def linear_of_each(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A `linear` of its own for each image.

    Args:
        x: (B, N, C).
        weight: (B, O, C).
        bias: (B, O).
    """
    if in_eager_inference(x) and x.shape[1:].numel() * weight.shape[1] >= _LARGE and _applies(x, weight):
        return _linear_of_each(x, weight, bias)
    return torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))


def bmm(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` of matrices (S, M, K) and (S, K, N), one by one if they are large: (S, M, N)."""
    if is_eager(a) and _fit(a, b) and a.shape[1:].numel() * b.shape[2] >= _LARGE and _applies(a, b):
        if not torch.is_grad_enabled():
            return _bmm(a, b)
        if a.dtype == torch.float32:
            return _Bmm.apply(a, b)
    return torch.bmm(a, b)


def _fit(a: Tensor, b: Tensor) -> bool:
    return a.dim() == b.dim() == 3 and a.shape[0] == b.shape[0] and a.shape[2] == b.shape[1]


def _bmm(a: Tensor, b: Tensor) -> Tensor:
    return _linear_of_each(a, b.transpose(1, 2), None)


def _linear_of_each(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    x = _dense(x)
    products = x.new_empty(*x.shape[:2], weight.shape[1])
    for i, product in enumerate(products):
        own_bias = None if bias is None else bias[i]
        product.copy_(_LINEAR(x[i], _dense_weight(weight[i]), own_bias, "none", [], ""))
    return products


class _Linear(torch.autograd.Function):
    """`linear` of a matrix (M, C), with a gradient; the backward pass is made of such products too."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _LINEAR(_dense(x), _dense_weight(weight), bias, "none", [], "")

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
            _weight_gradient(gradient, x, weight) if of_weight else None,
            gradient.sum(0) if of_bias else None,
        )


def _weight_gradient(gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """``gradient.T @ x`` of (M, O) and (M, C), for a weight (O, C)."""
    rows, outputs, inputs = *gradient.shape, x.shape[1]
    if not is_eager(gradient) or not _applies(gradient, x):
        return gradient.t() @ x
    if not _RULES.convolved_gradients:
        is_short = rows < _MANY_ROWS and outputs < inputs and not _aliases(x.t())
        return linear(gradient.t(), x.t()) if is_short else gradient.t() @ x
    # of fewer images PyTorch makes no oneDNN convolution on one thread
    if rows >= _MANY_ROWS and rows % _IMAGES == 0 and not _is_wide_sum(rows, outputs, inputs):
        return _convolved_gradient(gradient, x, weight)
    # wide results take less time, but a transposed one is copied by whoever keeps it
    if rows >= _MANY_ROWS and outputs > 2 * inputs:
        return linear(x.t(), gradient.t()).t()
    return linear(gradient.t(), x.t())


def _is_wide_sum(rows: int, outputs: int, inputs: int) -> bool:
    """Whether a product takes less time than a convolution, whose blocks of channels are powers of two."""
    narrow, wide = sorted((outputs, inputs))
    return rows >= _VERY_MANY_ROWS and wide > 2 * narrow and narrow & (narrow - 1) != 0


def _convolved_gradient(gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    maps = (rows.contiguous().view(_IMAGES, -1, 1, rows.shape[1]).permute(0, 3, 1, 2) for rows in (gradient, x))
    kernel, ones, zeros = weight[:, :, None, None], [1, 1], [0, 0]
    _, of_kernel, _ = torch.ops.aten.convolution_backward(
        *maps, kernel, None, ones, zeros, ones, False, zeros, 1, [False, True, False]
    )
    return of_kernel[:, :, 0, 0]


class _Bmm(torch.autograd.Function):
    """`bmm` of large matrices, with a gradient; the backward pass is made of such products too."""

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        return _bmm(a, b)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        del output
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b = ctx.saved_tensors
        (gradient,) = gradients
        of_a, of_b = ctx.needs_input_grad
        return (
            bmm(gradient, b.transpose(1, 2)) if of_a else None,
            bmm(a.transpose(1, 2), gradient) if of_b else None,
        )
