"""Packed models compute what their deploy forms compute, and nothing else can be done with them."""

import copy

import pytest
import torch

import visionmlp
from tests.randomise import randomise
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


def test_convolutions_pack():
    deployed = visionmlp.reparameterize(visionmlp.create_model("cyclemlp_test").eval())
    packed = visionmlp.prepack(deployed)
    assert sum(isinstance(module, PackedConv2d) for module in packed.modules()) == 2
