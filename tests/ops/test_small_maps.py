"""Gradients of small convolutions in bfloat16 against float64, with memory that was used before full of NaN."""

import shutil

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import visionmlp
from visionmlp.heads.conv import Conv
from visionmlp.layers.patch_embed import ConvEmbed


def fill_free_memory_with_nan() -> None:
    kept = [torch.full((2**power,), float("nan")) for power in range(6, 17) for _ in range(20)]
    del kept


@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "bfloat16 weights"])
@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 2), (2, 2), (3, 3), (4, 5)])
@pytest.mark.parametrize("kind", ["head", "embedding"])
def test_bfloat16_learns_from_maps_smaller_than_the_kernel(kind: str, size: tuple[int, int], autocast: bool) -> None:
    if kind == "head":
        layer = Conv(16, 24, 3, stride=2)
        conv = layer.conv
    else:
        layer = ConvEmbed(16, 24, 3, stride=2, padding=1, layout="BCHW")
        conv = layer.proj
    layer.bfloat16()
    weight, bias = conv.weight.detach().double().requires_grad_(), conv.bias.detach().double()
    if autocast:
        layer.float()
    for _ in range(5):
        image = torch.randn(2, 16, *size).bfloat16()
        expected = F.conv2d(image.double(), weight, bias, stride=2, padding=1)
        values = expected.detach()
        weights: Tensor = torch.randn_like(expected).bfloat16()
        (gradient,) = torch.autograd.grad((expected * weights.double()).sum(), weight)
        fill_free_memory_with_nan()
        conv.weight.grad = None
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            y = layer(image.clone().requires_grad_())
        assert y.dtype is torch.bfloat16
        y.backward(weights)
        torch.testing.assert_close(y.double(), values, rtol=0.01, atol=0.01 * float(values.abs().max()))
        torch.testing.assert_close(
            conv.weight.grad.double(), gradient, rtol=0.01, atol=0.01 * float(gradient.abs().max())
        )


def test_other_forms_of_a_network_in_bfloat16() -> None:
    segmenter = visionmlp.create_segmenter("cyclemlp_test", head="semantic_fpn", num_classes=3).eval()
    packed = visionmlp.prepack(visionmlp.reparameterize(segmenter).bfloat16())
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        logits = packed(image.bfloat16()).float()
        expected = segmenter(image)
    assert (logits - expected).norm() < 0.05 * expected.norm()


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_embedding_learns_from_small_maps_in_bfloat16() -> None:
    layer = ConvEmbed(16, 24, 3, stride=2, padding=1, layout="BHWC")
    compiled = torch.compile(layer, fullgraph=True)
    image = torch.randn(2, 16, 1, 2)
    expected = F.conv2d(image.double(), layer.proj.weight.double(), layer.proj.bias.double(), stride=2, padding=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = compiled(image)
    y.sum().backward()
    (gradient,) = torch.autograd.grad(expected.sum(), layer.proj.weight)
    torch.testing.assert_close(layer.proj.weight.grad, gradient, rtol=0.01, atol=0.01 * float(gradient.abs().max()))
