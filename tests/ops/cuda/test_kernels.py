"""The Triton kernels against plain operators: interpreted on a CPU, and as machine code where there is a GPU."""

import copy
import math
import os
import re
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import visionmlp
from tests.randomise import randomise
from visionmlp.layers import channel_mlp, norms
from visionmlp.layers.norms import MapGroupNorm
from visionmlp.models import asmlp, cyclemlp, dynamixer
from visionmlp.ops import eager
from visionmlp.ops.cuda import channel_mlp as mlp
from visionmlp.ops.cuda import displaced, mixed_lines
from visionmlp.ops.lines import from_lines, to_lines
from visionmlp.ops.shift import displaced as displaced_map

pytest.importorskip("triton")
HAS_CUDA = torch.cuda.is_available() and torch.version.cuda is not None and "TRITON_INTERPRET" not in os.environ
needs_cuda = pytest.mark.skipif(not HAS_CUDA, reason="needs a GPU")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
needs_interpreter = pytest.mark.skipif(not INTERPRETED, reason="runs in a process of its own")
PLACES = [pytest.param("interpreted", marks=needs_interpreter), pytest.param("cuda", marks=needs_cuda)]
MODELS = ("repmlpnet_t224", "hiremlp_t", "asmlp_t", "cyclemlp_b1", "vip_s7", "dynamixer_s")


@pytest.fixture(params=PLACES)
def device(request):
    """Where the kernels run; interpreted ones are Python, and as exact as their dtype."""
    return torch.device("cpu" if request.param == "interpreted" else "cuda")


def test_all_of_them_interpreted():
    """In a process of its own: Triton settles at its import whether it compiles."""
    if INTERPRETED:
        pytest.skip("this is that process")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", "interpreted and not all_of", __file__]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TRITON_INTERPRET": "1"})
    assert run.returncode == 0, run.stdout[-3000:]
    assert re.search(r"\d+ passed, \d+ deselected", run.stdout), run.stdout[-3000:]  # and none skipped


def places(device):
    """Dtype and tolerance, as a share of the largest value."""
    return (torch.float32, 2e-6) if device.type == "cpu" else (torch.bfloat16, 1e-2)


def close(result, expected, tolerance):
    assert result.shape == expected.shape
    error = (result.double().cpu() - expected.cpu()).abs().max() / expected.abs().max().cpu()
    assert error < tolerance, float(error)


def wide(*tensors):
    return [None if tensor is None else tensor.double() for tensor in tensors]


@pytest.mark.parametrize(("order", "residual"), [("rows", False), ("columns", True)])
@pytest.mark.parametrize(("norm", "tanh"), [("none", True), ("statistics", False), ("affine", False), ("affine", True)])
@pytest.mark.parametrize(("width", "hidden"), [(64, 128), (96, 288), (192, 576)])
def test_channel_mlp(device, width, hidden, norm, tanh, residual, order):
    dtype, tolerance = places(device)
    torch.manual_seed(0)

    def numbers(*shape, scale=1.0):
        return (scale * torch.randn(shape)).to(device, dtype)

    x = numbers(101, width) + 3  # not a whole number of blocks, and a mean that matters
    other = numbers(101, width) if residual else None
    scale, shift = (numbers(width), numbers(width)) if norm == "affine" else (None, None)
    weight1, bias1 = numbers(hidden, width, scale=width**-0.5), numbers(hidden)
    weight2, bias2 = numbers(width, hidden, scale=hidden**-0.5), numbers(width)
    if order == "columns":  # as folding leaves some
        weight1, weight2 = weight1.t().contiguous().t(), weight2.t().contiguous().t()
    eps = None if norm == "none" else 1e-3
    mixed = mlp.launch_channel_mlp(x, other, scale, shift, weight1, bias1, weight2, bias2, eps, tanh)
    rows, other, scale, shift, weight1, bias1, weight2, bias2 = wide(
        x, x if other is None else other, scale, shift, weight1, bias1, weight2, bias2
    )
    normed = rows if eps is None else F.layer_norm(rows, (width,), scale, shift, eps)
    hidden_map = F.gelu(F.linear(normed, weight1, bias1), approximate="tanh" if tanh else "none")
    close(mixed, F.linear(hidden_map, weight2, bias2) + other, 20 * tolerance if device.type == "cpu" else tolerance)


def test_gelu_of_every_size(device):
    import triton
    import triton.language as tl

    from visionmlp.ops.cuda import kernels

    @triton.jit
    def apply(X, OUT, GELU: tl.constexpr, SIZE: tl.constexpr):
        at = tl.arange(0, SIZE)
        tl.store(OUT + at, GELU(tl.load(X + at)))

    x = torch.linspace(-9, 9, 4096, device=device)
    out = torch.empty_like(x)
    apply[(1,)](x, out, kernels.gelu, 4096)
    expected = x.double() * torch.special.erfc(x.double() / -math.sqrt(2)) / 2
    assert ((out - expected) / expected).abs().max() < 5e-5  # a tenth of float16's rounding, in the tail as well
    apply[(1,)](x, out, kernels.gelu_tanh, 4096)
    close(out, F.gelu(x.double(), approximate="tanh"), 1e-6)


def moved(x, runs, *, back=False):
    runs = tuple(number for run in runs for number in run)
    most = max(map(displaced._piece_size, runs[2::5]))
    return displaced.launch_displaced(x, displaced._pieces(runs, back, x.device), sum(runs[2::5]), most)


@pytest.mark.parametrize("channels", [70, 600])
@pytest.mark.parametrize(("size", "dilation"), [(5, 1), (3, 2), (9, 4), (1, 1)])
@pytest.mark.parametrize("axis", [1, 2])
def test_axial_shift_and_back(device, axis, size, dilation, channels):
    x = torch.randn(2, 5, 7, channels, device=device)
    runs = asmlp._runs(channels, axis, size, dilation)
    assert torch.equal(moved(x, runs), asmlp.displaced_groups(x, axis, size, dilation))
    assert torch.equal(moved(x, runs, back=True), asmlp.displaced_groups(x, axis, size, -dilation))


def test_cycles_share_and_permute_channels(device):
    x = torch.randn(2, 6, 5, 64, device=device)
    runs = [(0, 1, 64, 0, 0), (0, 3, 22, 1, 0), (2, 3, 21, 0, -2), (1, 3, 21, 9, 0)]
    expected = [displaced_map(x[..., first::cycle], (down, right)) for first, cycle, _, down, right in runs]
    assert torch.equal(moved(x, runs), torch.cat(expected, -1))


def test_cycles_go_back(device):
    runs = ((0, 3, 22, 1, 0), (1, 3, 21, 0, -2), (2, 3, 21, 0, 1))
    x, y = torch.randn(2, 6, 90, 64, device=device), torch.randn(2, 6, 90, 64, device=device)
    there, back = moved(x, runs), moved(y, runs, back=True)
    torch.testing.assert_close((there * y).sum(), (x * back).sum(), rtol=1e-3, atol=1e-3)  # the transposed map


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("length", "segments", "width"), [(14, 4, 24), (5, 3, 6), (32, 2, 24)])
@pytest.mark.parametrize("axis", [1, 2])
def test_mixed_lines(device, axis, length, segments, width, shared):
    dtype, tolerance = places(device)
    sides = (length, 6) if axis == 1 else (6, length)
    x = torch.randn(2, *sides, segments * width).to(device, dtype)
    logits = 3 * torch.randn(*(() if shared else (2, 6)), segments, length, length).to(device, dtype)
    mixed = mixed_lines.launch_mixed_lines(x, logits, axis)
    expected = from_lines(logits.double().softmax(-1) @ to_lines(x.double(), axis, segments), axis)
    close(mixed, expected, tolerance)


def test_a_cpu_never_sees_them():
    x = torch.randn(2, 3, 3, 64)
    with torch.inference_mode():
        assert not eager.in_cuda_inference(x)
        assert not eager.takes_cuda_kernels(x.to("meta"))
    rows = torch.randn(8192, 64)
    assert mlp.fits(rows.bfloat16(), 256)
    assert not mlp.fits(rows, 256), "float32 would lose its precision in matrix units"
    assert not mlp.fits(rows[:8191].bfloat16(), 256), "too few for all multiprocessors"
    assert not mlp.fits(rows.bfloat16(), 250)
    assert not mlp.fits(torch.randn(8192, 80).bfloat16(), 256)


def use_kernels(monkeypatch, used):
    for module, name in (
        (channel_mlp, "in_cuda_inference"),
        (dynamixer, "in_cuda_inference"),
        (asmlp, "takes_cuda_kernels"),
        (cyclemlp, "takes_cuda_kernels"),
    ):
        monkeypatch.setattr(module, name, lambda _: used)


@needs_interpreter
@pytest.mark.parametrize(("name", "side"), [("repmlpnet_t224", 64), ("hiremlp_t", 64), ("vip_s7", 28)])
def test_models_with_them_interpreted(name, side, monkeypatch):
    model = randomise(visionmlp.create_model(name, img_size=(side, side))).eval()
    model, images = visionmlp.reparameterize(model), torch.randn(2, 3, side, side)
    calls = []
    launch = mlp.launch_channel_mlp
    monkeypatch.setattr(mlp, "channel_mlp", lambda *arguments: calls.append(1) or launch(*arguments))
    monkeypatch.setattr(mlp, "DTYPES", (torch.float32,))
    monkeypatch.setattr(mlp, "FEWEST_ROWS", 1)
    with torch.inference_mode():
        expected = model(images).double()
        assert not calls
        use_kernels(monkeypatch, True)
        close(model(images), expected, 2e-5)
    assert calls


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MODELS)
def test_models_are_as_exact_with_them(name, dtype, monkeypatch):
    model = visionmlp.reparameterize(randomise(visionmlp.create_model(name)).eval())
    images = torch.randn(11, 3, 224, 224)
    with torch.inference_mode():
        expected = copy.deepcopy(model).double()(images.double())
        model, images = model.to("cuda", dtype), images.to("cuda", dtype)

        def error():
            return ((model(images).double().cpu() - expected).norm() / expected.norm()).item()

        with torch.profiler.profile() as profiler:
            with_kernels = error()
        assert any("visionmlp::" in event.key for event in profiler.key_averages())
        compiled = torch.compile(model, fullgraph=True)(images).double().cpu()
        use_kernels(monkeypatch, False)
        plain = error()
    compiled_error = ((compiled - expected).norm() / expected.norm()).item()
    assert with_kernels < 1.3 * plain
    assert compiled_error < 1.3 * plain


@needs_cuda
@pytest.mark.parametrize("name", ["asmlp_test", "cyclemlp_test"])
def test_training_gradients(name):
    model = randomise(visionmlp.create_model(name))
    twin, images = copy.deepcopy(model).double(), torch.randn(2, 3, *model.config.img_size)
    twin(images.double()).square().sum().backward()
    model.cuda()
    with torch.backends.cudnn.flags(allow_tf32=False):
        model(images.cuda()).square().sum().backward()
    for (key, value), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        if other.grad is not None and other.grad.norm() > 1e-6:
            assert (value.grad.double().cpu() - other.grad).norm() < 1e-4 * other.grad.norm(), key


@needs_cuda
@pytest.mark.parametrize("batch", [3, 40])
@pytest.mark.parametrize("affine", [False, True])
def test_norms_of_whole_maps(affine, batch):
    norm = randomise(MapGroupNorm(12, affine=affine)).cuda()
    x = (torch.randn(batch, 5, 4, 12, device="cuda") + 2).requires_grad_()
    twin, y = copy.deepcopy(norm).double().cpu(), x.detach().double().cpu().requires_grad_()
    with torch.inference_mode():  # a way of its own
        close(norm(x.detach()), twin(y), 1e-5)
    close(norm(x), twin(y), 1e-5)
    norm(x).pow(3).sum().backward()
    twin(y).pow(3).sum().backward()
    close(x.grad, y.grad, 1e-5)
    if affine:
        close(norm.weight.grad, twin.weight.grad, 1e-5)
        close(norm.bias.grad, twin.bias.grad, 1e-5)


@needs_cuda
def test_operators_obey_their_contracts():
    x = torch.randn(2, 4, 5, 12, device="cuda", requires_grad=True)
    runs = tuple(number for run in asmlp._runs(12, 1, 3, 1) for number in run)
    tables = [displaced._pieces(runs, back, x.device) for back in (False, True)]
    torch.library.opcheck(displaced._displaced, (x, *tables, 12, 4))
    rows, like = torch.randn(70, 64, device="cuda").half(), {"device": "cuda", "dtype": torch.float16}
    weights = [torch.randn(*shape, **like) for shape in ((128, 64), (128,), (64, 128), (64,))]
    torch.library.opcheck(mlp.channel_mlp, (rows, None, None, None, *weights, 1e-5, False))
    maps, logits = torch.randn(2, 5, 4, 24, **like), torch.randn(2, 4, 2, 5, 5, **like)
    torch.library.opcheck(mixed_lines._mixed, (maps, logits, 1))


@needs_cuda
def test_a_compiled_cuda_graph_is_the_first_to_call_them():
    """In a process of its own: nothing may lie in the memory of the graph."""
    code = """
import torch, visionmlp
model = visionmlp.reparameterize(visionmlp.create_model("asmlp_t").eval()).cuda().half()
images = torch.randn(3, 3, 224, 224, device="cuda").half()
compiled = torch.compile(model, mode="reduce-overhead", fullgraph=True)
with torch.inference_mode():
    first = [compiled(images).clone() for _ in range(4)][-1]
    torch.testing.assert_close(first, model(images), rtol=0.02, atol=0.02)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# On a CPU, with the operators' work done by plain ones


@pytest.fixture
def on_cpu(monkeypatch):
    """All decisions as on a GPU; the operators count their calls."""
    calls = []

    def mlp_(x, residual, scale, shift, weight1, bias1, weight2, bias2, eps, tanh):
        calls.append("mlp")
        normed = x if eps is None else F.layer_norm(x, x.shape[1:], scale, shift, eps)
        hidden = F.gelu(F.linear(normed, weight1, bias1), approximate="tanh" if tanh else "none")
        return F.linear(hidden, weight2, bias2) + (x if residual is None else residual)

    def displaced_(x, pieces, back, channels, most):  # noqa: ARG001
        calls.append("displaced")
        out = x.new_zeros(*x.shape[:3], channels)
        for read, read_cycle, write, write_cycle, count, down, right in pieces.tolist():
            part = x[..., read : read + read_cycle * (count - 1) + 1 : read_cycle]
            out[..., write : write + write_cycle * (count - 1) + 1 : write_cycle] = displaced_map(part, (down, right))
        return out

    def lines_(x, logits, axis):
        calls.append("lines")
        return from_lines(logits.softmax(-1) @ to_lines(x, axis, logits.shape[-3]), axis)

    for operator, work in ((mlp.channel_mlp, mlp_), (displaced._displaced, displaced_), (mixed_lines._mixed, lines_)):
        operator.register_kernel("cpu", work)
    for module in (mlp, mixed_lines):
        monkeypatch.setattr(module, "DTYPES", (torch.float32,))
    monkeypatch.setattr(mlp, "FEWEST_ROWS", 1)
    use_kernels(monkeypatch, True)
    return calls


old_compiler = pytest.mark.skipif(torch.__version__ < "2.7", reason="its graphs get plain operators")


@old_compiler
@pytest.mark.parametrize("name", ["asmlp_t", "dynamixer_s"])
def test_compiled_models_keep_them_whole(name, on_cpu, monkeypatch):
    side = 28 if name == "dynamixer_s" else 64
    model = visionmlp.reparameterize(randomise(visionmlp.create_model(name, img_size=(side, side))).eval())
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)(images)
        assert set(on_cpu) >= {"mlp"} | {"asmlp_t": {"displaced"}, "dynamixer_s": {"lines"}}.get(name, set())
        on_cpu.clear()
        eager_result = model(images)
        assert on_cpu
        use_kernels(monkeypatch, False)
        expected = model(images).double()
    close(compiled, expected, 1e-5)
    close(eager_result, expected, 1e-5)


@pytest.mark.parametrize(
    ("name", "compiled"),
    [("asmlp_test", False), ("cyclemlp_test", False), pytest.param("cyclemlp_test", True, marks=old_compiler)],
)
def test_shifts_have_gradients(name, compiled, on_cpu, monkeypatch):
    model = randomise(visionmlp.create_model(name))
    images = torch.randn(2, 3, *model.config.img_size)
    with torch.inference_mode():
        model.eval()(images)  # tables that inference made first
    run = torch.compile(model.train(), backend="aot_eager", fullgraph=True) if compiled else model.train()
    run(images).square().sum().backward()
    assert "displaced" in on_cpu
    gradients = [parameter.grad.double() for parameter in model.parameters() if parameter.grad is not None]
    use_kernels(monkeypatch, False)
    model.zero_grad()
    model(images).square().sum().backward()
    expected = [parameter.grad.double() for parameter in model.parameters() if parameter.grad is not None]
    for ours, theirs in zip(gradients, expected, strict=True):
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm() + 1e-4


@pytest.mark.usefixtures("on_cpu")
def test_shared_channels_have_no_gradient_and_say_so():
    x = torch.randn(1, 2, 2, 64, requires_grad=True)
    runs = (displaced.Run(0, 1, 64, 0, 0), displaced.Run(0, 1, 64, 1, 0))
    with pytest.raises(RuntimeError, match="no gradient"):
        displaced.displaced_channels(x, runs).sum().backward()


def test_whoever_watches_or_replaces_a_layer_sees_it_called(on_cpu):
    model = visionmlp.reparameterize(randomise(visionmlp.create_model("cyclemlp_b1")).eval())
    block = next(module for module in model.modules() if isinstance(module, channel_mlp.DeployedMLP))
    x = torch.randn(1, 8, 8, 64)

    def uses_kernel():
        on_cpu.clear()
        with torch.no_grad():
            block(x)
        return on_cpu == ["mlp"]

    assert uses_kernel()
    for layer in (block.norm, block.fc1, block.act, block.fc2):
        with layer.register_forward_hook(lambda *_: None):
            assert not uses_kernel()
        with layer.register_forward_pre_hook(lambda *_: None):
            assert not uses_kernel()
    assert uses_kernel()
    block.fc1.forward = block.fc1.forward  # as libraries that load weights for a call do
    assert not uses_kernel()
    del block.fc1.forward
    plain, block.fc2 = block.fc2, nn.Sequential(block.fc2)
    block.fc1, fc1 = type("Other", (nn.Linear,), {})(64, 256), block.fc1
    assert not block._is_plain(x)
    block.fc1, block.fc2 = fc1, plain
    assert not block._is_plain(x.double())
    assert not block._is_plain(x.to("meta"))
    block.norm = nn.LayerNorm(64, bias=False)
    assert not block._is_plain(x)


def test_norms_of_whole_maps_as_on_a_gpu():
    for affine in (False, True):
        for batch in (3, 40):
            norm, x = randomise(MapGroupNorm(12, affine=affine)), torch.randn(batch, 5, 4, 12) + 2
            close(norms._on_cuda(x, norm.weight, norm.bias, norm.eps), norm(x).double(), 1e-5)
            scaled = norms._on_cuda(x, torch.full((12,), 2.0), None, norm.eps)
            close(scaled, F.group_norm(x.double().permute(0, 3, 1, 2), 1, eps=norm.eps).permute(0, 2, 3, 1) * 2, 1e-5)


@pytest.mark.skipif(HAS_CUDA, reason="is about a machine whose kernels fail")
def test_kernels_that_do_not_run_are_said_once_and_left_alone(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(eager, "_kernels_run", {})
    with pytest.warns(UserWarning, match="plain operators are used"):
        assert not eager._have_kernels(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not eager._have_kernels(0)
        monkeypatch.setenv("VISIONMLP_CUDA_KERNELS", "0")
        assert not eager._have_kernels(1)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert not eager._have_kernels(2)
    assert eager._kernels_run == {0: False, 1: False}
