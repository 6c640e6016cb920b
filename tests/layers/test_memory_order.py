"""Deploy forms keep the order of their weights in memory to themselves: any format stores them, and it comes back."""

import copy
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file, save_model
from torch import nn

import visionmlp
from tests.randomise import randomise
from visionmlp.layers.memory_order import keep_order

TINY = visionmlp.list_models(test=True)


def strides(model: nn.Module) -> list[tuple[int, ...]]:
    return [value.stride() for value in model.parameters()]


@pytest.mark.parametrize("name", TINY)
@torch.inference_mode()
def test_safetensors_takes_every_deploy_form_and_it_comes_back_bit_equal(name, tmp_path):
    model = randomise(visionmlp.create_model(name)).eval()
    deployed = visionmlp.reparameterize(model)
    assert any(not value.is_contiguous() for value in deployed.parameters()), "nothing is to be restored"
    save_file(deployed.state_dict(), tmp_path / "deploy.safetensors")
    save_model(deployed, str(tmp_path / "again.safetensors"))
    x = torch.randn(2, 3, 32, 32)
    expected = deployed(x)
    assert expected.std() > 0.01
    for assign in (False, True):
        with torch.device("meta" if assign else "cpu"):
            other = visionmlp.reparameterize(visionmlp.create_model(name).eval())
        other.load_state_dict(load_file(tmp_path / "deploy.safetensors"), assign=assign)
        assert strides(other) == strides(deployed)
        assert torch.equal(other(x), expected)


@pytest.fixture
def layer() -> nn.Linear:
    layer = nn.Linear(3, 5)
    layer.weight = nn.Parameter(torch.randn(3, 5).t())
    keep_order(layer)
    return layer


def test_copies_keep_the_order_too(layer):
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer).double()):
        assert other.weight.stride() == (1, 5)
        assert other.state_dict()["weight"].is_contiguous()
        other.load_state_dict(nn.Linear(3, 5).state_dict(), assign=True)
        assert other.weight.stride() == (1, 5)
        assert other.weight.dtype == torch.float32
        assert isinstance(other.weight, nn.Parameter)


def test_parameters_stay_parameters_and_wrong_shapes_stay_wrong(layer):
    assert layer.state_dict(keep_vars=True)["weight"] is layer.weight
    with pytest.raises(RuntimeError, match="size mismatch"):
        layer.load_state_dict(nn.Linear(5, 3).state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        layer.load_state_dict({"bias": torch.zeros(5)})
