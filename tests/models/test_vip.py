"""Vision Permutator against its textbook formulation, and what its options and other sizes do."""

import pytest
import torch
from torch import nn

import visionmlp
from tests.randomise import randomise
from visionmlp.errors import CheckpointMismatch, InvalidConfig, InvalidImageSize
from visionmlp.models.checkpoint import default_preprocessing
from visionmlp.models.vip import PermuteMLP, SegmentLinear


def maps(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def permute_by_hand(x, weight, segments, axis):
    """One vector for each line and segment: the segment's channels of all tokens, one token after the other."""
    lines = x.transpose(1, 2) if axis == 1 else x  # (B, lines, tokens, C)
    out = torch.zeros_like(lines)
    size = x.shape[3] // segments
    for b in range(lines.shape[0]):
        for line in range(lines.shape[1]):
            for s in range(segments):
                channels = slice(s * size, (s + 1) * size)
                out[b, line, :, channels] = (weight @ lines[b, line, :, channels].flatten()).view(-1, size)
    return out.transpose(1, 2) if axis == 1 else out


@pytest.mark.parametrize(("grid", "dim", "segments"), [((4, 4), 12, 4), ((3, 5), 8, 2), ((5, 2), 6, 6), ((2, 3), 4, 1)])
@torch.no_grad()
def test_segments_are_mixed_as_in_the_paper(grid, dim, segments):
    x = maps(2, *grid, dim)
    for axis in (1, 2):
        mixer = randomise(SegmentLinear(dim, grid, axis, segments=segments)).double()
        assert mixer.fc.weight.shape == (grid[axis - 1] * dim // segments,) * 2
        torch.testing.assert_close(
            mixer(x), permute_by_hand(x, mixer.fc.weight, segments, axis), rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize("reweight", [True, False])
@torch.no_grad()
def test_branches_are_summed(reweight):
    x = maps(2, 4, 3, 8)
    mixer = randomise(PermuteMLP(8, (4, 3), segments=2, reweight=reweight)).double()
    branches = torch.stack(
        [
            permute_by_hand(x, mixer.height.fc.weight, 2, 1),
            permute_by_hand(x, mixer.width.fc.weight, 2, 2),
            x @ mixer.channel.weight.t(),
        ]
    )
    if reweight:
        fc1, fc2 = mixer.reweight.fc1, mixer.reweight.fc2
        hidden = nn.functional.gelu(branches.sum(0).mean((1, 2)) @ fc1.weight.t() + fc1.bias)
        weights = (hidden @ fc2.weight.t() + fc2.bias).view(2, 8, 3).softmax(2)
        branches = branches * weights.permute(2, 0, 1)[:, :, None, None]
    expected = branches.sum(0) @ mixer.proj.weight.t() + mixer.proj.bias
    torch.testing.assert_close(mixer(x), expected, rtol=1e-12, atol=1e-12)


def count(name, **options):
    with torch.device("meta"):
        model = visionmlp.create_model(name, **options)
    return sum(p.numel() for p in model.parameters())


def test_parameters_of_options():
    dims = (192,) * 4 + (384,) * 14
    reweight = sum(d * d // 4 + d // 4 + d // 4 * 3 * d + 3 * d for d in dims)
    assert count("vip_s7") - count("vip_s7", reweight=False) == reweight
    # at the native size every matrix is C x C; half as many segments make those of that stage twice as wide
    more = 2 * 4 * (384**2 - 192**2)
    assert count("vip_s7", segments=(16, 16, 16, 16)) - count("vip_s7") == more


def test_initialisation():
    torch.manual_seed(0)
    model = visionmlp.create_model("vip_s7", blocks=(1, 1, 1, 1))
    block = model.stages[1].blocks[0]
    spatial, channel = block.spatial, block.channel
    layers = (spatial.height.fc, spatial.width.fc, spatial.channel, spatial.proj, spatial.reweight.fc2, channel.fc2)
    for layer in (*layers, model.head.fc):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.03)
        assert layer.bias is None or not layer.bias.any()
    assert [layer.bias is None for layer in layers] == [True, True, True, False, False, False]
    for norm in (block.norm1, block.norm2, model.norm):
        assert torch.all(norm.weight == 1)
        assert not norm.bias.any()
        assert norm.eps == 1e-5
    for conv, fan_in in ((model.stem.proj, 3 * 7 * 7), (model.stages[1].downsample.proj, 192 * 2 * 2)):
        # PyTorch's default for a convolution
        assert conv.weight.abs().max().item() == pytest.approx(fan_in**-0.5, rel=0.01)
        assert conv.bias.any()


def test_strides_and_names_follow_the_downsampling():
    names = {
        "vip_s14": ((14, 14, 14, 14), [0, 1, 2, 3], []),
        "vip_s7": ((7, 14, 14, 14), [0, 2, 3, 4], [1]),
        "vip_m7": ((7, 7, 14, 14), [0, 1, 3, 4], [2]),
        "vip_l7": ((7, 14, 14, 14), [0, 2, 3, 4], [1]),
    }
    for name, (strides, stages, downsamples) in names.items():
        with torch.device("meta"):
            model = visionmlp.create_model(name)
        assert model.strides == strides
        theirs = {model.official_entry(key).name for key in model.state_dict()}
        assert {int(key.split(".")[1]) for key in theirs if key.endswith("norm1.weight")} == set(stages)
        assert {key for key in theirs if ".proj.weight" in key and "attn" not in key} == {
            "patch_embed.proj.weight",
            *(f"network.{i}.proj.weight" for i in downsamples),
        }


def test_drop_path_grows_over_all_blocks():
    model = visionmlp.create_model("vip_s7", drop_path_rate=0.1)
    rates = [block.drop_path.drop_prob for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0.1 * i / 17 for i in range(18)])


def test_preprocessing_is_the_authors():
    for name, crop in (
        ("vip_s7", 0.9),
        ("vip_m7", 0.9),
        ("vip_l7", 0.875),
        ("dynamixer_m", 0.9),
        ("dynamixer_l", 0.875),
    ):
        with torch.device("meta"):
            assert default_preprocessing(visionmlp.create_model(name))["crop_pct"] == crop


@torch.no_grad()
def test_other_sizes_take_interpolated_matrices():
    """Columns of the same length keep their matrix; equal weights for all tokens stay equal, with the same sums."""
    native = randomise(visionmlp.create_model("vip_test"))
    state = native.state_dict()
    evenly = "stages.1.blocks.0.spatial.width.fc.weight"
    tokens = state[evenly].view(4, 6, 4, 6)
    tokens.copy_(tokens[:1, :, :1])
    wide = visionmlp.create_model("vip_test", img_size=(32, 64))
    visionmlp.load_official(wide, native.to_official(state), img_size=32)
    got = wide.state_dict()
    resized = {key for key in got if got[key].shape != state[key].shape}
    assert resized == {key for key in got if key.endswith("spatial.width.fc.weight")}
    assert all(torch.equal(got[key], state[key]) for key in got.keys() - resized)
    expected = tokens[:1, :, :1].expand(8, 6, 8, 6) / 2
    torch.testing.assert_close(got[evenly].view(8, 6, 8, 6), expected)
    # a position among others: row sums over tokens follow the interpolated output
    other = "stages.0.blocks.0.spatial.width.fc.weight"
    old_sums, new_sums = state[other].view(8, 2, 8, 2).sum((2, 3)), got[other].view(16, 2, 16, 2).sum((2, 3))
    torch.testing.assert_close(new_sums.mean(0), old_sums.mean(0), rtol=0, atol=0.1)
    assert wide(torch.randn(1, 3, 32, 64)).isfinite().all()


@torch.no_grad()
def test_a_size_can_be_told_from_the_matrices_alone():
    native = randomise(visionmlp.create_model("vip_test", img_size=(64, 32)))
    square = visionmlp.load_official(visionmlp.create_model("vip_test"), native.to_official(native.state_dict()))
    twin = visionmlp.load_official(
        visionmlp.create_model("vip_test"), native.to_official(native.state_dict()), img_size=(64, 32)
    )
    for key, value in square.state_dict().items():
        assert torch.equal(value, twin.state_dict()[key])
    with pytest.raises(CheckpointMismatch, match=r"spatial\.height\.fc\.weight"):
        visionmlp.load_official(
            visionmlp.create_model("vip_test"), native.to_official(native.state_dict()), img_size=(32, 32)
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"segments": (8, 4)}, "segments and blocks need one entry for each stage"),
        ({"dims": (16, 24)}, "dims and blocks need one entry for each stage"),
        ({"segments": (8, 5, 4)}, "24 channels cannot be cut into 5 segments; give a divisor"),
        ({"downsample_before": (3,)}, "must list stages from 1 to 2 in order"),
        ({"downsample_before": (2, 1)}, "must list stages from 1 to 2 in order"),
        ({"downsample_before": (1, 1)}, "must list stages from 1 to 2 in order"),
        ({"downsample_before": ()}, r"make dims\[1\] = 16 or add 1 to downsample_before"),
        ({"dims": (16, 24, 32)}, r"make dims\[2\] = 24 or add 2 to downsample_before"),
        ({"dims": (2, 2, 2), "segments": (1, 1, 1)}, "at least 4 channels.*reweight=False"),
        ({"reweight": 1}, "reweight must be a bool"),
        ({"mlp_ratio": 0.0}, "mlp_ratio must be positive"),
    ],
)
def test_rules_are_named(options, message):
    with pytest.raises(InvalidConfig, match=message):
        visionmlp.create_model("vip_test", **options)


def test_sizes_that_work_are_named():
    with pytest.raises(InvalidImageSize, match="256x256 is not a multiple of 14; the nearest size that is: 252x252"):
        visionmlp.create_model("vip_s7", img_size=256)
    visionmlp.create_model("vip_test", img_size=(24, 40), dims=(2, 4, 4), segments=(1, 1, 1), reweight=False)
