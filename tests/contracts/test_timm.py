"""timm's contract beyond the forward pass, its suite in our words: configurations, classifiers, decay, tracing."""

import copy
import inspect
from typing import Any

import pytest
import timm
import torch
from timm.data import resolve_model_data_config
from timm.layers import TestTimePoolHead as PoolHead
from timm.layers import apply_test_time_pool, create_feature_extractor, get_graph_node_names
from timm.models import model_parameters
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn

import visionmlp
from tests.contracts.conftest import TINY
from tests.randomise import randomise
from visionmlp.errors import InvalidConfig, InvalidImageSize, UnknownOption

FULL = ["repmlpnet_t224", "repmlpnet_cifar", "resmlp_s12", "asmlp_t", "cyclemlp_b1"]
"""On the meta device, where only the configuration counts."""


def images(*size, batch=2):
    return torch.randn(batch, 3, *(size or (32, 32)), generator=torch.Generator().manual_seed(1))


def of_form(model, form):
    return visionmlp.reparameterize(model) if form == "deploy" else model


# configuration -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*FULL, *TINY])
def test_the_configuration_describes_the_model(name):
    """Sizes of the last map, widths, names of the first and the last layer, with and without classifier and pooling."""
    model = timm.create_model(name, device="meta", dtype=torch.bfloat16).eval()
    assert {value.device.type for value in model.state_dict().values()} == {"meta"}
    cfg, rows, columns = model.default_cfg, *((1, 2) if model.output_fmt == "NHWC" else (2, 3))
    x = torch.empty(1, *cfg["input_size"], device="meta", dtype=torch.bfloat16)
    assert model.in_chans == cfg["input_size"][0]
    last = model.forward_features(x)
    assert (last.shape[rows], last.shape[columns]) == cfg["pool_size"]
    assert last.shape[model.feature_dim] == model.num_features == model.head_hidden_size
    assert model.forward_head(last, pre_logits=True).shape == (1, model.head_hidden_size)
    assert model(x).dtype == torch.bfloat16
    for layer in (cfg["first_conv"], cfg["classifier"]):
        assert f"{layer}.weight" in model.state_dict()
    model.reset_classifier(0)
    assert model(x).shape == (1, model.num_features)
    model.reset_classifier(0, "")
    assert model(x).shape == last.shape
    for pool, shape in (("avg", (1, model.num_features)), ("", last.shape)):
        assert timm.create_model(name, device="meta", num_classes=0, global_pool=pool)(x.float()).shape == shape


def test_the_configuration_follows_the_model(name):
    model = timm.create_model(name, img_size=(64, 32), in_chans=4)
    cfg = resolve_model_data_config(model)
    assert cfg["input_size"] == (4, 64, 32)
    assert len(cfg["mean"]) == len(cfg["std"]) == 4
    with torch.no_grad():
        last = model.eval().forward_features(torch.randn(1, 4, 64, 32))
    assert model.pretrained_cfg["pool_size"] == (last.shape[1:3] if model.output_fmt == "NHWC" else last.shape[2:])
    levels = timm.create_model(name, img_size=(64, 32), in_chans=4, features_only=True)
    assert resolve_model_data_config(levels)["input_size"] == (4, 64, 32)
    assert resolve_model_data_config(timm.create_model(name))["input_size"] == (3, 32, 32)


def test_unknown_arguments_are_type_errors(name):
    with pytest.raises(TypeError, match=f"{name} has no option 'not_an_argument'"):
        timm.create_model(name, not_an_argument=1)
    for option in ("form", "device", "dtype"):
        with pytest.raises(UnknownOption, match=f"{option} is an option of timm"):
            visionmlp.create_model(name, **{option: "deploy"})
    with pytest.raises(InvalidConfig, match="form must be 'training' or 'deploy', got 'folded'"):
        timm.create_model(name, form="folded")


# classifier ----------------------------------------------------------------------------------------------------------


def test_a_fresh_classifier_follows_its_model(model):
    model = model.double().requires_grad_(False)
    model.reset_classifier(0, "")
    assert not [n for n, p in model.named_parameters() if p.requires_grad]
    model.reset_classifier(3)  # needs a pooled map
    assert model.global_pool == "avg"
    assert model(images().double()).shape == (2, 3)
    assert not any(module.training for module in model.modules())
    assert model.to("meta").get_classifier().weight.dtype == torch.float64
    model.reset_classifier(2)
    assert model.get_classifier().weight.is_meta


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in TINY),
        *((f"{prefix}_test", {"feature_norms": True}) for prefix in ("asmlp", "hiremlp", "cyclemlp")),
        ("resmlp_test", {"global_pool": "class_mlp"}),
    ],
)
def test_the_classifier_comes_last(name, options):
    """``exclude_head`` of timm's gradient clipping leaves out the last two parameters."""
    model = visionmlp.create_model(name, **options)
    head = {id(p) for p in model.get_classifier().parameters()}
    assert {id(p) for p in model.parameters()} - {id(p) for p in model_parameters(model, exclude_head=True)} == head


# weight decay --------------------------------------------------------------------------------------------------------

DECAY = [
    *((name, {}) for name in TINY),
    ("resmlp_test", {"global_pool": "class_mlp", "kernel_sizes": (3,), "norm": "layernorm"}),
    ("resmlp_test", {"cross_patch": "separable"}),
    ("hiremlp_test", {"feature_norms": True, "region_padding": "zero"}),
    ("dynamixer_test", {"mixing": "random"}),
    ("dynamixer_test", {"mixing": "dense"}),
]


@pytest.mark.parametrize("form", ["training", "deploy"])
@pytest.mark.parametrize(("name", "options"), DECAY)
def test_only_matrices_and_kernels_decay(name, options, form):
    """In timm's optimizers, layer decay too, and by our own list alone: no bias of any rank, no scale, no logits."""
    model = of_form(visionmlp.create_model(name, **options).eval(), form)
    names = {id(p): n for n, p in model.named_parameters()}
    rest = ("bias", "logits", "shift", "alpha", "beta", "gamma", "scale", "class_vector")
    matrices = {n for n, p in model.named_parameters() if p.dim() > 1 and n.rpartition(".")[2] not in rest}
    assert {n.rpartition(".")[2] for n in matrices} <= {"weight", "fc3"}
    exempt = model.no_weight_decay()
    # older timms leave out one dimension always
    newer = "weight_decay_exclude_1d" in inspect.signature(param_groups_weight_decay).parameters
    by_list: dict[str, Any] = {"weight_decay_exclude_1d": False} if newer else {}
    for groups in (
        param_groups_weight_decay(model, 0.1, no_weight_decay_list=exempt),
        param_groups_weight_decay(model, 0.1, no_weight_decay_list=exempt, **by_list),
        param_groups_layer_decay(model, 0.1, no_weight_decay_list=exempt),
    ):
        decayed = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
        assert decayed == matrices
        assert sum(len(group["params"]) for group in groups) == len(names)


def test_stacked_biases_have_two_dimensions():
    model = visionmlp.create_model("sparsemlp_moe_test")
    stacked = {n for n, p in model.named_parameters() if n.endswith(".bias") and p.dim() == 2}
    assert len(stacked) == 8
    assert stacked <= model.no_weight_decay()


@pytest.mark.parametrize("prefix", ["asmlp", "hiremlp", "cyclemlp"])
def test_norms_of_levels_learn_like_their_stage(prefix):
    from timm.models import group_parameters

    model = visionmlp.create_model(f"{prefix}_test", feature_norms=True)
    layer = group_parameters(model, model.group_matcher(), reverse=True)
    for i, stage in enumerate(model.stages):
        last = f"stages.{i}.blocks.{len(stage.blocks) - 1}."
        of_norm = {layer[n] for n in layer if n.startswith(f"feature_norms.{i}.")}
        assert of_norm == {layer[n] for n in layer if n.startswith(last)}


# tracing -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["training", "deploy"])
def test_fx_sees_plain_operators(model, form):
    model = of_form(model, form)
    graph = create_feature_extractor(model, [get_graph_node_names(model)[1][-1]])
    targets = " ".join(str(node.target) for node in graph.graph.nodes)
    assert "linear" in targets
    assert "mkldnn" not in targets
    with torch.no_grad():
        for batch in (2, 3):
            (logits,) = graph(images(batch=batch)).values()
            torch.testing.assert_close(logits, model(images(batch=batch)), rtol=1e-4, atol=1e-4)
        if model.input_sizes != "any":
            with pytest.raises(AssertionError, match="does not take images of this height"):
                graph(images(36, 32))


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_gradients_through_fx_reach_every_parameter(name, rate):
    """Drop-path and all: a graph leaves out what is computed in place and taken from elsewhere."""
    model = randomise(visionmlp.create_model(name, drop_path_rate=rate)).train()
    twin = copy.deepcopy(model)
    graph = create_feature_extractor(model, [get_graph_node_names(model)[0][-1]])
    torch.manual_seed(0)
    (logits,) = graph(images(batch=4)).values()
    logits.square().sum().backward()
    torch.manual_seed(0)
    twin(images(batch=4)).square().sum().backward()
    gradients = {n: p.grad for n, p in graph.named_parameters()}
    for n, p in twin.named_parameters():
        torch.testing.assert_close(gradients[n], p.grad, rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("form", ["training", "deploy"])
def test_torchscript(model, form):
    model = of_form(model, form)
    scripted = torch.jit.script(model)
    with torch.no_grad():
        for batch in (2, 3):
            x = images(batch=batch)
            torch.testing.assert_close(scripted(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("hiremlp_test", {"step_padding": "zero", "region_padding": "zero"}),
        ("hiremlp_test", {"step_padding": "zero", "region_padding": "replicate"}),
        ("repmlpnet_test", {"window_order": "authors"}),
        ("resmlp_test", {"global_pool": "class_mlp"}),
        ("cyclemlp_test", {"reweight": False}),
    ],
)
@pytest.mark.parametrize("form", ["training", "deploy"])
def test_options_and_sizes_are_traced(name, options, form):
    """A trace decides nothing by the size of its images: the graph takes those that the model takes."""
    model = of_form(randomise(visionmlp.create_model(name, **options)).eval(), form)
    scripted = torch.jit.script(model)
    with torch.no_grad():
        for size in {"fixed": [(32, 32)], "multiples": [(32, 32), (64, 96)], "any": [(32, 32), (45, 51)]}[
            model.input_sizes
        ]:
            torch.testing.assert_close(scripted(images(*size)), model(images(*size)), rtol=1e-4, atol=1e-4)


# larger images -------------------------------------------------------------------------------------------------------


def test_test_time_pooling():
    model = randomise(timm.create_model("repmlpnet_test")).eval()
    twin = copy.deepcopy(model)
    assert apply_test_time_pool(model, {"input_size": (3, 32, 32)}) == (model, False)
    pooled, applied = apply_test_time_pool(model, {"input_size": (3, 64, 64)})
    assert applied
    with torch.no_grad():
        windows = nn.functional.avg_pool2d(twin.forward_features(images(64, 64)), twin.default_cfg["pool_size"], 1)
        logits = twin.get_classifier()(windows.permute(0, 2, 3, 1)).flatten(1, 2)
        expected = (logits.mean(1) + logits.amax(1)) / 2
        torch.testing.assert_close(pooled(images(64, 64)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", sorted(set(TINY) - {"repmlpnet_test"}))
def test_test_time_pooling_of_other_models_is_no_silent_error(name):
    """Models of one size name it; timm pools channels-first maps, so that its classifier does not fit the others."""
    head = PoolHead(timm.create_model(name).eval(), (4, 4))
    with pytest.raises((InvalidImageSize, RuntimeError), match=r"takes exactly 32x32|to have \d+ channels"):
        head(images(64, 64))
