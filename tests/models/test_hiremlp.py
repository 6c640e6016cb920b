"""Hire-MLP: regions against rolls, pads and permutes; options, initialisation, rules."""

import dataclasses
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import visionmlp
from tests.randomise import randomise
from visionmlp.errors import InvalidConfig
from visionmlp.layers.norms import MapBatchNorm
from visionmlp.layers.reweight import PlainSum, Reweight
from visionmlp.models.hiremlp import DeployedRegionMLP, RegionMLP
from visionmlp.models.registry import variant
from visionmlp.ops.regions import COLUMNS, ROWS, Regions, gather_regions, scatter_regions

PADDINGS = list(itertools.product(("circular", "zero"), ("circular", "zero", "replicate")))
DIM = 6


def regions(axis=COLUMNS, size=3, step=0, step_padding="circular", region_padding="circular"):
    return Regions(axis=axis, size=size, step=step, step_padding=step_padding, region_padding=region_padding)


def image(*size, dtype=torch.float64):
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def features(height, width):
    return torch.randn(2, height, width, DIM, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def textbook(x: torch.Tensor, mlp: RegionMLP, *, training: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The authors' order of operations on (B, C, H, W): roll, pad, permute, 1x1 convolutions, and all of it back.

    Returns the map, and the running mean and variance of the norm after it.
    """
    where = mlp.regions
    if where.axis == COLUMNS:
        x = x.transpose(2, 3)
    batch, dim, side, lines = x.shape
    if where.step_padding == "circular":
        x = torch.roll(x, where.step, 2)
    else:
        x = torch.cat([x.new_zeros(batch, dim, where.step, lines), x], 2)[:, :, :side]
    count = (side + where.size - 1) // where.size
    index = torch.arange(count * where.size)
    filled = x[:, :, index.clamp(max=side - 1) if where.region_padding == "replicate" else index % side]
    if where.region_padding == "zero":
        filled[:, :, side:] = 0
    joined = filled.view(batch, dim, count, where.size, lines).transpose(2, 3)
    joined = joined.reshape(batch, dim * where.size, count, lines)

    def authors(weight: torch.Tensor, axis: int) -> torch.Tensor:
        """From (place in region, channel) to (channel, place in region)."""
        return weight.unflatten(axis, (where.size, dim)).transpose(axis, axis + 1).flatten(axis, axis + 1)

    norm = mlp.norm.bn
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    statistics = norm.running_mean.clone(), norm.running_var.clone()
    hidden = F.conv2d(joined, authors(mlp.fc1.weight, 1)[:, :, None, None])
    hidden = F.relu(F.batch_norm(hidden, *statistics, norm.weight, norm.bias, training=training))
    mixed = F.conv2d(hidden, authors(mlp.fc2.weight, 0)[:, :, None, None], authors(mlp.fc2.bias, 0))
    back = mixed.view(batch, dim, where.size, count, lines).transpose(2, 3)
    back = back.reshape(batch, dim, count * where.size, lines)[:, :, :side]
    if where.step_padding == "circular":
        back = torch.roll(back, -where.step, 2)
    return back.transpose(2, 3) if where.axis == COLUMNS else back, *statistics


@pytest.mark.parametrize("axis", [ROWS, COLUMNS])
@pytest.mark.parametrize(("step_padding", "region_padding"), PADDINGS)
@torch.no_grad()
def test_regions_equal_rolls_pads_and_permutes(axis, step_padding, region_padding):
    """Sides that regions tile or not, shorter than a region, shorter than the step; both modes; the deploy form."""
    scale, shift = torch.rand(2, DIM, dtype=torch.float64) + 0.5
    for size, step, (height, width) in itertools.product((1, 2, 3, 4), (0, 1, 2, 3, 5), ((8, 6), (7, 5), (2, 1))):
        mlp = randomise(RegionMLP(DIM, regions(axis, size, step, step_padding, region_padding))).double()
        x = features(height, width)
        channels_first = x.permute(0, 3, 1, 2)
        expected, *_ = textbook(channels_first, mlp, training=False)
        close(mlp.eval()(x), expected)
        expected, *_ = textbook((x * scale + shift).permute(0, 3, 1, 2), mlp, training=False)
        close(DeployedRegionMLP.fold(mlp, scale, shift)(x), expected)
        expected, mean, variance = textbook(channels_first, mlp, training=True)
        close(mlp.train()(x), expected)
        torch.testing.assert_close(mlp.norm.bn.running_mean, mean, rtol=0, atol=1e-13)
        torch.testing.assert_close(mlp.norm.bn.running_var, variance, rtol=0, atol=1e-13)


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected.permute(0, 2, 3, 1), rtol=0, atol=1e-12)


def test_full_regions_of_columns_are_views():
    x = features(5, 6)
    for step in (0, 3, 6):  # whole regions need no move
        gathered = gather_regions(x, *regions(step=step))
        assert gathered.shape == (2, 5, 2, 3 * DIM)
        assert gathered.data_ptr() == x.data_ptr()
        assert scatter_regions(gathered, 6, *regions(step=step)[:4]).data_ptr() == x.data_ptr()
    assert gather_regions(x, *regions(step=1)).data_ptr() != x.data_ptr()


def test_scatter_undoes_gather():
    x = features(7, 5)
    for axis, step, region_padding in itertools.product((ROWS, COLUMNS), (0, 2), ("circular", "zero", "replicate")):
        where = regions(axis, 3, step, "circular", region_padding)
        back = scatter_regions(gather_regions(x, *where), x.shape[axis], *where[:4])
        assert torch.equal(back, x)
        assert back.is_contiguous()


def reached(**options) -> set[tuple[int, int]]:
    """Positions that change when position (4, 4) of an 8x8 map does, behind the second Hire module of a stage."""
    model = visionmlp.create_model("hiremlp_test", region_sizes=(2, 2), step_dilations=(1, 1), **options)
    mixer = randomise(model).double().eval().stages[0].blocks[1].spatial
    x = torch.randn(1, 8, 8, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    with torch.no_grad():
        before = mixer(x)
        x[0, 4, 4] += 1
        moved = (mixer(x) - before).abs().amax((0, 3)) > 1e-9
    return {(row, column) for row, column in moved.nonzero().tolist()}


def test_steps_carry_across_regions_and_weights_across_the_map():
    assert reached(reweight=False, step_strides=(1, 1)) == {(4, 4), (4, 5), (5, 4)}
    assert reached(reweight=False) == {(4, 4), (4, 3), (3, 4)}
    # not moved back: the pair of moved positions 4 and 5 holds contents 3 and 4
    assert reached(reweight=False, step_padding="zero") == {(4, 4), (4, 5), (5, 4)}
    assert len(reached()) == 64


def test_steps_are_those_of_the_authors():
    steps = [
        [[block.spatial.mix_h.regions.step for block in stage.blocks] for stage in create(name).stages]
        for name in ("hiremlp_t", "hiremlp_s")
    ]
    assert steps[0] == [[0, 2], [0, 2], [0, 1, 2, 0], [0, 1]]
    assert steps[1] == [[0, 2, 0], [0, 2, 0, 2], [0, 1, 2, 0, 1, 2, 0, 1, 2, 0], [0, 1, 0]]


def create(name: str, **options) -> nn.Module:
    with torch.device("meta"):
        return visionmlp.create_model(name, **options)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_parameters_of_options():
    dims, blocks = (64, 128, 320, 512), (2, 2, 4, 2)
    full = count(create("hiremlp_t"))
    weighting = sum(n * (c * (c // 4) + c // 4 + c // 4 * 3 * c + 3 * c) for n, c in zip(blocks, dims, strict=True))
    assert full - count(create("hiremlp_t", reweight=False)) == weighting
    for options in ({"step_strides": (1, 1, 1, 1)}, {"step_padding": "zero", "region_padding": "replicate"}):
        assert count(create("hiremlp_t", **options)) == full
    # one more position in each region: two layers of C/2 * C in each of two branches, and C biases
    larger = sum(n * 2 * (c * c + c) for n, c in zip(blocks, dims, strict=True))
    assert count(create("hiremlp_t", region_sizes=(5, 4, 4, 3))) - full == larger
    assert count(create("hiremlp_t", feature_norms=True)) - full == 2 * sum(dims)


@pytest.mark.parametrize("reweight", [True, False])
@torch.no_grad()
def test_branches_are_weighted_or_added(reweight):
    model = randomise(visionmlp.create_model("hiremlp_test", reweight=reweight)).double().eval()
    mixer = model.stages[1].blocks[1].spatial
    x = torch.randn(2, 5, 4, 24, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    branches = torch.stack([mixer.mix_h(x), mixer.mix_w(x), mixer.mix_c(x)])
    weights = torch.ones(3, 2, 1, 1, 24, dtype=torch.float64)
    if reweight:
        hidden = F.gelu(mixer.reweight.fc1(branches.sum(0).mean((1, 2))))
        outputs = mixer.reweight.fc2(hidden).view(2, 24, 3)
        weights = outputs.softmax(2).permute(2, 0, 1)[:, :, None, None]
    assert isinstance(mixer.reweight, Reweight if reweight else PlainSum)
    expected = mixer.proj((branches * weights).sum(0))
    torch.testing.assert_close(mixer(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("step_padding", "region_padding"), PADDINGS)
@torch.no_grad()
def test_deploy_form_at_any_size(step_padding, region_padding):
    model = visionmlp.create_model("hiremlp_test", step_padding=step_padding, region_padding=region_padding)
    model = randomise(model).double().eval()
    deployed = visionmlp.reparameterize(model)
    assert not [m for m in deployed.modules() if isinstance(m, nn.BatchNorm2d)]
    for size in ((32, 32), (45, 33), (3, 50)):
        x = image(*size)
        expected = model(x)
        torch.testing.assert_close(deployed(x), expected, rtol=0, atol=1e-11 * expected.abs().max().item())
    assert deployed(x[:0]).shape == model(x[:0]).shape == (0, 10)
    single = deployed.float()(x.float())
    assert (single - expected).abs().max() < 1e-5 * expected.abs().max()


def zero_padded_stage() -> tuple[nn.Module, nn.Module]:
    """A stage that fills up both ways, and its deploy form."""
    model = visionmlp.create_model("hiremlp_test", step_padding="zero", region_padding="replicate")
    model = randomise(model).double().eval()
    return model.stages[0], visionmlp.reparameterize(model).stages[0]


def test_paddings_export_with_dynamic_batch():
    stage, deployed = zero_padded_stage()
    x = torch.randn(3, 7, 8, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    program = torch.export.export(
        deployed, (x[:2],), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=2**31 - 1)},)
    )
    with torch.no_grad():
        for batch in (x[:1], x):
            torch.testing.assert_close(program.module()(batch), stage(batch))


def test_compiled_regions_take_other_sizes():
    """The second size is compiled with symbolic sides."""
    for region_padding in ("circular", "zero", "replicate"):
        torch._dynamo.reset()
        mlp = randomise(RegionMLP(DIM, regions(ROWS, 3, 2, "zero", region_padding))).double().eval()
        compiled = torch.compile(mlp, fullgraph=True, backend="aot_eager")
        with torch.no_grad():
            for size in ((8, 6), (7, 5)):
                x = features(*size)
                torch.testing.assert_close(compiled(x), mlp(x))


def test_paddings_deploy_to_a_form_that_can_be_tuned():
    _, deployed = zero_padded_stage()
    x = torch.randn(3, 7, 8, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    deployed(x).square().sum().backward()
    assert any(name.endswith("mix_h.shift") for name, _ in deployed.named_parameters())
    assert not [n for n, p in deployed.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


@torch.no_grad()
def test_feature_norms_are_on_the_levels_alone():
    plain = randomise(visionmlp.create_model("hiremlp_test")).double().eval()
    model = randomise(visionmlp.create_model("hiremlp_test", feature_norms=True)).double().eval()
    model.load_state_dict(plain.state_dict(), strict=False)
    x = image(32, 32)
    assert torch.equal(model(x), plain(x))
    raw = plain.forward_intermediates(x, intermediates_only=True)
    for norm, level, unnormed in zip(
        model.feature_norms, model.forward_intermediates(x, intermediates_only=True), raw, strict=True
    ):
        assert isinstance(norm, MapBatchNorm)
        torch.testing.assert_close(level, norm.bn(unnormed))


def test_authors_names():
    model = create("hiremlp_t", feature_norms=True)
    names = {name: model.official_entry(name).name for name in model.state_dict()}
    assert len(set(names.values())) == len(names)
    for ours, theirs in {
        "stem.proj.weight": "patch_embed.proj.weight",
        "stem.norm.running_var": "patch_embed.norm.running_var",
        "stages.1.downsample.proj.bias": "network.1.proj.bias",
        "stages.3.blocks.1.norm1.bn.weight": "network.6.1.norm1.weight",
        "stages.2.blocks.3.spatial.mix_w.norm.bn.bias": "network.4.3.attn.mlp_w1_norm.bias",
        "stages.2.blocks.3.spatial.mix_h.fc2.bias": "network.4.3.attn.mlp_h2.bias",
        "stages.0.blocks.0.channel.fc1.weight": "network.0.0.mlp.fc1.weight",
        "feature_norms.3.bn.running_mean": "norm6.running_mean",
        "norm.bn.weight": "norm.weight",
        "head.fc.bias": "head.bias",
    }.items():
        assert names[ours] == theirs


def test_authors_files_hold_convolutions_in_their_order():
    model = randomise(visionmlp.create_model("hiremlp_test", feature_norms=True))
    theirs = model.to_official(model.state_dict())
    mlp = model.stages[0].blocks[0].spatial.mix_h
    # channel 5, place 1 of regions of 3; 16 channels
    assert torch.equal(theirs["network.0.0.attn.mlp_h1.weight"][:, 5 * 3 + 1, 0, 0], mlp.fc1.weight[:, 1 * 16 + 5])
    assert torch.equal(theirs["network.0.0.attn.mlp_h2.weight"][5 * 3 + 1, :, 0, 0], mlp.fc2.weight[1 * 16 + 5])
    assert theirs["network.0.0.attn.mlp_h2.bias"][5 * 3 + 1] == mlp.fc2.bias[1 * 16 + 5]
    back = model.from_official(theirs)
    assert set(back) == set(model.state_dict())
    assert all(torch.equal(back[name], value) for name, value in model.state_dict().items())


def test_initialisation():
    torch.manual_seed(0)
    model = visionmlp.create_model("hiremlp_t", blocks=(1, 1, 1, 1))
    layers = [module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    assert len(layers) == 4 + 4 * 10 + 1
    for layer in layers:
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.06)
        assert layer.bias is None or not layer.bias.any()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 4 + 4 * 4 + 1
    assert all(torch.all(norm.weight == 1) and not norm.bias.any() for norm in norms)
    model.reset_classifier(500)
    assert model.get_classifier().weight.std().item() == pytest.approx(0.02, rel=0.06)
    assert not model.get_classifier().bias.any()


def test_drop_path_grows_over_all_blocks():
    model = create("hiremlp_t", drop_path_rate=0.9)
    rates = [block.drop_path.drop_prob for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0.1 * i for i in range(10)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dims": (16,)}, r"dims and blocks need one entry for each stage, got \(16,\) and \(3, 2\)"),
        ({"region_sizes": (3, 2, 2)}, "region_sizes and blocks need one entry"),
        ({"step_strides": (3,)}, "step_strides and blocks need one entry"),
        ({"step_dilations": (1,)}, "step_dilations and blocks need one entry"),
        ({"dims": (16, 3)}, "dims must be at least 4"),
        ({"step_strides": (0, 2)}, "step_strides must be at least 1"),
        ({"step_padding": "replicate"}, "step_padding must be one of circular, zero, got 'replicate'"),
        ({"region_padding": "reflect"}, "region_padding must be one of circular, zero, replicate, got 'reflect'"),
        ({"proj_drop_rate": 1.0}, r"proj_drop_rate must be in \[0, 1\)"),
        ({"mlp_ratio": 0.0}, "mlp_ratio must be positive"),
        ({"reweight": 1}, "reweight must be a bool"),
    ],
)
def test_rules(options, message):
    with pytest.raises(InvalidConfig, match=message):
        dataclasses.replace(variant("hiremlp_test").config, **options)
