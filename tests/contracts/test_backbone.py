"""What every backbone promises: timm's contract, once for all families."""

import copy
import dataclasses
import pickle

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

import visionmlp
from tests.contracts.conftest import TINY
from tests.randomise import randomise
from tests.shallow import FEWEST
from visionmlp.errors import InvalidConfig, InvalidImageSize, UnknownModel
from visionmlp.models.registry import variant


def image(batch=2, size=(32, 32), dtype=torch.float32):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("name", [*visionmlp.list_models(), *TINY])
def test_parameters_and_macs_equal_the_table(name):
    with torch.device("meta"):
        model = visionmlp.create_model(name).eval()
    entry = variant(name)
    assert sum(p.numel() for p in model.parameters()) == entry.params
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, *entry.img_size, device="meta"))
    assert counter.get_total_flops() == 2 * entry.macs
    if entry.published.params:
        # papers round, mostly to a tenth of a million; the Mixer row is quoted without its classifier
        assert entry.params == pytest.approx(entry.published.params, rel=0.016)
        rounded = round(entry.macs / 1e9, 1) == entry.published.macs / 1e9
        assert rounded or entry.macs == pytest.approx(entry.published.macs, rel=0.016)


def test_every_name_of_the_architecture_is_there():
    names = {
        "RepMLPNet": ("repmlpnet", "t224 b224 t256 b256 d256 l256 cifar"),
        "ResMLP": ("resmlp", "s12 s24 s36 b24 s12_p14 s12_p8 b24_p8"),
        "MLP-Mixer": ("mlpmixer", "s32 s16 b32 b16 l32 l16 h14"),
        "AS-MLP": ("asmlp", "t s b"),
        "Hire-MLP": ("hiremlp", "t s b l"),
        "Vision Permutator": ("vip", "s14 s7 m7 l7"),
        "CycleMLP": ("cyclemlp", "b1 b2 b3 b4 b5"),
        "DynaMixer": ("dynamixer", "s m l"),
        "Sparse-MLP (MoE)": ("sparsemlp_moe", "s b l"),
    }
    for family, (prefix, variants) in names.items():
        expected = [f"{prefix}_{v}" for v in variants.split()]
        assert set(visionmlp.list_models(family)) == set(expected)
        assert visionmlp.list_models(prefix) == visionmlp.list_models(family)
        assert visionmlp.list_models(family, test=True) == [f"{prefix}_test"]
    assert len(visionmlp.list_models()) == sum(len(variants.split()) for _, variants in names.values())
    with pytest.raises(UnknownModel, match="ResMLP"):
        visionmlp.list_models("resnet")


def test_forward_is_features_then_head(model):
    x = image()
    with torch.no_grad():
        features = model.forward_features(x)
        torch.testing.assert_close(model.forward_head(features), model(x))
        pooled = model.forward_head(features, pre_logits=True)
        assert pooled.shape == (2, model.num_features)
        torch.testing.assert_close(model.get_classifier()(pooled), model(x))
    assert model(x).std() > 0.01


def test_gradients_reach_every_parameter(name):
    model = randomise(visionmlp.create_model(name)).train()
    model(image(4)).square().sum().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


def test_rows_of_a_batch_are_independent(model):
    x = image(3)
    with torch.no_grad():
        whole = model(x)
        x[1] = 7.0
        changed = model(x)
    torch.testing.assert_close(whole[[0, 2]], changed[[0, 2]])
    assert (whole[1] - changed[1]).abs().max() > 1e-3


def test_fully_reads_its_input(model):
    x = image(1).requires_grad_()
    model(x).square().sum().backward()
    assert (x.grad.abs() > 0).float().mean() > 0.99


def test_state_dict_pickle_and_deepcopy_round_trip(model, name):
    x = image()
    with torch.no_grad():
        expected = model(x)
        other = visionmlp.create_model(name).eval()
        assert not torch.equal(other(x), expected)
        other.load_state_dict(model.state_dict())
        for twin in (other, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(twin(x), expected)


def test_features_have_the_promised_channels_and_strides(name):
    net = timm.create_model(name, features_only=True).eval()
    levels = net(image())
    assert [level.shape[1] for level in levels] == net.feature_info.channels()
    assert [32 // level.shape[2] for level in levels] == net.feature_info.reduction()
    assert [level.shape[2:] for level in levels] == [(32 // r, 32 // r) for r in net.feature_info.reduction()]


def test_features_only_through_timm_has_four_levels():
    net = timm.create_model("repmlpnet_t224", features_only=True)
    assert net.feature_info.reduction() == [4, 8, 16, 32]
    assert net.feature_info.channels() == [64, 128, 256, 512]
    two = timm.create_model("repmlpnet_t224", features_only=True, out_indices=(1, 2))
    assert [tuple(f.shape) for f in two(torch.randn(1, 3, 224, 224))] == [(1, 128, 28, 28), (1, 256, 14, 14)]
    assert len(two.model.stages) == 3, "the stage that nobody asked for is pruned"
    assert timm.create_model("repmlpnet_t224", num_classes=10).get_classifier().out_features == 10


def test_intermediates_agree_with_the_forward_pass(model):
    x = image()
    with torch.no_grad():
        last, levels = model.forward_intermediates(x)
        torch.testing.assert_close(last, model.forward_features(x))
        assert len(levels) == len(model.feature_info)
        first = model.forward_intermediates(x, indices=[0], stop_early=True, intermediates_only=True)
        torch.testing.assert_close(first[0], levels[0])
        normed = model.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)[0]
        torch.testing.assert_close(normed, visionmlp.ops.layout.to_channels_first(last, model.layout))
        nhwc = model.forward_intermediates(x, output_fmt="NHWC", intermediates_only=True)
        nlc = model.forward_intermediates(x, output_fmt="NLC", intermediates_only=True)
        for a, b, c in zip(levels, nhwc, nlc, strict=True):
            torch.testing.assert_close(a.permute(0, 2, 3, 1), b)
            torch.testing.assert_close(a.flatten(2).transpose(1, 2), c)
    with pytest.raises(InvalidConfig, match="NCHW"):
        model.forward_intermediates(x, output_fmt="NHCW")


def test_classifier_is_reset(model):
    model.reset_classifier(4)
    assert model.num_classes == 4
    assert model(image()).shape == (2, 4)
    model.reset_classifier(0)
    pooled = model(image())
    assert pooled.shape == (2, model.num_features)
    model.reset_classifier(0, global_pool="")
    unpooled = model(image())
    assert unpooled.dim() == 4
    assert unpooled.shape[model.feature_dim] == model.num_features
    assert torch.equal(unpooled, model.forward_features(image()))
    torch.testing.assert_close(unpooled.mean((1, 2) if model.output_fmt == "NHWC" else (2, 3)), pooled)
    with pytest.raises(InvalidConfig, match="num_classes=0"):
        model.reset_classifier(3, global_pool="")
    model.reset_classifier(3)
    assert model(image()).shape == (2, 3)


def test_checkpointing_changes_memory_not_gradients(name):
    gradients = []
    for enable in (False, True):
        model = randomise(visionmlp.create_model(name)).eval()
        model.set_grad_checkpointing(enable)
        blocks = [module for module in model.modules() if type(module).__name__.endswith("Block")]
        calls = []
        handle = blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))  # noqa: B023
        model(image()).square().sum().backward()
        handle.remove()
        assert len(calls) == (2 if enable else 1)
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    for key, value in gradients[0].items():
        torch.testing.assert_close(value, gradients[1][key])


def test_layer_groups_cover_every_parameter(model):
    from timm.models import group_parameters

    for coarse in (False, True):
        groups = group_parameters(model, model.group_matcher(coarse=coarse))
        assert sorted(n for names in groups.values() for n in names) == sorted(n for n, _ in model.named_parameters())
    assert len(group_parameters(model, model.group_matcher())) >= sum(len(s.blocks) for s in model.stages)


def test_drop_path_is_random_in_training_and_off_in_evaluation(name):
    model = randomise(visionmlp.create_model(name, drop_path_rate=0.9)).eval()
    reference = randomise(visionmlp.create_model(name)).eval()
    x = image(8)
    with torch.no_grad():
        assert torch.equal(model(x), reference(x))
        for module in model.modules():
            if "Norm" not in type(module).__name__:
                module.training = True
        assert not torch.equal(model(x), reference(x))


def test_dropout_rates_have_an_effect(name):
    known = {field.name for field in dataclasses.fields(variant(name).config)}
    fields = sorted(known & {"drop_rate", "proj_drop_rate"})
    assert fields[0] == "drop_rate"
    for field in fields:
        model = randomise(visionmlp.create_model(name, **{field: 0.5}))
        for module in model.modules():
            module.training = isinstance(module, torch.nn.Dropout)
        assert not torch.equal(model(image()), model(image())), field


def test_bfloat16_and_autocast_stay_close(model):
    x = image()
    with torch.no_grad():
        expected = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            autocast = model(x)
        half = model.bfloat16()(x.bfloat16())
    for got in (autocast, half):
        assert (got.float() - expected).abs().max() < 0.1 * expected.abs().max()


def test_channels_last_input_gives_the_same(model):
    x = image()
    with torch.no_grad():
        torch.testing.assert_close(model(x.to(memory_format=torch.channels_last)), model(x))


def test_one_step_lowers_the_loss(name):
    torch.manual_seed(0)
    model = visionmlp.create_model(name).train()
    x, y = image(8), torch.arange(8) % 10
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(5):
        loss = torch.nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("form", ["training", "deploy"])
def test_tracing_sees_every_operation(model, form):
    """Deploy forms reuse memory in eager inference; a tracer must get plain operators, for any batch."""
    if form == "deploy":
        model = visionmlp.reparameterize(model)
    with torch.no_grad():
        traced = torch.jit.trace(model, image(2), check_trace=False)
        torch.testing.assert_close(traced(image(3)), model(image(3)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", ["training", "deploy"])
def test_compiles_without_graph_breaks(name, form):
    """``torch.compile(fullgraph=True)``, the training form backward too; aot_eager captures what inductor would."""
    model = randomise(visionmlp.create_model(name, **FEWEST.get(name, {}))).eval()
    if form == "deploy":
        model = visionmlp.reparameterize(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = image()
    with torch.set_grad_enabled(form == "training"):  # one graph for a test
        out = compiled(x)
        torch.testing.assert_close(out, model(x), rtol=1e-4, atol=1e-4)
    if form == "training":
        out.square().sum().backward()
        assert not [n for n, p in model.named_parameters() if p.grad is None]


def test_wrong_sizes_and_channels_name_what_works(model, name):
    with pytest.raises(InvalidConfig, match=r"\(B, 3, H, W\)"):
        model(torch.zeros(1, 1, 32, 32))
    if model.input_sizes == "any":
        least = model.least_side
        assert model(image(1, (least, 48))).shape == (1, 10)
        with pytest.raises(InvalidImageSize, match=f"{least}x{least} on"):
            model(image(1, (48, least - 1)))
        return
    with pytest.raises(InvalidImageSize, match=r"32x32.*48x48") as info:
        model(image(1, (48, 48)))
    assert "img_size" in str(info.value)
    with pytest.raises(InvalidImageSize, match=r"33x33.*32x32"):
        visionmlp.create_model(name, img_size=33)


@pytest.mark.parametrize("size", [64, (64, 32)])
def test_other_sizes(name, size):
    pair = (size, size) if isinstance(size, int) else size
    model = randomise(visionmlp.create_model(name, img_size=size)).double().eval()
    assert visionmlp.models.checkpoint.default_preprocessing(model)["input_size"] == (3, *pair)
    deployed = visionmlp.reparameterize(model)
    # a family of any size is not bound to the one that it was built for
    sizes = [pair, (45, 33), (32, 77)] if model.input_sizes == "any" else [pair]
    for given in sizes:
        x = image(2, given, torch.float64)
        with torch.no_grad():
            expected = model(x)
            assert expected.shape == (2, 10)
            torch.testing.assert_close(deployed(x), expected, rtol=1e-10, atol=1e-10)
            levels = model.forward_intermediates(x, intermediates_only=True)
        for level, stride in zip(levels, (info["reduction"] for info in model.feature_info), strict=True):
            assert all(abs(level.shape[2 + i] - given[i] / stride) < 1 for i in (0, 1))


def test_unknown_names_and_fields_suggest_the_nearest():
    with pytest.raises(UnknownModel, match="resmlp_s24"):
        visionmlp.create_model("resmlp_24")
    with pytest.raises(InvalidConfig, match="did you mean kernel_sizes"):
        visionmlp.create_model("resmlp_test", kernel_size=3)


def test_layout_of_names(model):
    names = {n for n, _ in model.named_modules()}
    for path in ("stem", "stages.0.blocks.0.norm1", "stages.0.blocks.0.spatial", "norm", "head.fc"):
        assert path in names
    for path in ("stages.0.blocks.0.norm2", "stages.0.blocks.0.channel"):
        assert path in names
