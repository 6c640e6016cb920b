"""Feature pyramids: exact where a level is the model's own, in place where it is not."""

import copy
import pickle
import re

import pytest
import timm
import torch
from torch import nn

import visionmlp
from tests.contracts.conftest import TINY
from tests.models.levels import STRIDES, assert_levels, dense, image, tiny, windows_net
from tests.randomise import randomise
from visionmlp.errors import InvalidConfig, InvalidImageSize, UnknownModel
from visionmlp.models.dense import BackboneLevels, Interpolate, Pyramid, Tiled, resample


@pytest.fixture(params=TINY)
def name(request):
    return request.param


# BackboneLevels ------------------------------------------------------------------------------------------------------


def test_levels_are_those_of_timm(name):
    model = tiny(name)
    net = BackboneLevels(model)
    features = timm.create_model(name, features_only=True).double().eval()
    features.model.load_state_dict(model.state_dict(), strict=False)
    assert net.feature_info.channels() == features.feature_info.channels()
    assert net.feature_info.reduction() == features.feature_info.reduction()
    with torch.no_grad():
        assert_levels(net(image()), features(image()), 0.0)


def test_the_model_is_copied_and_stays_whole(name):
    model = tiny(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    net = visionmlp.dense_features(model, out_indices=[0])
    assert net.net.model.num_classes == 0
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model(image()).shape == (2, 10)


def test_levels_that_are_asked_for():
    model = tiny("mlpmixer_test")
    whole = model.forward_intermediates(image(), intermediates_only=True)
    net = BackboneLevels(model, out_indices=[1, -3, 1])
    assert net.out_indices == [0, 1]
    assert len(net.model.stages[0].blocks) == 2
    assert_levels(net(image()), whole[:2], 0.0)


def test_a_model_of_multiples_takes_any_size():
    """Zeros on the right and at the bottom, and no positions beyond the image."""
    model = tiny("repmlpnet_test")
    x = image(2, (45, 70))
    padded = torch.zeros(2, 3, 64, 96, dtype=torch.float64)
    padded[..., :45, :70] = x
    expected = model.forward_intermediates(padded, intermediates_only=True)
    sizes = [(12, 18), (6, 9), (3, 5)]
    assert_levels(BackboneLevels(model)(x), [e[..., :h, :w] for e, (h, w) in zip(expected, sizes, strict=True)], 0.0)


def test_the_whole_image_gates_a_model_of_multiples_and_windows_gate_themselves():
    model = tiny("repmlpnet_test")
    x = image(1, (32, 64))
    whole, windows = BackboneLevels(model)(x), Tiled(BackboneLevels(model))(x)
    assert (whole[0] - windows[0]).abs().max() > 1e-3
    local = tiny("repmlpnet_test", global_perceptron=False)
    assert_levels(BackboneLevels(local)(x), Tiled(BackboneLevels(local))(x))


# Pyramid -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(32, 32), (45, 70)])
def test_every_family_gives_four_strides(name, size):
    net = dense(name, tile_overlap=0)
    assert net.feature_info.reduction() == STRIDES
    for out_channels in (None, 24):
        net = dense(name, tile_overlap=0, out_channels=out_channels)
        levels = net(image(2, size))
        assert [level.shape[1] for level in levels] == net.feature_info.channels()
        assert [level.shape[2:] for level in levels] == [(-(-size[0] // s), -(-size[1] // s)) for s in STRIDES]
        if out_channels:
            assert net.feature_info.channels() == [24] * 4


@pytest.mark.parametrize("patch", [4, 6, 7, 14, 16, 32])
def test_any_patch_size_gives_four_strides(patch):
    model = tiny("mlpmixer_test", img_size=8 * patch, patch_size=patch, depth=4)
    net = visionmlp.dense_features(model).double()
    side = 8 * patch
    assert [level.shape[2:] for level in net(image(1, (side, side)))] == [(-(-side // s),) * 2 for s in STRIDES]


def test_a_network_with_these_strides_is_left_as_it_is():
    model = tiny("repmlpnet_test", img_size=64, blocks=(1, 1, 2, 1), share_sets=(1, 2, 4, 8))
    net = visionmlp.dense_features(model)
    x = image(1, (64, 64))
    assert_levels(net(x), model.forward_intermediates(x, intermediates_only=True), 0.0)
    assert net.feature_info.reduction() == STRIDES
    assert {key.removeprefix("net.model.") for key in net.state_dict()} < set(model.state_dict())
    three = visionmlp.dense_features(model, out_indices=[0, 1, 2])
    assert three.sources == [0, 1, 2, 2]


def test_levels_come_from_evenly_spaced_blocks():
    for depth, blocks in ((12, [2, 5, 8, 11]), (24, [5, 11, 17, 23]), (2, [0, 1])):
        net = visionmlp.dense_features(visionmlp.create_model("mlpmixer_test", depth=depth))
        assert net.net.out_indices == blocks
    assert net.sources == [0, 0, 1, 1]
    assert visionmlp.dense_features("mlpmixer_test", out_indices=[2]).sources == [0, 0, 0, 0]


def test_levels_of_a_pyramid_are_normalised_and_resampled():
    net = dense("resmlp_test", out_channels=24)
    given = net.net(image())
    up = net.levels[0][2]
    finish = (
        lambda x: nn.functional.conv_transpose2d(x, up.weight, up.bias, stride=2),
        lambda x: x,
        lambda x: nn.functional.max_pool2d(x, 2),
        lambda x: nn.functional.max_pool2d(x, 4),
    )
    for level, (norm, project, *_), source, last in zip(net(image()), net.levels, net.sources, finish, strict=True):
        x = given[source].permute(0, 2, 3, 1)
        x = nn.functional.layer_norm(x, (16,), norm.weight, norm.bias, norm.eps) @ project.weight.flatten(1).t()
        torch.testing.assert_close(level, last(x.permute(0, 3, 1, 2) + project.bias[:, None, None]))


def test_what_layers_a_stride_needs():
    def kinds(*strides):
        return [type(layer).__name__ for layer in resample(8, *strides)]

    assert kinds(16, 16) == []
    assert kinds(16, 8) == ["ConvTranspose2d"]
    assert kinds(16, 4) == ["ConvTranspose2d", "LayerNorm2d", "GELU", "ConvTranspose2d"]
    assert kinds(16, 32) == ["MaxPool2d"]
    assert kinds(14, 16) == ["Interpolate", "Conv2d"]
    assert kinds(14, 32) == ["MaxPool2d", "Interpolate", "Conv2d"]
    assert kinds(7, 4) == ["ConvTranspose2d", "Interpolate", "Conv2d"]


@pytest.mark.parametrize(("stride", "target"), [(14, 16), (7, 8), (12, 16), (5, 4)])
@pytest.mark.parametrize("count", [8, 11])
def test_interpolation_keeps_positions_in_place(stride, target, count):
    """A map that holds the pixel of each of its positions holds the pixel of each new position afterwards."""
    pixels = (torch.arange(count, dtype=torch.float64) + 0.5) * stride
    x = torch.stack([pixels[:, None].expand(count, count), pixels.expand(count, count)])[None]
    y = nn.Sequential(*resample(2, stride, target)).double()(x)
    needed = -(-count * stride // target)
    assert min(y.shape[2:]) >= needed
    expected = (torch.arange(needed, dtype=torch.float64) + 0.5) * target
    inside = (expected >= pixels[0]) & (expected <= pixels[-1])
    assert inside.sum() > needed - 3
    # a fresh 3x3 convolution is the identity
    torch.testing.assert_close(y[0, 0, :needed, 2][inside], expected[inside], rtol=0, atol=1e-9)
    torch.testing.assert_close(y[0, 1, 2, :needed][inside], expected[inside], rtol=0, atol=1e-9)


def test_interpolation_to_whole_numbers_is_that_of_torch():
    x = torch.randn(1, 2, 8, 16, dtype=torch.float64)
    expected = nn.functional.interpolate(x, size=(7, 14), mode="bilinear", align_corners=False)
    torch.testing.assert_close(Interpolate(7 / 8)(x)[..., :7, :14], expected, rtol=1e-12, atol=1e-12)


def test_pyramid_stands_on_windows():
    """The seams of windows are those of the levels only: a pyramid of the merged levels."""
    net = dense("resmlp_test", tile_overlap=0)
    plain = Pyramid(net.net.net).double().eval()
    plain.load_state_dict({key.replace("net.net.", "net."): value for key, value in net.state_dict().items()})
    with torch.no_grad():
        assert_levels(net(image()), plain(image()))
        x = image(1, (32, 64))
        alone = plain(x[..., :32])
        for both, one in zip(net(x)[1:], alone[1:], strict=True):
            torch.testing.assert_close(both[..., : one.shape[3]], one, rtol=1e-12, atol=1e-12)


# What every part of a network promises -------------------------------------------------------------------------------


@pytest.mark.parametrize("pyramid", [True, False])
def test_gradients_reach_every_parameter(name, pyramid):
    net = randomise(visionmlp.dense_features(name, pyramid=pyramid, tile_overlap=0)).train()
    sum(level.square().sum() for level in net(image(2, (64, 64), torch.float32))).backward()
    assert not [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


def test_deploy_forms_before_and_after(name):
    model = tiny(name)
    net = randomise(visionmlp.dense_features(model, tile_overlap=0)).double().eval()
    model.load_state_dict(net.net.net.model.state_dict(), strict=False)
    after = visionmlp.reparameterize(net)
    before = visionmlp.dense_features(visionmlp.reparameterize(model), tile_overlap=0)
    before.levels.load_state_dict(net.levels.state_dict())
    x = image(2, (40, 50))
    with torch.no_grad():
        assert_levels(after(x), net(x), 1e-10)
        assert_levels(before.double().eval()(x), net(x), 1e-10)
    inner = after.net.net.model
    assert inner.feature_info == net.net.net.model.feature_info
    assert not any(isinstance(module, visionmlp.Fusible) for module in after.modules())


def test_deploy_form_of_pruned_stages_keeps_its_feature_info():
    features = timm.create_model("repmlpnet_test", features_only=True, out_indices=(0,)).double().eval()
    randomise(features)
    deployed = visionmlp.reparameterize(features)
    assert deployed.model.feature_info == features.model.feature_info
    with torch.no_grad():
        assert_levels(deployed(image()), features(image()), 1e-10)


@pytest.mark.parametrize(("overlap", "size"), [(None, (56, 56)), (28, (100, 60))])
def test_exports_with_dynamic_batch(overlap, size):
    model = tiny("mlpmixer_test", img_size=56, patch_size=7).float()
    net = randomise(visionmlp.dense_features(model, tile_overlap=overlap)).eval()
    x = image(3, size, torch.float32)
    program = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=2**31 - 1)},))
    for batch in (1, 5):
        x = image(batch, size, torch.float32)
        with torch.no_grad():
            assert_levels(program.module()(x), net(x), 1e-4)


@pytest.mark.parametrize(("form", "overlap"), [("multiples", None), ("windows", 28)])
def test_compiles_without_graph_breaks(form, overlap):
    """The parts of this file; that backbones compile is their contract."""
    name, fields = ("repmlpnet_test", {}) if form == "multiples" else ("resmlp_test", {"img_size": 56, "patch_size": 7})
    net = randomise(visionmlp.dense_features(tiny(name, **fields).float(), tile_overlap=overlap)).eval()
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    x = image(2, (60, 100), torch.float32)
    with torch.no_grad():
        assert_levels(compiled(x), net(x), 1e-4)


def test_copies_pickles_and_low_precision(name):
    net = dense(name, tile_overlap=0).float()
    x = image(2, (40, 50), torch.float32)
    with torch.no_grad():
        expected = net(x)
        for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            assert_levels(twin(x), expected, 0.0)
        with torch.autocast("cpu", torch.bfloat16):
            autocast = net(x)
        half = net.bfloat16()(x.bfloat16())
    for levels in (autocast, half):
        for got, level in zip(levels, expected, strict=True):
            assert (got.float() - level).abs().max() < 0.1 * level.abs().max()


# Errors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (UnknownModel, "resmlp_s24", lambda: visionmlp.dense_features("resmlp_24")),
        (
            InvalidConfig,
            "a model of visionmlp or its name, got Linear",
            lambda: visionmlp.dense_features(nn.Linear(1, 1)),
        ),
        (InvalidConfig, "levels 0 to 2, got [3]", lambda: visionmlp.dense_features("resmlp_test", out_indices=[3])),
        (InvalidConfig, "levels 0 to 2, got []", lambda: visionmlp.dense_features("resmlp_test", out_indices=[])),
        (InvalidConfig, "levels 0 to 2, got 4", lambda: visionmlp.create_model("resmlp_test").take_levels(4)),
        (InvalidConfig, "pyramid=True", lambda: visionmlp.dense_features("resmlp_test", pyramid=False, out_channels=8)),
        (InvalidConfig, "at least 1, got 0", lambda: visionmlp.dense_features("resmlp_test", out_channels=0)),
        (
            InvalidConfig,
            "multiple of 8 from 0 to 24, got 4",
            lambda: visionmlp.dense_features("resmlp_test", tile_overlap=4),
        ),
        (InvalidConfig, "from 0 to 24, got 32", lambda: visionmlp.dense_features("resmlp_test", tile_overlap=32)),
        (InvalidConfig, "from 0 to 24, got -8", lambda: visionmlp.dense_features("resmlp_test", tile_overlap=-8)),
        (InvalidConfig, "overlap from 16 to 48", lambda: windows_net("repmlpnet_test", taper=True)),
        (InvalidConfig, "max_windows must be at least 1", lambda: windows_net("repmlpnet_test", max_windows=0)),
        (
            InvalidConfig,
            "out_indices of at most as many",
            lambda: visionmlp.dense_features(tiny("resmlp_test", depth=5), out_indices=range(5)),
        ),
    ],
)
def test_errors_name_what_works(error, message, call):
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_an_image_of_another_size_names_windows():
    net = visionmlp.dense_features("resmlp_test")
    with pytest.raises(InvalidImageSize, match=r"exactly 32x32, got 40x50.*tile_overlap=0"):
        net(torch.zeros(1, 3, 40, 50))
    assert len(visionmlp.dense_features("resmlp_test", tile_overlap=0)(torch.zeros(1, 3, 40, 50))) == 4
