"""Packed models compute what their deploy forms compute, and nothing else can be done with them."""

import copy
import io
import threading

import pytest
import torch
from torch import nn

import visionmlp
from tests.randomise import randomise
from visionmlp.deploy.graphs import export_program
from visionmlp.errors import InvalidConfig
from visionmlp.layers.packing import PackedConv2d, PackedLinear
from visionmlp.ops import product

pytestmark = pytest.mark.skipif(product._LINEAR is None, reason="this PyTorch or this CPU has no oneDNN product")


@pytest.fixture(params=visionmlp.list_models(test=True))
def deployed(request):
    return visionmlp.reparameterize(randomise(visionmlp.create_model(request.param)).eval())


def test_packed_models_compute_the_same(deployed):
    packed = visionmlp.prepack(deployed)
    assert any(isinstance(module, PackedLinear) for module in packed.modules())
    assert not any(module.training for module in packed.modules())
    for batch in (1, 3, 0):
        images = torch.randn(batch, 3, 32, 32)
        with torch.inference_mode():
            torch.testing.assert_close(packed(images), deployed(images), rtol=1e-4, atol=1e-4)
    with torch.inference_mode():
        expected = deployed.double()(torch.ones(1, 3, 32, 32).double())
        # the deploy form was not touched, and its change does not reach the packed one
        torch.testing.assert_close(packed(torch.ones(1, 3, 32, 32)).double(), expected, rtol=1e-4, atol=1e-4)


def test_packed_models_compute_in_eager_inference_only(deployed):
    packed = visionmlp.prepack(deployed)
    with pytest.raises(InvalidConfig, match="eager inference only"):
        packed(torch.randn(1, 3, 32, 32))
    with pytest.raises(InvalidConfig, match="cannot be saved"):
        packed.state_dict()
    with pytest.raises(InvalidConfig, match="cannot be saved"):
        torch.save(packed, io.BytesIO())
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), pytest.raises(InvalidConfig, match="autocast"):
        packed(torch.randn(1, 3, 32, 32))
    with torch.inference_mode():
        torch.testing.assert_close(copy.deepcopy(packed)(torch.ones(1, 3, 32, 32)), packed(torch.ones(1, 3, 32, 32)))


def test_bfloat16_packs_too():
    deployed = visionmlp.reparameterize(randomise(visionmlp.create_model("hiremlp_test")).eval())
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        expected = deployed(images)
        logits = visionmlp.prepack(deployed.bfloat16())(images.bfloat16())
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - expected).norm() < 0.05 * expected.norm()


def test_training_forms_are_refused():
    with pytest.raises(InvalidConfig, match="reparameterize"):
        visionmlp.prepack(visionmlp.create_model("resmlp_test").eval())


def test_layers_with_hooks_are_not_packed():
    deployed = visionmlp.reparameterize(randomise(visionmlp.create_model("cyclemlp_test")).eval())
    for module in deployed.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_hook(lambda _module, _inputs, result: result * 2)
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(visionmlp.prepack(deployed)(images), deployed(images), rtol=1e-4, atol=1e-4)


def test_convolutions_pack():
    deployed = visionmlp.reparameterize(visionmlp.create_model("cyclemlp_test").eval())
    packed = visionmlp.prepack(deployed)
    assert sum(isinstance(module, PackedConv2d) for module in packed.modules()) == 2


@pytest.mark.parametrize("options", [{"padding": 1}, {"padding": "same"}, {"padding": 1, "padding_mode": "reflect"}])
def test_convolutions_of_any_padding_and_images_without_a_batch(options):
    plain = nn.Sequential(nn.Conv2d(3, 8, 3, **options)).eval()
    packed = visionmlp.prepack(plain)
    with torch.inference_mode():
        for images in (torch.randn(2, 3, 9, 9), torch.randn(3, 9, 9)):
            torch.testing.assert_close(packed(images), plain(images), rtol=1e-4, atol=1e-5)


def test_images_of_another_width_are_refused_by_their_shapes():
    deployed = visionmlp.reparameterize(visionmlp.create_model("resmlp_test").eval())
    layer = next(module for module in visionmlp.prepack(deployed).modules() if isinstance(module, PackedLinear))
    with torch.inference_mode(), pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        layer(torch.randn(4, layer.in_features + 1))


def test_packed_models_serve_while_another_thread_exports():
    deployed = visionmlp.reparameterize(randomise(visionmlp.create_model("vip_test")).eval())
    packed, images = visionmlp.prepack(deployed), torch.randn(2, 3, 32, 32)
    results, errors, serves, ends = [], [], threading.Event(), threading.Event()

    def serve():
        with torch.inference_mode():
            expected = packed(images)
            serves.set()
            while not ends.is_set():
                try:
                    results.append(torch.allclose(packed(images), expected, rtol=1e-4, atol=1e-5))
                except Exception as error:
                    errors.append(error)

    server = threading.Thread(target=serve)
    server.start()
    try:
        assert serves.wait(60)
        for _ in range(3):
            export_program(deployed, images, batch=2)
    finally:
        ends.set()
        server.join()
    assert not errors
    assert len(results) > 1
    assert all(results)
