"""RepMLPNet's wider embeddings (section 5.3): the narrow ones before training, and then windows hear of each other."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import visionmlp
from tests.randomise import randomise
from visionmlp.errors import CheckpointMismatch
from visionmlp.models.dense import BackboneLevels

WIDE = [
    {"embed_kernel": 3},
    {"embed_kernel": 5},
    {"embed_depthwise": 3},
    {"embed_depthwise": 5},
    {"embed_kernel": 3, "embed_depthwise": 5},
]


def narrow(**options):
    return randomise(visionmlp.create_model("repmlpnet_test", **options)).double().eval()


def wide_of(model, **options):
    wide = visionmlp.create_model("repmlpnet_test", **options).double().eval()
    return visionmlp.load_official(wide, model.state_dict())


def image(*size: int) -> torch.Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("options", WIDE, ids=str)
@torch.no_grad()
def test_equal_before_training(options):
    """In both forms, also where kernels reach across windows and beyond the image."""
    model = narrow()
    wide = wide_of(model, **options)
    for x in (image(32, 32), image(64, 128)):
        expected = model(x)
        assert expected.std() > 0.01
        limit = 1e-12 * expected.abs().max().item()
        torch.testing.assert_close(wide(x), expected, rtol=0, atol=limit)
        torch.testing.assert_close(visionmlp.reparameterize(wide)(x), expected, rtol=0, atol=10 * limit)
    torch.testing.assert_close(wide.train()(image(32, 32)), model.train()(image(32, 32)), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("options", "far"), [({}, False), *[(options, True) for options in WIDE]], ids=str)
@torch.no_grad()
def test_windows_hear_of_their_neighbours(options, far):
    """Of one window's image nothing comes into the next window, but through kernels that reach across."""
    model = randomise(visionmlp.create_model("repmlpnet_test", global_perceptron=False, **options)).double().eval()
    x = image(32, 64)
    changed = x.clone()
    changed[..., :32] += 1
    before, after = model.forward_features(x)[..., 2:], model.forward_features(changed)[..., 2:]
    assert torch.equal(before, after) != far


def test_new_taps_learn():
    for options in WIDE:
        model = wide_of(narrow(), **options).train()
        model(image(96, 96)).square().sum().backward()
        for stage in model.stages[1:]:
            embed = stage.downsample
            taps = [embed.proj.weight] + ([embed.depthwise.weight] if "embed_depthwise" in options else [])
            for tap in taps:
                assert (tap.grad != 0).any((0, 1)).all(), f"{options}: a tap without gradient"


def test_the_kernels_are_where_section_5_3_needs_them():
    """2x2 of stride 2 is 3x3 with one row and column of zeros before it, 5x5 with two before and one behind."""
    kernel = nn.Conv2d(4, 8, 2, stride=2, bias=False).double().weight
    x = torch.randn(1, 4, 6, 10, dtype=torch.float64)
    for side, frame in ((3, (1, 0, 1, 0)), (5, (2, 1, 2, 1))):
        wide = F.conv2d(x, F.pad(kernel, frame), stride=2, padding=side // 2)
        torch.testing.assert_close(wide, F.conv2d(x, kernel, stride=2), rtol=0, atol=1e-14)
        state = wide_of(model := narrow(), embed_kernel=side).state_dict()
        name = "stages.1.downsample.proj.weight"
        assert torch.equal(state[name], F.pad(model.state_dict()[name], frame))


@torch.no_grad()
def test_checkpoints_of_all_kinds_start_wide_models(tmp_path):
    """Ours and the authors', behind prefixes; a wide one becomes wider, and rebuilds itself from its file."""
    model = narrow().float()
    x = image(64, 32).float()
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.pth"
    visionmlp.save_checkpoint(ours, model)
    torch.save({"model": {f"module.{k}": v for k, v in model.to_official(model.state_dict()).items()}}, theirs)
    for file in (ours, theirs):
        wide, _ = visionmlp.load_model("repmlpnet_test", checkpoint=file, embed_kernel=3, embed_depthwise=3)
        torch.testing.assert_close(wide(x), model(x), rtol=1e-4, atol=1e-5)
    again = tmp_path / "wide.safetensors"
    visionmlp.save_checkpoint(again, randomise(wide, seed=3))
    same, _ = visionmlp.load_model(again)
    assert same.config.embed_kernel == same.config.embed_depthwise == 3
    torch.testing.assert_close(same(x), wide(x), rtol=0, atol=0)
    wider, _ = visionmlp.load_model(again, embed_kernel=5, embed_depthwise=7)
    torch.testing.assert_close(wider(x), wide(x), rtol=1e-4, atol=1e-5)
    for options in ({"embed_kernel": 2}, {"embed_depthwise": 1}):
        with pytest.raises(CheckpointMismatch, match=r"stages\.1\.downsample"):
            visionmlp.load_model(again, **options)


def cost(size, **options) -> tuple[int, float]:
    """Parameters, and thousand millions of MACs of the four levels, without computing them."""
    with torch.device("meta"):
        levels = BackboneLevels(visionmlp.create_model("repmlpnet_d256", num_classes=0, **options).eval())
    with FlopCounterMode(display=False) as counter:
        maps = levels(torch.empty(1, 3, *size, device="meta"))
    assert [tuple(level.shape[2:]) for level in maps] == [(size[0] // s, size[1] // s) for s in (4, 8, 16, 32)]
    return sum(p.numel() for p in levels.parameters()), counter.get_total_flops() / 2e9


def test_table_6_is_depthwise():
    """RepMLPNet-D256 built for 256 pixels at Cityscapes' 1024x2048: 5x5 costs the paper 0.15 G more than 3x3."""
    size = (1024, 2048)
    (params3, macs3), (params5, macs5) = (cost(size, embed_depthwise=k) for k in (3, 5))
    assert macs5 - macs3 == pytest.approx(1960.16 - 1960.01, abs=0.005)
    assert params5 - params3 == 16 * (160 + 320 + 640)
    # 16 more taps from 80, 160 and 320 channels: what the text says would cost a hundred times as much
    dense3, dense5 = (cost(size, embed_kernel=k) for k in (3, 5))
    assert dense5[1] - dense3[1] == pytest.approx(20.1, abs=0.05)
    assert dense5[0] - dense3[0] == 16 * (80 * 160 + 160 * 320 + 320 * 640)
    assert cost((512, 1024), embed_depthwise=5)[1] == pytest.approx(macs5 / 4, rel=1e-3)
