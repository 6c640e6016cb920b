"""What the papers state about each family's options, and the authors' initialisation."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import visionmlp
from visionmlp.errors import InvalidConfig


def cost(name: str, **options) -> tuple[float, float]:
    """Millions of parameters, thousand millions of MACs."""
    with torch.device("meta"):
        model = visionmlp.create_model(name, **options).eval()
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, *model.config.img_size, device="meta"))
    return sum(p.numel() for p in model.parameters()) / 1e6, counter.get_total_flops() / 2e9


@pytest.mark.parametrize(
    ("options", "params", "macs"),
    [
        ({}, 15.4, 3.0),
        ({"norm": "layernorm"}, 15.4, 3.0),
        ({"global_pool": "class_mlp"}, 17.7, 3.0),
        ({"cross_patch": "none"}, 14.9, 2.8),
        ({"cross_patch": "mlp"}, 18.6, 4.3),
        ({"cross_patch": "conv3x3"}, 30.8, 6.0),
        ({"cross_patch": "depthwise"}, 14.9, 2.8),
        ({"cross_patch": "separable"}, 16.7, 3.2),
        ({"patch_size": 14}, 15.6, 4.0),
        ({"patch_size": 8}, 22.1, 14.0),
    ],
)
def test_resmlp_table_3(options, params, macs):
    got = cost("resmlp_s12", **options)
    assert got[0] == pytest.approx(params, abs=0.051)
    # the paper's count of the MLP row is 4.3; products alone give 4.249
    assert got[1] == pytest.approx(macs, abs=0.055)


@pytest.mark.parametrize(
    ("share_sets", "gate", "params", "macs"),
    [
        ((1, 4, 16, 128), False, 37.8, 2.8),
        ((1, 4, 16, 128), True, 38.3, 2.8),
        ((2, 8, 32, 256), False, 66.7, 2.8),
        ((2, 8, 32, 256), True, 67.2, 2.8),
    ],
)
def test_repmlpnet_table_4(share_sets, gate, params, macs):
    got = cost("repmlpnet_t224", share_sets=share_sets, global_perceptron=gate, kernel_sizes=())
    assert got[0] == pytest.approx(params, abs=0.051)
    assert got[1] == pytest.approx(macs, abs=0.055)


def test_repmlpnet_table_5():
    params, macs = cost("repmlpnet_cifar", kernel_sizes=())
    assert params == pytest.approx(8.3, abs=0.05)
    assert macs * 1e3 == pytest.approx(468, abs=0.5)
    # "+294K", "+2654K" and "+2949K" multiply-accumulates of the branches
    for sizes, extra in (((1,), 294e3), ((3,), 2654e3), ((1, 3), 2949e3)):
        assert (cost("repmlpnet_cifar", kernel_sizes=sizes)[1] - macs) * 1e9 == pytest.approx(extra, abs=1000)


def test_resmlp_initialisation():
    torch.manual_seed(0)
    for name, scale in (("resmlp_s12", 0.1), ("resmlp_s24", 1e-5), ("resmlp_s36", 1e-6), ("resmlp_b24", 1e-6)):
        from visionmlp.models.registry import variant

        assert variant(name).config.layer_scale == scale  # type: ignore[attr-defined]
    model = visionmlp.create_model("resmlp_s12", depth=2)
    block = model.stages[0].blocks[1]
    assert torch.all(block.scale1.gamma == 0.1)
    assert torch.all(block.scale2.gamma == 0.1)
    for layer in (block.spatial.fc, block.channel.fc1, block.channel.fc2, model.head.fc):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.03)
        assert not layer.bias.any()
    assert torch.all(block.norm1.alpha == 1)
    assert not block.norm1.beta.any()
    bound = (3 * 16 * 16) ** -0.5  # PyTorch's default for a convolution
    assert model.stem.proj.weight.abs().max().item() == pytest.approx(bound, rel=0.01)


def test_mixer_initialisation():
    torch.manual_seed(0)
    model = visionmlp.create_model("mlpmixer_s16", depth=1)
    block = model.stages[0].blocks[0]
    for layer, fan_in in ((block.spatial.fc1, 196), (block.channel.fc2, 2048), (model.stem.proj, 768)):
        std = fan_in**-0.5
        assert layer.weight.std().item() == pytest.approx(std, rel=0.02)
        assert layer.weight.abs().max().item() < 2.3 * std  # truncated at two standard deviations of the normal
        assert not layer.bias.any()
    assert not model.head.fc.weight.any()
    assert block.norm1.eps == 1e-6
    assert block.spatial.act.approximate == block.channel.act.approximate == "tanh"


def test_repmlpnet_initialisation_is_pytorchs():
    torch.manual_seed(0)
    model = visionmlp.create_model("repmlpnet_cifar")
    spatial = model.stages[0].blocks[0].spatial
    assert spatial.fc3.abs().max().item() == pytest.approx(256**-0.5, rel=0.001)
    assert spatial.fc3.std().item() == pytest.approx(256**-0.5 / 3**0.5, rel=0.01)
    assert all(torch.all(m.running_var == 1) for m in model.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resmlp_test", {"norm": "batch"}, "norm must be one of affine, layernorm"),
        ("resmlp_test", {"cross_patch": "attention"}, "cross_patch must be one of linear"),
        ("resmlp_test", {"global_pool": "max"}, "global_pool must be"),
        ("mlpmixer_test", {"global_pool": "class_mlp"}, "global_pool must be"),
        ("mlpmixer_test", {"global_pool": "", "num_classes": 3}, "num_classes=0"),
        ("mlpmixer_test", {"drop_path_rate": 1.0}, r"drop_path_rate must be in \[0, 1\)"),
        ("repmlpnet_test", {"share_sets": (1, 4)}, "one entry for each stage"),
        ("repmlpnet_test", {"share_sets": (3, 4, 32)}, "8 channels cannot share 3 sets"),
        ("repmlpnet_test", {"kernel_sizes": (3, 3)}, "differ from each other"),
        ("repmlpnet_test", {"kernel_sizes": (4,)}, "odd and positive"),
        ("repmlpnet_test", {"reduction": 3}, "reduction 3 does not divide 8"),
        ("repmlpnet_test", {"window_order": "random"}, "'paper' or 'authors'"),
        ("repmlpnet_test", {"embed_kernel": 4}, "2, or odd from 3 on, to halve the map, got 4"),
        ("repmlpnet_test", {"embed_kernel": 1}, "2, or odd from 3 on, to halve the map, got 1"),
        ("repmlpnet_test", {"embed_depthwise": 2}, "embed_depthwise must be odd to keep the map, got 2"),
        ("repmlpnet_test", {"num_classes": -1}, "num_classes must be at least 0"),
    ],
)
def test_rules_are_named(name, options, message):
    with pytest.raises(InvalidConfig, match=message):
        visionmlp.create_model(name, **options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resmlp_test", {"patch_size": -4}, "patch_size must be at least 1"),
        ("resmlp_test", {"depth": 0}, "depth must be at least 1"),
        ("resmlp_test", {"mlp_ratio": -1.0}, "mlp_ratio must be positive"),
        ("resmlp_test", {"kernel_sizes": 3}, "kernel_sizes must be integers"),
        ("resmlp_test", {"kernel_sizes": (-1,)}, "try 1"),
        ("resmlp_test", {"img_size": (32,)}, "img_size must be two integers"),
        ("resmlp_test", {"img_size": 32.0}, "img_size must be two integers"),
        ("resmlp_test", {"num_classes": "10"}, "num_classes must be an integer"),
        ("resmlp_test", {"drop_rate": "a"}, "drop_rate must be a number"),
        ("resmlp_test", {"layer_scale": float("nan")}, "layer_scale must be a number"),
        ("mlpmixer_test", {"dim": 0}, "dim must be at least 1"),
        ("repmlpnet_test", {"reduction": 0}, "reduction must be at least 1"),
        ("repmlpnet_test", {"blocks": 3}, "blocks must be integers"),
        ("repmlpnet_test", {"blocks": (1, 0, 1)}, "blocks must be at least 1"),
        ("repmlpnet_test", {"global_perceptron": 1}, "global_perceptron must be a bool"),
    ],
)
def test_types_and_sizes_are_named(name, options, message):
    with pytest.raises(InvalidConfig, match=message):
        visionmlp.create_model(name, **options)


@pytest.mark.parametrize(("name", "std"), [("resmlp_test", 0.02), ("mlpmixer_test", 0.0)])
def test_a_reset_classifier_starts_like_a_new_one(name, std):
    model = visionmlp.create_model(name).double()
    model.reset_classifier(400)
    classifier = model.get_classifier()
    assert classifier.weight.std().item() == pytest.approx(std, rel=0.05)
    assert classifier.weight.dtype == torch.float64
    assert not classifier.bias.any()


def test_a_reset_pool_starts_like_a_new_one():
    model = visionmlp.create_model("resmlp_test").double()
    model.reset_classifier(3, "class_mlp")
    assert model(torch.randn(2, 3, 32, 32).double()).shape == (2, 3)
    assert model.head.pool.layers[0].channel.fc1.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_window_orders_agree_at_native_size_only():
    from tests.randomise import randomise

    paper = randomise(visionmlp.create_model("repmlpnet_test")).eval()
    authors = randomise(visionmlp.create_model("repmlpnet_test", window_order="authors")).eval()
    with torch.no_grad():
        native, larger = torch.randn(2, 3, 32, 32), torch.randn(2, 3, 32, 64)
        assert torch.equal(paper(native), authors(native))
        assert not torch.allclose(paper(larger), authors(larger))


def test_windows_of_a_larger_image_are_treated_like_images():
    """Without the Global Perceptron, every window's map is what the window alone would give (paper, section 5.3)."""
    from tests.randomise import randomise

    model = randomise(visionmlp.create_model("repmlpnet_test", global_perceptron=False)).eval()
    with torch.no_grad():
        image = torch.randn(1, 3, 64, 96)
        whole = model.forward_features(image)
        assert whole.shape[2:] == (4, 6)
        alone = model.forward_features(image[:, :, 32:, 32:64])
    torch.testing.assert_close(whole[:, :, 2:, 2:4], alone, rtol=1e-4, atol=1e-5)
