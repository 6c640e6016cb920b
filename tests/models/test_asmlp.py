"""AS-MLP against the slow textbook formulation; its options, initialisation and rules."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import visionmlp
from tests.randomise import randomise
from visionmlp.errors import InvalidConfig
from visionmlp.layers.norms import MapGroupNorm
from visionmlp.models.asmlp import COLUMNS, ROWS, AxialShift, PatchMerging, ShiftedLinear, axial_shift


def rolled(x: Tensor, axis: int, size: int, dilation: int) -> Tensor:
    """Pad both sides, roll each chunk of channels, cut the middle out; (B, H, W, C)."""
    reach = size // 2 * dilation
    padded = F.pad(x, (0, 0, reach, reach, reach, reach))
    chunks = padded.chunk(size, -1)
    steps = range(-reach, reach + 1, dilation)
    moved = torch.cat([torch.roll(chunk, step, axis) for chunk, step in zip(chunks, steps, strict=False)], -1)
    return moved[:, reach : reach + x.shape[1], reach : reach + x.shape[2]]


def textbook(mixer: AxialShift, x: Tensor, size: int, dilation: int) -> Tensor:
    """1x1 convolutions and group norms over (B, C, H, W), as the layers are published."""

    def conv(layer: nn.Linear, x: Tensor) -> Tensor:
        return F.conv2d(x, layer.weight[:, :, None, None], layer.bias)

    def norm(layer: MapGroupNorm, x: Tensor) -> Tensor:
        centred = x - x.mean((1, 2, 3), keepdim=True)
        scaled = centred / (centred.square().mean((1, 2, 3), keepdim=True) + layer.eps).sqrt()
        return scaled * layer.weight[:, None, None] + layer.bias[:, None, None]

    def shift(axis: int, x: Tensor) -> Tensor:
        return rolled(x.permute(0, 2, 3, 1), axis, size, dilation).permute(0, 3, 1, 2)

    x = F.gelu(norm(mixer.norm1, conv(mixer.fc1, x.permute(0, 3, 1, 2))))
    along_width = F.gelu(conv(mixer.horizontal, shift(2, x)))
    along_height = F.gelu(conv(mixer.vertical, shift(1, x)))
    return conv(mixer.fc2, norm(mixer.norm2, along_width + along_height)).permute(0, 2, 3, 1)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


SHIFTS = [(1, 1), (3, 1), (5, 1), (7, 1), (3, 2), (5, 3)]


@pytest.mark.parametrize(("size", "dilation"), SHIFTS)
@pytest.mark.parametrize("shape", [(2, 7, 6, 20), (1, 8, 9, 18), (2, 1, 3, 23), (1, 2, 1, 3), (1, 5, 4, 12)], ids=str)
def test_the_shift_is_pad_roll_and_cut(shape, size, dilation):
    """Also where the last group is narrower, groups are missing, and the map is smaller than the displacement."""
    for axis in (ROWS, COLUMNS):
        x = normal(*shape).requires_grad_()
        got, expected = axial_shift(x, axis, size=size, dilation=dilation), rolled(x, axis, size, dilation)
        assert torch.equal(got, expected)
        weights = normal(*shape).flip(-1)
        assert torch.equal(*(torch.autograd.grad((y * weights).sum(), x)[0] for y in (got, expected)))


def test_gradients_of_several_results_at_once():
    x = normal(1, 6, 5, 10).requires_grad_()
    y = axial_shift(x, ROWS, size=5, dilation=1).square()
    seeds = torch.stack([normal(1, 6, 5, 10), normal(1, 6, 5, 10).flip(1)])
    (together,) = torch.autograd.grad(y, x, seeds, is_grads_batched=True, retain_graph=True)
    for seed, gradient in zip(seeds, together, strict=True):
        assert torch.equal(torch.autograd.grad(y, x, seed, retain_graph=True)[0], gradient)


def test_the_shift_of_one_value_at_a_time():
    x = normal(1, 6, 5, 10)
    for axis in (ROWS, COLUMNS):
        shifted = axial_shift(x, axis, size=5, dilation=2)
        side = x.shape[axis]
        for channel in range(10):
            step = (channel // 2 - 2) * 2
            for i in range(side):
                expected = torch.zeros_like(x.select(axis, 0)[..., 0])
                if 0 <= i - step < side:
                    expected = x.select(axis, i - step)[..., channel]
                assert torch.equal(shifted.select(axis, i)[..., channel], expected)


@pytest.mark.parametrize(("size", "dilation"), SHIFTS)
@pytest.mark.parametrize("dim", [20, 18, 3])
@torch.no_grad()
def test_the_mixer_is_the_textbook_one(dim, size, dilation):
    mixer = randomise(AxialShift(dim, size=size, dilation=dilation)).double()
    x = normal(2, 6, 7, dim)
    torch.testing.assert_close(mixer(x), textbook(mixer, x, size, dilation), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("size", "dilation"), SHIFTS)
def test_a_position_sees_a_line_of_each_axis(size, dilation):
    reach = size // 2 * dilation
    offsets = range(-reach, reach + 1, dilation)
    for axis, cells in ((ROWS, [(16 + o, 16) for o in offsets]), (COLUMNS, [(16, 16 + o) for o in offsets])):
        layer = ShiftedLinear(14, axis, size=size, dilation=dilation)
        x = torch.randn(1, 33, 33, 14, requires_grad=True)
        layer(x)[0, 16, 16].sum().backward()
        assert x.grad is not None
        seen = x.grad[0].abs().sum(-1).nonzero().tolist()
        assert seen == [list(cell) for cell in cells]


@pytest.mark.parametrize("size", [(4, 6), (5, 6), (4, 7), (3, 5), (1, 1)])
@torch.no_grad()
def test_merging_joins_neighbours_and_fills_odd_maps(size):
    merging = randomise(PatchMerging(3, 5)).double().eval()
    x = normal(2, *size, 3)
    even = torch.zeros(2, size[0] + size[0] % 2, size[1] + size[1] % 2, 3, dtype=torch.float64)
    even[:, : size[0], : size[1]] = x
    joined = torch.cat([even[:, row::2, column::2] for row, column in ((0, 0), (1, 0), (0, 1), (1, 1))], -1)
    expected = merging.reduction(merging.norm(joined))
    torch.testing.assert_close(merging(x), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(visionmlp.reparameterize(merging)(x), expected, rtol=0, atol=1e-12)


@torch.no_grad()
def test_images_are_filled_up_to_whole_patches():
    model = randomise(visionmlp.create_model("asmlp_test")).double().eval()
    x = normal(2, 3, 31, 46)
    expected = model(F.pad(x, (0, 2, 0, 1)))
    for form in (model, visionmlp.reparameterize(model)):
        torch.testing.assert_close(form(x), expected, rtol=0, atol=1e-12)
    assert (model(F.pad(x, (2, 0, 1, 0))) - expected).abs().max() > 1e-3


OPTIONS = [
    {},
    {"shift_size": 1},
    {"shift_size": 3},
    {"dilation": 2},
    {"shift_size": 7, "dilation": 3},
    {"mlp_ratio": 1.5},
    {"patch_size": 2},
    {"dim": 3},
    {"blocks": (1, 1, 2)},
    {"blocks": (2,)},
    {"feature_norms": True},
    {"feature_norms": True, "blocks": (2,)},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@torch.no_grad()
def test_the_deploy_form_is_equal_on_any_size(options):
    model = randomise(visionmlp.create_model("asmlp_test", **options)).double().eval()
    deployed = visionmlp.reparameterize(model)
    for size in ((32, 32), (29, 43), (3, 50), (1, 1)):
        x = normal(2, 3, *size)
        outputs = []
        for form in (deployed, model):
            last, levels = form.forward_intermediates(x)
            outputs.append([form.forward_head(last), *levels])
        for got, expected in zip(*outputs, strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-11 * expected.abs().max().item())
    affine = [name for name, m in deployed.named_modules() if isinstance(m, MapGroupNorm) and m.affine]
    kept = ("stem.norm", "norm", "feature_norms")
    assert all(name.startswith(kept) or name.endswith("spatial.norm1") for name in affine)


@torch.no_grad()
def test_receptive_field_changes_the_output_and_no_parameter():
    x = normal(2, 3, 32, 32)
    outputs, shapes = [], []
    for options in ({}, {"shift_size": 1}, {"shift_size": 3}, {"shift_size": 7}, {"dilation": 2}, {"dilation": 3}):
        model = randomise(visionmlp.create_model("asmlp_test", **options)).double().eval()
        shapes.append({name: value.shape for name, value in model.state_dict().items()})
        outputs.append(model(x))
    assert all(other == shapes[0] for other in shapes)
    for i, output in enumerate(outputs):
        for other in outputs[:i]:
            assert (output - other).abs().max() > 1e-2


@torch.no_grad()
def test_feature_norms_are_on_the_levels_alone():
    plain = randomise(visionmlp.create_model("asmlp_test")).double().eval()
    dense = visionmlp.create_model("asmlp_test", feature_norms=True).double().eval()
    dense.load_state_dict(plain.state_dict(), strict=False)
    randomise(dense.feature_norms)
    x = normal(1, 3, 33, 26)
    torch.testing.assert_close(dense(x), plain(x), rtol=0, atol=0)
    levels = dense.forward_intermediates(x, intermediates_only=True)
    for norm, got, raw in zip(
        dense.feature_norms, levels, plain.forward_intermediates(x, intermediates_only=True), strict=True
    ):
        expected = F.group_norm(raw, 1, norm.weight, norm.bias)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_the_authors_names_go_both_ways():
    """Beside the golden files: feature norms, written and read back."""
    model = randomise(visionmlp.create_model("asmlp_test", feature_norms=True))
    theirs = model.to_official(model.state_dict())
    shapes = {name: tuple(value.shape) for name, value in theirs.items()}
    assert {name: shapes[name] for name in ("norm1.weight", "layers.0.downsample.reduction.weight", "head.bias")} == {
        "norm1.weight": (36,),
        "layers.0.downsample.reduction.weight": (36, 72, 1, 1),
        "head.bias": (10,),
    }
    assert not [name for name in theirs if name.startswith(("stem", "stages", "feature"))]
    twin = visionmlp.load_official(visionmlp.create_model("asmlp_test", feature_norms=True), theirs)
    for name, value in model.state_dict().items():
        assert torch.equal(twin.state_dict()[name], value), name


def test_maps_stay_contiguous():
    """One map in another order in memory would make every later product copy."""
    model = visionmlp.create_model("asmlp_test").eval()
    contiguous = []
    for form in (model, visionmlp.reparameterize(model)):
        for stage in form.stages:
            for part in (stage.downsample, *stage.blocks):
                part.register_forward_hook(lambda *event: contiguous.append(event[2].is_contiguous()))
        form(torch.randn(2, 3, 36, 29))
    assert contiguous == [True] * 12


def test_deploy_forms_can_be_tuned_and_take_empty_batches():
    model = randomise(visionmlp.create_model("asmlp_test")).eval()
    deployed = visionmlp.reparameterize(model)
    deployed(torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert not [n for n, p in deployed.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    for form in (model, deployed):
        for size in ((32, 32), (29, 43)):
            assert form(torch.empty(0, 3, *size)).shape == (0, 10)


def test_smaller_widths_have_the_parameters_of_the_mobile_model():
    """Its widths are inferred: the authors' code with these has as many."""
    with torch.device("meta"):
        model = visionmlp.create_model("asmlp_t", dim=64, blocks=(2, 2, 2, 2))
    assert sum(p.numel() for p in model.parameters()) == 9_597_480


def test_initialisation():
    """Convolutions and linear layers as PyTorch does, the classifier as the authors do."""
    torch.manual_seed(0)
    model = visionmlp.create_model("asmlp_test", dim=96, blocks=(1, 1), num_classes=100)
    spatial, channel = model.stages[0].blocks[0].spatial, model.stages[0].blocks[0].channel
    linear = [spatial.fc1, spatial.horizontal, spatial.vertical, spatial.fc2, channel.fc1, channel.fc2]
    for layer in (*linear, model.stages[1].downsample.reduction, model.stem.proj):
        bound = layer.weight[0].numel() ** -0.5
        for values in (layer.weight, layer.bias):
            if values is not None:
                assert 0.9 * bound < values.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)
    assert model.stages[1].downsample.reduction.bias is None
    for _ in range(2):
        assert model.head.fc.weight.std().item() == pytest.approx(0.02, rel=0.03)
        assert not model.head.fc.bias.any()
        model.reset_classifier(50)
    for module in model.modules():
        if isinstance(module, MapGroupNorm):
            assert module.eps == 1e-5
            assert torch.all(module.weight == 1)
            assert not module.bias.any()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shift_size": 4}, "shift_size must be odd, got 4; give 5"),
        ({"shift_size": 0}, "shift_size must be at least 1"),
        ({"shift_size": 1, "dilation": 2}, "dilation=2 needs something to spread; give shift_size of 3 or more"),
        ({"dilation": 0}, "dilation must be at least 1"),
        ({"blocks": ()}, "blocks need one entry for each stage"),
        ({"mlp_ratio": 0.01}, "leaves no hidden channel of 18; give a larger one"),
        ({"proj_drop_rate": 1.0}, r"proj_drop_rate must be in \[0, 1\)"),
        ({"feature_norms": 1}, "feature_norms must be a bool"),
    ],
    ids=str,
)
def test_rules(fields, message):
    with pytest.raises(InvalidConfig, match=message):
        visionmlp.create_model("asmlp_test", **fields)
