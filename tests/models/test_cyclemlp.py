"""CycleMLP against deformable convolution, every option of it, and every formulation of its deploy form."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import deform_conv2d

import visionmlp
from tests.randomise import randomise
from visionmlp.errors import CheckpointMismatch, InvalidConfig
from visionmlp.layers.patch_embed import ConvEmbed
from visionmlp.layers.reweight import PlainSum
from visionmlp.models.cyclemlp import (
    CycleFC,
    CycleMixer,
    DeployedCycleMixer,
    DisplacedLinear,
    JointInput,
    cycle_steps,
    displaced,
)

OPTIONS = [
    {},
    {"blocks": (3,), "dims": (16,), "mlp_ratios": (2,)},  # each block is a level
    {"pseudo_kernel_w": (1, 7)},
    {"pseudo_kernel_w": (1, 5), "pseudo_kernel_h": (3, 3)},
    {"pseudo_kernel_w": (5, 5), "pseudo_kernel_h": (1, 1)},  # more steps than one stage has channels
    {"dilation": 2},
    {"reweight": False},
    {"reweight": False, "pseudo_kernel_h": (5, 1), "dilation": 3},
]


def image(size=(32, 32), batch=2):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def deformable(fc: CycleFC, x: torch.Tensor) -> torch.Tensor:
    """Cycle FC as its authors write it: a 1x1 kernel, and one constant offset (dy, dx) for each channel."""
    batch, height, width, dim = x.shape
    steps = [fc.steps[i % fc.cycle] for i in range(dim)]
    offset = torch.tensor(steps, dtype=x.dtype).flatten()[None, :, None, None].expand(batch, -1, height, width)
    y = deform_conv2d(x.permute(0, 3, 1, 2), offset, fc.weight[:, :, None, None], fc.bias)
    return y.permute(0, 2, 3, 1)


def test_steps_run_row_by_row_from_the_centre():
    assert cycle_steps((1, 3), 1) == [(0, 0), (0, 1), (0, -1)]
    assert cycle_steps((3, 1), 1) == [(0, 0), (1, 0), (-1, 0)]
    assert cycle_steps((1, 5), 2) == [(0, 0), (0, 2), (0, 4), (0, -4), (0, -2)]
    assert cycle_steps((1, 1), 3) == [(0, 0)]
    centre, *rest = cycle_steps((3, 3), 1)
    assert centre == (0, 0)
    assert rest == [(0, 1), (1, -1), (1, 0), (1, 1), (-1, -1), (-1, 0), (-1, 1), (0, -1)]
    # channel i of a kernel (1, k) reads (i + k // 2) % k - k // 2 positions to the right
    for k in (3, 5, 7):
        assert cycle_steps((1, k), 1) == [(0, (i + k // 2) % k - k // 2) for i in range(k)]


def test_displaced_maps_hold_zeros_outside():
    x = torch.arange(1.0, 7).view(1, 2, 3, 1)
    assert displaced(x, (0, 1)).flatten().tolist() == [2, 3, 0, 5, 6, 0]
    assert displaced(x, (-1, 0)).flatten().tolist() == [0, 0, 0, 1, 2, 3]
    assert displaced(x, (1, -2)).flatten().tolist() == [0, 0, 4, 0, 0, 0]
    for step in ((2, 0), (0, -3), (-5, 7)):
        assert displaced(x, step).shape == x.shape
        assert not displaced(x, step).any()


@pytest.mark.parametrize("kernel", [(1, 3), (3, 1), (1, 5), (3, 3), (1, 7), (5, 3)])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("shape", [(2, 5, 6, 8), (1, 1, 4, 7), (2, 1, 1, 16)])
@torch.no_grad()
def test_cycle_fc_is_deformable_convolution(kernel, dilation, shape):
    fc = randomise(CycleFC(shape[-1], kernel, dilation=dilation)).double()
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    expected = deformable(fc, x)
    torch.testing.assert_close(fc(x), expected, rtol=0, atol=1e-13)
    if shape[1] > 1:
        assert (nn.functional.linear(x, fc.weight, fc.bias) - expected).abs().max() > 0.1


def test_gradients_are_those_of_deformable_convolution():
    fc = randomise(CycleFC(7, (3, 3))).double()
    x = torch.randn(2, 4, 3, 7, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(2, 4, 3, 7, dtype=torch.float64)
    ours, theirs = (torch.autograd.grad(f, (x, *fc.parameters()), grad) for f in (fc(x), deformable(fc, x)))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("reweight", [True, False])
@torch.no_grad()
def test_mixer_position_by_position(reweight):
    model = randomise(visionmlp.create_model("cyclemlp_test", reweight=reweight)).double().eval()
    mixer = model.stages[1].blocks[0].spatial
    x = torch.randn(2, 3, 4, 24, dtype=torch.float64)
    branches = [deformable(mixer.mix_w, x), deformable(mixer.mix_h, x), x @ mixer.mix_c.weight.T]
    mixed = torch.empty_like(x)
    for n in range(2):
        shares = torch.ones(24, 3, dtype=torch.float64)
        if reweight:
            pooled = sum(branch[n].flatten(0, 1).mean(0) for branch in branches)
            shares = mixer.reweight.fc2(nn.functional.gelu(mixer.reweight.fc1(pooled))).view(24, 3).softmax(1)
        for row in range(3):
            for column in range(4):
                vectors = torch.stack([branch[n, row, column] for branch in branches], 1)
                mixed[n, row, column] = mixer.proj((vectors * shares).sum(1))
    torch.testing.assert_close(mixer(x), mixed, rtol=0, atol=1e-12)


@torch.no_grad()
def test_the_branches_move_along_the_width_and_the_height():
    """The authors' ``sfc_h`` moves along the width."""
    model = visionmlp.create_model("cyclemlp_test").double()
    mixer = model.stages[0].blocks[0].spatial
    x = torch.zeros(1, 5, 5, 16, dtype=torch.float64)
    x[0, 2, 2] = 1
    for branch, reached in ((mixer.mix_w, {(2, 1), (2, 2), (2, 3)}), (mixer.mix_h, {(1, 2), (2, 2), (3, 2)})):
        response = branch(x)[0].abs().sum(2)
        assert {tuple(place) for place in response.nonzero().tolist()} == reached
    assert model.official_entry("stages.0.blocks.0.spatial.mix_w.weight").name == "network.0.0.attn.sfc_h.weight"


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@torch.no_grad()
def test_deploy_forms_are_equal_on_any_map(options):
    model = randomise(visionmlp.create_model("cyclemlp_test", **options)).double().eval()
    deployed = visionmlp.reparameterize(model)
    for size in ((32, 32), (45, 33), (3, 70), (5, 5)):
        x = image(size)
        expected = model(x)
        torch.testing.assert_close(deployed(x), expected, rtol=0, atol=1e-12 * expected.abs().max().item())


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@torch.no_grad()
def test_deploy_forms_give_their_levels_in_the_channels_of_the_training_form(options):
    model = randomise(visionmlp.create_model("cyclemlp_test", **options)).double().eval()
    deployed = visionmlp.reparameterize(model)
    last, levels = model.forward_intermediates(image())
    again, theirs = deployed.forward_intermediates(image())
    for ours, expected in zip([again, *theirs], [last, *levels], strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12 * expected.abs().max().item())


@torch.no_grad()
def test_channels_that_move_together_are_neighbours_in_a_deploy_form():
    def strides(**options) -> set[int]:
        deployed = visionmlp.reparameterize(visionmlp.create_model("cyclemlp_test", **options).eval())
        inputs = [module for module in deployed.modules() if isinstance(module, JointInput)]
        return {move.stride for each in inputs for move in each.moves}

    assert strides() == strides(reweight=False) == {1}
    assert strides(pseudo_kernel_w=(1, 5), pseudo_kernel_h=(5, 1), dilation=2) == {1}
    # no one order makes neighbours of both cycles
    assert strides(pseudo_kernel_w=(1, 5), reweight=False) == {1, 3, 5}


class Scaled(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.part(x) * 2


def wrap_stem(model: nn.Module) -> None:
    model.stem = Scaled(model.stem)


def wrap_downsample(model: nn.Module) -> None:
    model.stages[1].downsample = Scaled(model.stages[1].downsample)


def norm_stem(model: nn.Module) -> None:
    stem = ConvEmbed(3, 16, 7, stride=4, padding=2, layout="BHWC", batch_norm=True)
    model.stem = randomise(stem).double()


def prune_layer(model: nn.Module) -> None:
    prune.random_unstructured(model.stages[0].blocks[0].channel.fc1, "weight", 0.5)


def share_norm(model: nn.Module) -> None:
    first, second = model.stages[0].blocks
    second.norm1 = first.norm1


@pytest.mark.parametrize("change", [wrap_stem, wrap_downsample, norm_stem, prune_layer, share_norm])
@torch.no_grad()
def test_changed_models_have_equal_deploy_forms(change):
    model = randomise(visionmlp.create_model("cyclemlp_test")).double()
    before = model.eval()(image())
    change(model)
    expected = model.eval()(image())
    assert (expected - before).abs().max() > 1e-3
    deployed = visionmlp.reparameterize(model)(image())
    torch.testing.assert_close(deployed, expected, rtol=0, atol=1e-12 * expected.abs().max().item())


@torch.no_grad()
def test_a_deploy_form_of_another_channel_order_is_refused():
    model = randomise(visionmlp.create_model("cyclemlp_test")).eval()
    deployed = visionmlp.reparameterize(model)
    state = deployed.state_dict()
    assert [name for name in state if name.endswith("places")] == [f"stages.{i}.blocks.1.order.places" for i in (0, 1)]
    for places in (torch.arange(16), torch.arange(16) + 1000, torch.full((16,), torch.nan)):
        with pytest.raises(CheckpointMismatch, match="another order of channels"):
            deployed.load_state_dict(state | {"stages.0.blocks.1.order.places": places})
    halved = {name: value.half() for name, value in state.items()}
    deployed.load_state_dict(halved, assign=True)
    assert deployed.half()(image().half()).isfinite().all()
    del state["stages.0.blocks.1.order.places"]
    with pytest.raises(RuntimeError, match=r"Missing key.*places"):
        deployed.load_state_dict(state)
    changed = visionmlp.reparameterize(model)
    changed.stages[0].blocks[1].order.places.copy_(torch.arange(16))
    assert (changed(image().float()) - model(image().float())).abs().max() > 1e-2


@torch.no_grad()
def test_each_stage_gets_its_cheapest_formulation():
    def mixers(model: nn.Module) -> list[type]:
        return [type(stage.blocks[0].spatial.mixer) for stage in visionmlp.reparameterize(model.eval()).stages]

    def macs(model: nn.Module) -> int:
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, *model.config.img_size, device="meta"))
        return counter.get_total_flops() // 2

    with torch.device("meta"):
        model = visionmlp.create_model("cyclemlp_b1").eval()
        # 56x56 > 148, 28x28 > 298, 14x14 < 746, 7x7 < 1194 channels of the joint input
        assert mixers(model) == [DeployedCycleMixer, DeployedCycleMixer, CycleMixer, CycleMixer]
        large = visionmlp.create_model("cyclemlp_b1", img_size=512).eval()
        assert mixers(large) == [DeployedCycleMixer] * 3 + [CycleMixer]
        summed = visionmlp.create_model("cyclemlp_b1", reweight=False).eval()
        assert mixers(summed) == [DisplacedLinear] * 4
        for network in (model, large, summed):
            assert macs(visionmlp.reparameterize(network)) < 0.98 * macs(network)
    assert mixers(visionmlp.create_model("cyclemlp_test")) == [DeployedCycleMixer, CycleMixer]


@torch.no_grad()
def test_lost_biases_of_a_fold_would_be_noticed():
    model = randomise(visionmlp.create_model("cyclemlp_test")).double().eval()
    for part in ("weight", "bias"):
        deployed = visionmlp.reparameterize(model)
        getattr(deployed.stages[0].blocks[1].spatial.mixer, part)[0].zero_()
        assert (deployed(image()) - model(image())).abs().max() > 1e-3


def test_parameters_of_a_block():
    """Four products, three with a bias, the reweighting and the channel MLP."""

    def count(**options) -> int:
        return sum(p.numel() for p in visionmlp.create_model("cyclemlp_test", **options).stages[0].parameters()) // 2

    dim, ratio, hidden = 16, 2, 4
    mixing = 4 * dim**2 + 3 * dim
    reweighting = dim * hidden + hidden + hidden * 3 * dim + 3 * dim
    channel = 2 * ratio * dim**2 + ratio * dim + dim
    assert count() == mixing + reweighting + channel + 4 * dim
    assert count(reweight=False) == count() - reweighting
    assert count(mlp_ratios=(5, 3)) == count() + 6 * dim**2 + 3 * dim
    assert count(pseudo_kernel_w=(1, 7), pseudo_kernel_h=(3, 3), dilation=2) == count()


def test_initialisation():
    torch.manual_seed(0)
    model = visionmlp.create_model("cyclemlp_b1", blocks=(1, 1, 1, 1))
    block = model.stages[3].blocks[0]
    mixer = block.spatial
    for layer in (mixer.mix_w, mixer.mix_h, mixer.mix_c, mixer.proj, mixer.reweight.fc1, block.channel.fc2):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.02)
        assert layer.bias is None or not layer.bias.any()
    assert mixer.mix_c.bias is None
    assert model.head.fc.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert not model.head.fc.bias.any()
    for norm in (block.norm1, block.norm2, model.norm):
        assert torch.all(norm.weight == 1)
        assert not norm.bias.any()
        assert norm.eps == 1e-5
    # PyTorch's default for convolutions
    for conv, fan_in in ((model.stem.proj, 3 * 49), (model.stages[2].downsample.proj, 128 * 9)):
        assert conv.weight.abs().max().item() == pytest.approx(fan_in**-0.5, rel=0.01)
        assert conv.bias.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dims": (16, 24, 32)}, "dims and blocks need one entry for each stage"),
        ({"mlp_ratios": (2,)}, "mlp_ratios and blocks need one entry for each stage"),
        ({"dims": (3, 8)}, "dims must be at least 4"),
        ({"pseudo_kernel_w": (1, 4)}, "pseudo_kernel_w must be two odd numbers"),
        ({"pseudo_kernel_h": (3, 1, 1)}, "pseudo_kernel_h must be two odd numbers"),
        ({"pseudo_kernel_h": (3,)}, "pseudo_kernel_h must be two odd numbers"),
        ({"dilation": 0}, "dilation must be at least 1"),
        ({"mlp_ratios": (2.5, 3)}, "mlp_ratios must be integers"),
        ({"reweight": "yes"}, "reweight must be a bool"),
        ({"proj_drop_rate": 1.0}, r"proj_drop_rate must be in \[0, 1\)"),
    ],
)
def test_configs_name_the_rule(options, message):
    with pytest.raises(InvalidConfig, match=message):
        visionmlp.create_model("cyclemlp_test", **options)


def official(model: nn.Module) -> dict[str, torch.Tensor]:
    return model.to_official(model.state_dict())


def test_offsets_are_written_and_checked():
    options = {"pseudo_kernel_w": (1, 5), "dilation": 2}
    trained = randomise(visionmlp.create_model("cyclemlp_test", **options))
    state = official(trained)
    offset = state["network.2.1.attn.sfc_h.offset"]
    assert offset.shape == (1, 48, 1, 1)
    assert offset.flatten().tolist()[:12] == [0, 0, 0, 2, 0, 4, 0, -4, 0, -2, 0, 0]
    assert state["network.0.0.attn.sfc_w.offset"].flatten().tolist()[:6] == [0, 0, 2, 0, -2, 0]
    assert sum(name.endswith(".offset") for name in state) == 8

    twin = visionmlp.load_official(visionmlp.create_model("cyclemlp_test", **options), state)
    assert all(torch.equal(value, twin.state_dict()[name]) for name, value in trained.state_dict().items())
    # half precision holds them exactly
    visionmlp.load_official(twin, {name: value.bfloat16() for name, value in state.items()})

    for other in ({}, {"pseudo_kernel_w": (1, 5)}, {"dilation": 2}):
        model = visionmlp.create_model("cyclemlp_test", **other)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(
            CheckpointMismatch, match=r"computes with another network.*offset; build the model with the options"
        ):
            visionmlp.load_official(model, state)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_misshapen_offsets_are_refused():
    model = visionmlp.create_model("cyclemlp_test")
    state = official(model)
    state["network.0.0.attn.sfc_h.offset"] = torch.zeros(1, 8, 1, 1)
    with pytest.raises(CheckpointMismatch, match=r"network\.0\.0\.attn\.sfc_h\.offset"):
        visionmlp.load_official(model, state)


def test_feature_norms_take_the_authors_names():
    dense = randomise(visionmlp.create_model("cyclemlp_test", feature_norms=True))
    state = official(dense)
    assert {name for name in state if name.startswith("norm") and name[4] != "."} == {
        f"norm{i}.{part}" for i in (0, 2) for part in ("weight", "bias")
    }
    plain = visionmlp.create_model("cyclemlp_test")
    visionmlp.load_official(dense, official(plain))
    assert torch.equal(dense.stages[1].blocks[0].spatial.proj.weight, plain.stages[1].blocks[0].spatial.proj.weight)


@torch.no_grad()
def test_reweighting_starts_near_a_third_of_the_sum():
    """Fresh weights hardly tell the branches apart, so both choices differ by that factor."""
    torch.manual_seed(0)
    mixer = visionmlp.create_model("cyclemlp_test").stages[0].blocks[0].spatial
    x = torch.randn(2, 6, 6, 16)
    weighted = mixer(x)
    mixer.reweight = PlainSum()
    torch.testing.assert_close(weighted * 3, mixer(x), rtol=0, atol=1e-3 * mixer(x).abs().max().item())


@torch.no_grad()
def test_exports_with_dynamic_sides():
    """Nothing depends on the image, so rows and columns may be symbolic as well."""
    model = randomise(visionmlp.create_model("cyclemlp_test", blocks=(1, 1))).double().eval()
    sides = {2: torch.export.Dim("height", min=16, max=512), 3: torch.export.Dim("width", min=16, max=512)}
    for form in (model, visionmlp.reparameterize(model)):
        program = torch.export.export(form, (image((37, 52)),), dynamic_shapes=(sides,))
        for size in ((37, 52), (64, 45)):
            torch.testing.assert_close(program.module()(image(size)), model(image(size)), rtol=0, atol=1e-11)
