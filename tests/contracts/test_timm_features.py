"""Feature levels as timm's wrappers take them: getter, hooks, rebuilt chains, graphs; pruning; early ends."""

import copy

import pytest
import timm
import torch
from timm.models import FeatureDictNet, FeatureListNet

import visionmlp
from tests.contracts.conftest import TINY
from tests.randomise import randomise
from visionmlp.errors import InvalidConfig, InvalidImageSize
from visionmlp.models import stage
from visionmlp.ops.layout import to_channels_first


def images(*size):
    return torch.randn(2, 3, *(size or (32, 32)), generator=torch.Generator().manual_seed(1))


def features(name, state, **options):
    """A features-only net with given weights."""
    overlay = {"state_dict": state}
    net = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, features_only=True, **options)
    return net.eval()


def channels_first(levels, net):
    levels = list(levels.values()) if isinstance(levels, dict) else levels
    return [level if net.output_fmt == "NCHW" else level.permute(0, 3, 1, 2) for level in levels]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("out_indices", [None, (0, -1)])
@pytest.mark.parametrize("cls", ["list", "dict", "hook", "fx", FeatureListNet])
def test_every_wrapper_gives_the_levels(model, name, cls, out_indices):
    options = {} if out_indices is None else {"out_indices": out_indices}
    getter = features(name, model.state_dict(), **options)
    net = features(name, model.state_dict(), feature_cls=cls, **options)
    x = images()
    with torch.no_grad():
        levels, expected = channels_first(net(x), net), getter(x)
        for got, level, dim, stride in zip(
            levels, expected, net.feature_info.channels(), net.feature_info.reduction(), strict=True
        ):
            torch.testing.assert_close(got, level, rtol=1e-4, atol=1e-4)
            assert got.shape == (2, dim, 32 // stride, 32 // stride)
        own = model.forward_intermediates(x, indices=list(getter.out_indices), intermediates_only=True)
        for got, level in zip(expected, own, strict=True):
            torch.testing.assert_close(got, level)
        assert net.feature_info.channels() == getter.feature_info.channels()
    body = {"hook": getattr(net, "body", None), "fx": None}.get(cls, net) if isinstance(cls, str) else net
    if body is not None:
        assert all(body.get_submodule(module) is not None for module in net.feature_info.module_name())
    if cls != "fx" and cls != "hook" and model.input_sizes != "any":
        with pytest.raises(InvalidImageSize):
            net(images(36, 36))


@pytest.mark.parametrize("form", ["training", "deploy"])
def test_module_names_of_levels_are_theirs(model, form):
    """A hook on the module that ``feature_info`` names sees the level."""
    if form == "deploy":
        model = visionmlp.reparameterize(model)
    seen = {}
    for info in model.feature_info:
        model.get_submodule(info["module"]).register_forward_hook(
            lambda _module, _inputs, output, key=info["module"]: seen.setdefault(key, output)
        )
    with torch.no_grad():
        model(images())
        levels = model.forward_intermediates(images(), intermediates_only=True)
    for info, level in zip(model.feature_info, levels, strict=True):
        hooked = to_channels_first(seen[info["module"]], model.layout)
        torch.testing.assert_close(hooked, level)
        assert level.shape == (2, info["num_chs"], 32 // info["reduction"], 32 // info["reduction"])


def test_hooks_see_the_batch(monkeypatch):
    """Blocks compute a batch of large maps in parts; not where somebody watches them."""
    monkeypatch.setattr(stage, "_PART", 1)
    model = randomise(visionmlp.create_model("vip_test")).eval()
    sizes = []
    with torch.no_grad():
        unwatched = model(images())
        block = model.stages[1].blocks[0]
        forward = type(block).forward
        monkeypatch.setattr(
            type(block), "forward", lambda own, x: (own is block and sizes.append(len(x)), forward(own, x))[1]
        )
        model(images())
        assert sizes == [1, 1]
        sizes.clear()
        block.register_forward_pre_hook(lambda _module, _inputs: None)
        torch.testing.assert_close(model(images()), unwatched)
        assert sizes == [2]


def test_feature_cfg_is_merged():
    net = timm.create_model("resmlp_test", features_only=True, feature_cfg={"feature_cls": "dict", "out_indices": (1,)})
    assert isinstance(net, FeatureDictNet)
    assert list(net(images())) == ["1"]
    assert len(timm.create_model("resmlp_test", features_only=True, feature_cfg={"feature_cls": "hook"})(images())) == 3
    # what stands beside it wins, and the default levels are those of the model as asked for
    assert len(timm.create_model("resmlp_test", features_only=True, feature_cfg={}, out_indices=(0, 2))(images())) == 2
    deep = timm.create_model("resmlp_test", features_only=True, depth=8)
    assert deep.feature_info.out_indices == (1, 3, 5, 7)
    assert timm.create_model("asmlp_test", features_only=True, blocks=[8]).feature_info.out_indices == (1, 3, 5, 7)
    assert timm.create_model("asmlp_test", features_only=True, blocks=[1, 1, 1]).feature_info.out_indices == (0, 1, 2)


@pytest.mark.parametrize("cls", ["list", "dict", "hook", "fx", FeatureListNet])
def test_norms_of_levels_are_not_left_out_in_silence(cls):
    with pytest.raises(InvalidConfig, match="without their feature_norms; use 'getter'"):
        timm.create_model("hiremlp_test", features_only=True, feature_norms=True, feature_cls=cls)
    timm.create_model("hiremlp_test", features_only=True, feature_norms=True, feature_cls="getter")


def test_an_early_end_gives_its_level_as_the_last_map(model):
    with torch.no_grad():
        whole, levels = model.forward_intermediates(images())
        last, (level,) = model.forward_intermediates(images(), indices=[0], stop_early=True)
        torch.testing.assert_close(to_channels_first(last, model.layout), levels[0])
        torch.testing.assert_close(level, levels[0])
        torch.testing.assert_close(model.forward_intermediates(images(), indices=[-1], stop_early=True)[0], whole)
        torch.testing.assert_close(model.forward_intermediates(images(), indices=[0])[0], whole)


def test_pruned_models_end_at_their_level(model):
    x = images()
    with torch.no_grad():
        levels = model.forward_intermediates(x, intermediates_only=True)
        logits = model(x)
        kept = copy.deepcopy(model)
        assert kept.prune_intermediate_layers([-1], prune_head=False) == [len(levels) - 1]
        torch.testing.assert_close(kept(x), logits)
    for index, level in enumerate(levels):
        pruned = copy.deepcopy(model)
        assert pruned.prune_intermediate_layers([index], prune_norm=True) == [index]
        with torch.no_grad():
            torch.testing.assert_close(to_channels_first(pruned.forward_features(x), model.layout), level)
            torch.testing.assert_close(
                visionmlp.reparameterize(pruned).forward_intermediates(x, intermediates_only=True)[-1],
                level,
                rtol=1e-4,
                atol=1e-4,
            )
        pruned.train()
        sum(map(torch.sum, pruned.forward_intermediates(x, indices=[index], intermediates_only=True))).backward()
        assert not [n for n, p in pruned.named_parameters() if p.grad is None]
        pruned.reset_classifier(7)
        assert pruned(x).shape == (2, 7)
        assert pruned.forward_head(pruned.forward_features(x), pre_logits=True).shape == (2, level.shape[1])
        assert pruned.num_features == pruned.head_hidden_size == level.shape[1]


@pytest.mark.parametrize("name", TINY)
def test_the_final_norm_goes_with_its_stage(name):
    """With ``norm=True`` too: a norm of another width must neither be applied nor stay without gradient."""
    net = timm.create_model(name, features_only=True, out_indices=(0,), feature_cfg={"norm": True}).train()
    sum(map(torch.sum, net(images()))).backward()
    assert not [n for n, p in net.named_parameters() if p.grad is None]
