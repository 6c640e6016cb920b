"""Products by oneDNN are the plain ones, wherever they are used and wherever they must not be."""

import copy

import pytest
import torch
from torch.nn import functional as F

from visionmlp.errors import InvalidConfig
from visionmlp.ops import product

ONEDNN = product._LINEAR is not None
needs_onednn = pytest.mark.skipif(not ONEDNN, reason="this PyTorch or this CPU has no oneDNN product")


def close(result, expected, tolerance=2e-6):
    """Equal to the rounding of a float32 sum of some dozens of products."""
    assert result.shape == expected.shape
    error = (result.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-30)
    assert error < tolerance, float(error)


def strided(x, how):
    """The same values in another order of memory; "steps" leaves neither rows nor columns neighbours."""
    if how == "transposed":
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if how == "steps":
        return torch.stack([x, torch.zeros_like(x)], -1)[..., 0]
    if how == "part":
        return torch.cat([x, torch.zeros_like(x)], -1)[..., : x.shape[-1]]
    return x


@pytest.mark.parametrize("how_x", ["contiguous", "transposed", "steps", "part"])
@pytest.mark.parametrize("how_weight", ["contiguous", "transposed", "steps", "part"])
def test_linear_layers_of_any_strides(how_x, how_weight):
    x, weight, bias = torch.randn(3, 5, 34), torch.randn(18, 34), torch.randn(18)
    residual = torch.randn(3, 5, 18)
    expected = F.linear(x.double(), weight.double(), bias.double())
    operands = strided(x, how_x), strided(weight, how_weight), bias
    kept = copy.deepcopy(residual)
    with torch.inference_mode():
        close(product.linear(*operands), expected)
        close(product.add_linear(residual, *operands), expected + residual.double())
        for approximate in ("none", "tanh"):
            close(product.linear_gelu(*operands, approximate), F.gelu(expected, approximate=approximate))
    assert torch.equal(residual, kept)


@pytest.mark.parametrize("shape", [(34,), (0, 34), (2, 0, 34), (1, 34), (2, 3, 4, 34)])
def test_any_number_of_dimensions_and_no_rows(shape):
    x, weight = torch.randn(shape), torch.randn(18, 34)
    with torch.inference_mode():
        assert product.linear(x, weight).shape == (*shape[:-1], 18)
    assert product.linear(x.requires_grad_(), weight).shape == (*shape[:-1], 18)


@pytest.mark.parametrize("side", [8, 80])
def test_batched_products_of_both_sizes(side):
    a, b = torch.randn(3, side, side), torch.randn(3, side, 2 * side)
    bias = torch.randn(3, side)
    each = a.double() @ b.double()
    with torch.inference_mode():
        close(product.bmm(a, b), each)
        close(product.bmm(strided(a, "steps"), strided(b, "steps")), each)
        close(product.matmul(a[0], b[0]), each[0])
        # (B, N, C) = b's transpose, (B, O, C) = a
        close(product.linear_of_each(b.transpose(1, 2), a, bias), each.transpose(1, 2) + bias.double()[:, None])


def test_gradients_are_those_of_the_plain_layer():
    x, weight, bias = (torch.randn(*shape, requires_grad=True) for shape in ((3, 5, 34), (18, 34), (18,)))
    seed = torch.randn(3, 5, 18)
    gradients = torch.autograd.grad(product.linear(x, weight, bias), (x, weight, bias), seed)
    doubles = [value.detach().double().requires_grad_() for value in (x, weight, bias)]
    expected = torch.autograd.grad(F.linear(*doubles), doubles, seed.double())
    for gradient, reference in zip(gradients, expected, strict=True):
        close(gradient, reference)


def test_second_derivatives():
    x, weight = torch.randn(4, 34, requires_grad=True), torch.randn(18, 34, requires_grad=True)

    def penalty(x, weight, linear):
        (gradient,) = torch.autograd.grad(linear(x, weight).tanh().sum(), x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), weight)[0]

    doubles = [value.detach().double().requires_grad_() for value in (x, weight)]
    # four products and tanh in turn: rounding adds up, and differs between processors
    close(penalty(x, weight, product.linear), penalty(*doubles, F.linear), tolerance=1e-5)


@pytest.mark.parametrize("side", [8, 80])
@pytest.mark.parametrize("how", ["contiguous", "transposed", "steps", "part"])
def test_gradients_of_batched_products(side, how):
    a, b = torch.randn(3, side, side + 2), strided(torch.randn(3, side + 2, 2 * side), how)
    seed = torch.randn(3, side, 2 * side)
    doubles = [value.double().requires_grad_() for value in (a, b)]
    expected = torch.autograd.grad(doubles[0] @ doubles[1], doubles, seed.double())
    values = a.requires_grad_(), b.requires_grad_()
    for gradient, reference in zip(torch.autograd.grad(product.bmm(*values), values, seed), expected, strict=True):
        close(gradient, reference)
    weight = b.detach()
    (alone,) = torch.autograd.grad(product.bmm(a, weight), a, seed)
    close(alone, expected[0])


@pytest.mark.parametrize("rows", [80, 1024])
@pytest.mark.parametrize("multiply", [product.bmm, lambda a, b: product.linear(a[0], b[0].t())])
def test_gradients_of_several_results_at_once(multiply, rows):
    a, b = torch.randn(1, rows, 82, requires_grad=True), torch.randn(1, 82, 90, requires_grad=True)
    result = multiply(a, b)
    seeds = torch.randn(3, *result.shape)
    together = torch.autograd.grad(result, (a, b), seeds, is_grads_batched=True)
    doubles = [value.detach().double().requires_grad_() for value in (a, b)]
    exact = doubles[0] @ doubles[1]
    for i, seed in enumerate(seeds):
        expected = torch.autograd.grad(exact, doubles, seed.double().view(exact.shape), retain_graph=True)
        for gradients, reference in zip(together, expected, strict=True):
            close(gradients[i], reference)


def test_batched_products_that_do_not_fit_say_so():
    for shape in ((3, 80, 90), (2, 81, 90), (80, 90)):
        with pytest.raises(RuntimeError, match=r"batch|3D"):
            product.bmm(torch.randn(2, 90, 80), torch.randn(shape))


@needs_onednn
def test_a_weight_that_is_part_of_a_larger_one_is_copied_first(monkeypatch):
    """oneDNN would compute it by a loop, a thousand times as slowly."""
    weights = []
    real = product._LINEAR
    monkeypatch.setattr(product, "_LINEAR", lambda x, weight, *more: weights.append(weight) or real(x, weight, *more))
    part = strided(torch.randn(80, 80), "part")
    x = part.clone().requires_grad_()
    with torch.inference_mode():
        product.linear(part, part)
        product.bmm(part[None], part[None])
        product.linear_of_each(part[None], part[None], torch.zeros(1, 80))
    product.linear(strided(x, "part"), part).sum().backward()
    product.bmm(x[None], strided(x[None], "part")).sum().backward()
    assert len(weights) == 3 + 2 + 3
    assert all(weight.is_contiguous() or weight.t().is_contiguous() for weight in weights)


@pytest.fixture(params=product.RULES)
def rules(request, monkeypatch):
    """Each instruction set's, whatever the processor here has: they differ in speed, not in values."""
    monkeypatch.setattr(product, "_RULES", product.RULES[request.param])
    return product.RULES[request.param]


@pytest.fixture
def calls(monkeypatch):
    """Arguments of oneDNN's operator."""
    seen = []
    real = product._LINEAR
    monkeypatch.setattr(product, "_LINEAR", lambda *args: seen.append(args) or real(*args))
    return seen


@needs_onednn
def test_gelu_stands_where_the_rules_put_it(rules, calls):
    x, weight, bias = torch.randn(7, 34), torch.randn(18, 34), torch.randn(18)
    expected = F.linear(x.double(), weight.double(), bias.double())
    for approximate in ("none", "tanh"):
        with torch.inference_mode():
            result = product.linear_gelu(x, weight, bias, approximate)
        close(result, F.gelu(expected, approximate=approximate))
    assert [args[3] for args in calls] == ["gelu" if rules.gelu_within else "none"] * 2


@needs_onednn
@pytest.mark.parametrize("columns", [3072, 3080])
def test_columns_that_alias_are_copied_where_the_rules_say_so(rules, calls, columns):
    x, matrix = torch.randn(5, 16), torch.randn(16, columns)
    with torch.inference_mode():
        close(product.matmul(x, matrix), x.double() @ matrix.double())
    copied = calls[0][1].is_contiguous()
    assert copied == (rules.columns_alias and columns == 3072)


@needs_onednn
@pytest.mark.parametrize(
    ("batch", "channels", "best"),
    [(8, 768, 3), (8, 1024, 2), (7, 768, 7), (2, 768, 2), (8, 4096, 8), (8, 40, 8)],
)
def test_products_from_the_left_avoid_columns_that_alias(rules, batch, channels, best):
    assert product.images_at_once(torch.empty(4, 4, batch, channels)) == (best if rules.columns_alias else batch)


@needs_onednn
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_packed_convolutions_of_every_rule(rules, memory_format):
    conv = torch.nn.Conv2d(6, 18, 3, 2, 1)
    kernel = product.packed_kernel(conv)
    assert kernel.is_mkldnn == rules.packed_kernels
    for batch in (2, 0):
        x = torch.randn(batch, 6, 9, 7).contiguous(memory_format=memory_format)
        with torch.inference_mode():
            result = product.packed_conv2d(x, conv, kernel)
        expected = F.conv2d(x.double(), conv.weight.double(), conv.bias.double(), 2, 1)
        assert result.shape == expected.shape
        torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)


@needs_onednn
@pytest.mark.parametrize("rows", [32, 1024, 1600, 2050, 8192])
@pytest.mark.parametrize("how", ["contiguous", "transposed", "steps"])
@pytest.mark.parametrize("outputs", [10, 34, 40])
def test_gradients_of_weights_by_every_rule(rules, monkeypatch, rows, how, outputs):
    convolved = []
    real = torch.ops.aten.convolution_backward
    monkeypatch.setattr(
        torch.ops.aten, "convolution_backward", lambda *args: convolved.append(args[0].shape[0]) or real(*args)
    )
    x, weight = strided(torch.randn(rows, 18), how), torch.randn(outputs, 18, requires_grad=True)
    seed = strided(torch.randn(rows, outputs), how)
    y, real_linear, by_linear = product.linear(x, weight), product.linear, []
    monkeypatch.setattr(product, "linear", lambda *args: by_linear.append(len(args[0])) or real_linear(*args))
    (gradient,) = torch.autograd.grad(y, weight, seed)
    close(gradient, seed.double().t() @ x.double(), tolerance=5e-6)
    fits = rows in (1024, 1600) or (rows == 8192 and outputs != 40)
    assert convolved == ([16] if rules.convolved_gradients and fits else [])
    if not rules.convolved_gradients:
        assert by_linear == ([outputs] if rows == 32 and outputs < 18 else [])


@needs_onednn
def test_gradients_of_weights_where_the_columns_of_the_input_alias(rules, monkeypatch):
    x, weight = torch.randn(3, 3072), torch.randn(5, 3072, requires_grad=True)
    y = product.linear(x, weight)
    if rules.columns_alias:
        monkeypatch.setattr(product, "linear", pytest.fail)
    (gradient,) = torch.autograd.grad(y, weight, torch.ones(3, 5))
    close(gradient, torch.ones(5, 3).double() @ x.double())


@pytest.mark.parametrize(("outputs", "inputs"), [(384, 96), (96, 384)])
def test_sums_over_very_many_rows(outputs, inputs):
    assert product._is_wide_sum(25088, outputs, inputs)
    assert not product._is_wide_sum(1568, outputs, inputs)
    assert not product._is_wide_sum(25088, 96, 96)
    assert not product._is_wide_sum(25088, 64, 256)


@needs_onednn
@pytest.mark.parametrize(("rows", "outputs"), [(1104, 34), (24, 10)])
def test_second_derivatives_of_every_rule(rules, rows, outputs):
    del rules
    x, weight = torch.randn(rows, 18), torch.randn(outputs, 18)

    def penalty(x, weight, linear):
        (gradient,) = torch.autograd.grad(linear(x, weight).tanh().sum(), weight, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), (x, weight))

    values = x.clone().requires_grad_(), weight.clone().requires_grad_()
    doubles = [value.double().requires_grad_() for value in (x, weight)]
    for result, expected in zip(penalty(*values, product.linear), penalty(*doubles, F.linear), strict=True):
        close(result, expected, tolerance=1e-5)


def test_parts_that_need_no_gradient_get_none():
    x, weight = torch.randn(4, 34), torch.randn(18, 34, requires_grad=True)
    result = product.linear(x, weight)
    result.add_(1)  # must be no view of the operator's own
    result.sum().backward()
    assert x.grad is None
    close(weight.grad, torch.ones(18, 4).double() @ x.double())


def test_autocast_decides_itself():
    x, weight = torch.randn(4, 34), torch.randn(18, 34)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert product.linear(x, weight).dtype == torch.bfloat16


def test_vmap_and_functional_gradients():
    x, weight = torch.randn(6, 4, 34), torch.randn(18, 34)
    close(torch.vmap(product.linear, (0, None))(x, weight), F.linear(x.double(), weight.double()))
    gradient = torch.func.grad(lambda value: product.linear(x[0], value).sum())(weight)
    close(gradient, torch.ones(18, 4).double() @ x[0].double())


@needs_onednn
def test_packed_weights_compute_the_same_in_eager_inference_only():
    x, weight, bias = torch.randn(7, 34), torch.randn(18, 34), torch.randn(18)
    packed = product.packed(weight)
    with torch.inference_mode():
        close(product.linear(x, packed, bias), F.linear(x.double(), weight.double(), bias.double()))
    with pytest.raises(InvalidConfig, match="eager inference only"):
        product.linear(x, packed, bias)
    with torch.inference_mode(), pytest.raises(InvalidConfig, match="its own dtype"):
        product.linear(x.bfloat16(), packed, bias)


def test_forward_mode_derivatives():
    x, weight, direction = torch.randn(4, 34), torch.randn(18, 34), torch.randn(4, 34)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, direction)
        result = torch.autograd.forward_ad.unpack_dual(product.linear(dual, weight.requires_grad_()))
    close(result.tangent.detach(), direction.double() @ weight.detach().double().t())


@pytest.mark.parametrize("grad", [False, True])
def test_what_is_no_linear_layer_is_computed_or_refused_as_pytorch_does(grad):
    x, weight = torch.randn(4, 34), torch.randn(18, 34)
    with torch.set_grad_enabled(grad):
        for bias in (torch.tensor(1.0), torch.ones(1), torch.ones(1, 18), torch.ones(4, 18)):
            close(product.linear(x, weight, bias), F.linear(x.double(), weight.double(), bias.double()))
        for wrong in (
            (x, weight, torch.ones(5)),
            (x, weight, torch.ones(40)),
            (x, weight, torch.ones(18).double()),
            (x[:, :33], weight),
            (x, torch.randn(2, 18, 34)),
        ):
            with pytest.raises(RuntimeError) as caught:
                product.linear(*wrong)
            with pytest.raises(RuntimeError) as plain:
                F.linear(*wrong)
            assert str(caught.value) == str(plain.value)
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            product.matmul(torch.randn(3, 4), torch.randn(5, 6))
