"""What eager inference computes in parts, or several layers at once, equals what it computes whole and one by one."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import visionmlp
from tests.randomise import randomise
from visionmlp.layers import channel_mlp, token_mixing
from visionmlp.layers.channel_mlp import DeployedMLP
from visionmlp.layers.linear import Linear
from visionmlp.models import stage


@pytest.mark.parametrize("name", visionmlp.list_models(test=True))
@torch.inference_mode()
def test_parts_of_batches_and_maps(name, monkeypatch):
    deployed = visionmlp.reparameterize(randomise(visionmlp.create_model(name)).eval())
    images = torch.randn(5, 3, 32, 32)
    whole = deployed(images)
    calls = []
    monkeypatch.setattr(channel_mlp, "_HIDDEN_PART", 1000)
    monkeypatch.setattr(stage, "_PART", 4000)
    monkeypatch.setattr(token_mixing, "images_at_once", lambda x: calls.append(x.shape) or 2)
    torch.testing.assert_close(deployed(images), whole, rtol=1e-4, atol=1e-5)
    assert bool(calls) == name.startswith(("resmlp", "mlpmixer", "sparsemlp"))
    # the last part is an image alone
    assert all(len(shape) == 4 and shape[2] == 5 for shape in calls)


def test_a_norm_in_training_mode_sees_the_whole_batch(monkeypatch):
    """Statistics are measured anew with the rest of the model in evaluation mode."""
    monkeypatch.setattr(stage, "_PART", 4000)
    model = randomise(visionmlp.create_model("hiremlp_test")).eval()
    for module in model.modules():
        module.train(isinstance(module, nn.BatchNorm2d))
    twin = copy.deepcopy(model)
    images = torch.randn(6, 3, 32, 32) * torch.linspace(0.2, 3, 6)[:, None, None, None]
    expected = model(images).detach()
    with torch.no_grad():
        torch.testing.assert_close(twin(images), expected, rtol=1e-4, atol=1e-5)
    for (name, mine), (_, other) in zip(twin.named_buffers(), model.named_buffers(), strict=True):
        torch.testing.assert_close(mine, other, msg=name)


class _Adapted(Linear):
    def forward(self, input):
        return super().forward(input) + 1


def _adapt(layer):
    layer.__class__ = _Adapted


def _replace(layer):
    layer.forward = lambda x: x.new_ones(*x.shape[:-1], layer.out_features)


def _prune(layer):
    prune.custom_from_mask(layer, "weight", torch.rand_like(layer.weight) > 0.5)
    with torch.no_grad():
        layer.weight_orig.mul_(3)


def _normalise(layer):
    nn.utils.parametrizations.weight_norm(layer)
    with torch.no_grad():
        layer.parametrizations.weight.original0.mul_(3)


@pytest.mark.parametrize("name", visionmlp.list_models(test=True))
@pytest.mark.parametrize(
    "change",
    [
        _adapt,
        _replace,
        _prune,
        _normalise,
        lambda layer: layer.register_forward_hook(lambda _module, _inputs, result: result * 2),
        lambda layer: layer.register_forward_pre_hook(lambda _module, inputs: (inputs[0] * 2,)),
    ],
    ids=["subclass", "forward", "prune", "weight_norm", "hook", "pre_hook"],
)
def test_what_was_done_to_a_linear_layer_counts_without_gradient_too(name, change, monkeypatch):
    monkeypatch.setattr(channel_mlp, "_HIDDEN_PART", 1000)
    torch.manual_seed(0)
    deployed = visionmlp.reparameterize(randomise(visionmlp.create_model(name)).eval())
    images = torch.randn(2, 3, 32, 32)
    before = deployed(images).detach()
    for module in list(deployed.modules()):
        if type(module) is Linear:
            change(module)
    deployed(images)  # pruned weights are made by calls
    expected = deployed(images).detach()
    assert (expected - before).abs().max() > 0.01 * before.abs().max()
    with torch.no_grad():
        torch.testing.assert_close(deployed(images), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_every_hook_is_called_once_with_the_whole_batch(monkeypatch):
    monkeypatch.setattr(channel_mlp, "_HIDDEN_PART", 1000)
    deployed = visionmlp.reparameterize(visionmlp.create_model("asmlp_test").eval())
    rows = []
    mlp = next(module for module in deployed.modules() if isinstance(module, DeployedMLP))
    for module in (mlp.fc1, mlp.act, mlp.fc2):
        module.register_forward_hook(lambda _module, inputs, _result: rows.append(inputs[0].shape[0]))
    with torch.no_grad():
        deployed(torch.randn(3, 3, 32, 32))
    assert len(rows) == 3
    assert len(set(rows)) == 1


def test_another_activation_may_stand_in_a_channel_mlp():
    deployed = visionmlp.reparameterize(randomise(visionmlp.create_model("resmlp_test")).eval())
    for module in deployed.modules():
        if isinstance(module, DeployedMLP):
            module.act = nn.ReLU()
    images = torch.randn(2, 3, 32, 32)
    expected = deployed(images).detach()
    with torch.no_grad():
        torch.testing.assert_close(deployed(images), expected, rtol=1e-4, atol=1e-5)


def test_autocast_gives_one_dtype_for_all_batches(monkeypatch):
    deployed = visionmlp.reparameterize(randomise(visionmlp.create_model("resmlp_test")).eval())
    dtypes = set()
    for part in (1000, 1 << 30):
        monkeypatch.setattr(channel_mlp, "_HIDDEN_PART", part)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            dtypes.add(deployed.forward_features(torch.randn(3, 3, 32, 32)).dtype)
    assert dtypes == {torch.float32}
