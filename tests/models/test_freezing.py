"""Frozen parts rest: weights, statistics, drop-path and dropout; norms that others froze fold."""

import copy

import pytest
import torch
from timm.layers import BatchNormAct2d, DropPath
from timm.utils.model import freeze_batch_norm_2d
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

import visionmlp
from tests.randomise import randomise
from visionmlp.errors import InvalidConfig
from visionmlp.models.registry import variant

TINY = visionmlp.list_models(test=True)
WITH_BATCH_NORM = ["repmlpnet_test", "hiremlp_test"]


def image(seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture(params=TINY)
def model(request):
    rates = {"drop_path_rate": 0.5}
    if "proj_drop_rate" in vars(variant(request.param).config):
        rates["proj_drop_rate"] = 0.5
    model = randomise(visionmlp.create_model(request.param, **rates)).train()
    for module in model.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.5  # the first blocks too
    return model


def frozen_names(model: nn.Module) -> set[str]:
    """Entries of the state dict that rest when the stem and the first level do."""
    (stage, last), *_ = model.feature_points
    rests = ("stem.", f"stages.{stage}.downsample.", *(f"stages.{stage}.blocks.{i}." for i in range(last + 1)))
    return {name for name in model.state_dict() if name.startswith(rests)}


def test_frozen_parts_rest_and_the_others_train(model):
    before = copy.deepcopy(model.state_dict())
    visionmlp.freeze(model, levels=1)
    model.eval().train()  # twice: nothing wakes them
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(image()).square().sum().backward()
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    resting = frozen_names(model)
    assert resting
    assert not changed & resting
    assert any(name.startswith("head.") for name in changed)
    assert {name for name, value in model.named_parameters() if not value.requires_grad} == {
        name for name, _ in model.named_parameters() if name in resting
    }
    modules = dict(model.named_modules())
    asleep = {name for name, module in modules.items() if not module.training}
    assert {name for name in asleep if name.startswith("stages.")}
    for name, module in modules.items():
        rests = any(entry.startswith(f"{name}.") for entry in resting) and name not in ("stages", "stages.0")
        if isinstance(module, (DropPath, nn.Dropout, nn.BatchNorm2d)) and name.startswith(("stem", "stages")):
            parents = [name.rsplit(".", cut)[0] for cut in range(1, name.count(".") + 1)]
            rests = any(parent in model.resting for parent in parents)
            assert module.training != rests, name


def test_frozen_levels_give_the_same_map_every_time(model):
    """Drop-path and dropout are off there, and on behind."""

    def levels() -> list[torch.Tensor]:
        with torch.no_grad():
            return model.forward_intermediates(image(), intermediates_only=True)

    torch.manual_seed(0)
    assert not torch.equal(levels()[0], levels()[0])
    visionmlp.freeze(model, levels=1)
    first, second = levels(), levels()
    assert torch.equal(first[0], second[0])
    assert not torch.equal(first[-1], second[-1])


def test_what_is_not_named_any_more_trains_again(model):
    modes = {name: module.training for name, module in model.named_modules()}
    visionmlp.freeze(model, levels=len(model.feature_points))
    heads = ("norm.", "head.")
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n, _ in model.named_parameters() if n.startswith(heads)
    }
    visionmlp.freeze(model, levels=0, stem=True)
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == {
        n for n, _ in model.named_parameters() if n.startswith("stem.")
    }
    visionmlp.freeze(model, levels=0, stem=False)
    assert all(value.requires_grad for value in model.parameters())
    assert {name: module.training for name, module in model.named_modules()} == modes


def test_networks_around_a_backbone_copies_and_pruned_models(model):
    network = nn.Sequential(model, nn.Linear(10, 2))
    visionmlp.freeze(network, levels=1)
    for other in (network, copy.deepcopy(network)):
        other.eval()
        other.train()
        assert not other[0].stem.training
        assert other[1].training
    model.prune_intermediate_layers([0])
    assert not model.train().stem.training
    visionmlp.freeze(model, levels=1)
    deployed = visionmlp.reparameterize(model.eval())
    assert not any(p.requires_grad for p in deployed.stem.parameters())


def test_what_cannot_rest():
    model = visionmlp.create_model("resmlp_test")
    for options, message in (
        ({"levels": 4}, "has 3 levels to freeze, got 4"),
        ({"levels": -1}, "got -1"),
        ({"levels": 1, "stem": False}, "give stem=True"),
    ):
        with pytest.raises(InvalidConfig, match=message):
            visionmlp.freeze(model, **options)
    for other in (nn.Linear(2, 2), nn.Sequential(model, copy.deepcopy(model))):
        with pytest.raises(InvalidConfig, match="one backbone"):
            visionmlp.freeze(other, levels=1)


# norms that other libraries froze


def torchvision_frozen(model: nn.Module) -> nn.Module:
    for name, module in list(model.named_modules()):
        if type(module) is nn.BatchNorm2d:
            frozen = FrozenBatchNorm2d(module.num_features, eps=module.eps)
            frozen.load_state_dict(module.state_dict())
            model.get_submodule(name.rpartition(".")[0]).add_module(name.rpartition(".")[2], frozen)
    return model


def activated(model: nn.Module) -> nn.Module:
    """timm's norm with an activation of its own, which does nothing here."""
    for name, module in list(model.named_modules()):
        if type(module) is nn.BatchNorm2d:
            norm = BatchNormAct2d(module.num_features, eps=module.eps, apply_act=False)
            norm.load_state_dict(module.state_dict())
            model.get_submodule(name.rpartition(".")[0]).add_module(name.rpartition(".")[2], norm)
    return model


FREEZERS = {
    "timm": freeze_batch_norm_2d,
    "torchvision": torchvision_frozen,
    "timm with activation": lambda model: freeze_batch_norm_2d(activated(model)),
}


@pytest.mark.parametrize("name", WITH_BATCH_NORM)
@pytest.mark.parametrize("freezer", FREEZERS)
@torch.no_grad()
def test_frozen_norms_fold_and_are_saved(name, freezer, tmp_path):
    model = randomise(visionmlp.create_model(name, num_classes=4)).double().eval()
    expected = model(image(dtype=torch.float64))
    frozen = FREEZERS[freezer](copy.deepcopy(model)).double().eval()
    assert not [module for module in frozen.modules() if isinstance(module, nn.BatchNorm2d)]
    torch.testing.assert_close(frozen(image(dtype=torch.float64)), expected)
    deployed = visionmlp.reparameterize(frozen)
    torch.testing.assert_close(deployed(image(dtype=torch.float64)), expected, rtol=0, atol=1e-11)
    visionmlp.save_checkpoint(tmp_path / "frozen.safetensors", frozen)
    again, _ = visionmlp.load_checkpoint(tmp_path / "frozen.safetensors")
    assert torch.equal(again(image(dtype=torch.float64)), model(image(dtype=torch.float64)))
    # and what a trainer saves of it
    loaded = visionmlp.load_official(visionmlp.create_model(name, num_classes=4).double(), frozen.state_dict())
    assert torch.equal(loaded.eval()(image(dtype=torch.float64)), expected)
    if name == "repmlpnet_test":
        official = {key: value for key, value in model.to_official(model.state_dict()).items() if "num_" not in key}
        visionmlp.load_official(visionmlp.create_model(name, num_classes=4), {"model": official})


@pytest.mark.parametrize("name", WITH_BATCH_NORM)
@torch.no_grad()
def test_norms_without_affine_or_with_cumulative_averages_fold(name):
    model = randomise(visionmlp.create_model(name)).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.weight = module.bias = None  # type: ignore[assignment]
            module.affine = False
    expected = model(image(dtype=torch.float64))
    assert expected.std() > 0.01
    deployed = visionmlp.reparameterize(model)(image(dtype=torch.float64))
    torch.testing.assert_close(deployed, expected, rtol=0, atol=1e-11 * expected.abs().max().item())


@pytest.mark.parametrize("name", WITH_BATCH_NORM)
def test_norms_that_cannot_fold_are_named(name, tmp_path):
    model = visionmlp.create_model(name).eval()
    (path, norm), *_ = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d) and "stages.0" in n]
    parent, _, child = path.rpartition(".")
    block = ".".join(path.split(".")[:4])
    for other, message in (
        (nn.BatchNorm2d(norm.num_features, track_running_stats=False), "BatchNorm2d without running statistics"),
        (BatchNormAct2d(norm.num_features), "BatchNormAct2d with ReLU behind it cannot be folded"),
        (nn.InstanceNorm2d(norm.num_features), "InstanceNorm2d"),
    ):
        model.get_submodule(parent).add_module(child, other.eval())
        with pytest.raises(InvalidConfig, match=rf"^{block}: .*{message}") as error:
            visionmlp.reparameterize(model)
        assert "\n" not in str(error.value)
    with pytest.raises(visionmlp.VisionMLPError, match="nothing was written") as error:
        visionmlp.save_checkpoint(tmp_path / "m.safetensors", model)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())
