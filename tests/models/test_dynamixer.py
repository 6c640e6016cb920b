"""DynaMixer against its paper's formulas, token by token, and what its options (Tables 5-8) and other sizes do."""

import math

import pytest
import torch
from torch import nn

import visionmlp
from tests.randomise import randomise
from visionmlp.deploy.graphs import export_program
from visionmlp.errors import CheckpointMismatch, InvalidConfig
from visionmlp.models.dynamixer import DynaMixerConfig, DynaMixerOp, DynaMixing
from visionmlp.models.registry import variant


def config(**options):
    fields = {
        "img_size": (12, 20),
        "patch_size": 4,
        "dims": (8,),
        "blocks": (1,),
        "segments": (2,),
        "downsample_before": (),
    }
    return DynaMixerConfig(**{**fields, **options})


def maps(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def by_hand(op, line, mixing):
    """Mixed tokens of one line (L, C), by the paper's formulas and in the authors' memory order."""
    length, dim = line.shape
    size = dim // op.segments
    matrices = op.matrices
    mixed = torch.zeros_like(line)
    for s in range(op.segments):
        channels = slice(s * size, (s + 1) * size)
        if mixing == "dynamic":
            d = matrices.compress.out_features // op.segments
            rows = slice(s * d, (s + 1) * d)
            reduced = line @ matrices.compress.weight[rows].t() + matrices.compress.bias[rows]  # Eq. 5
            assert reduced.shape == (length, d)
        for j in range(length):
            if mixing == "dynamic":
                rows = slice(j * length, (j + 1) * length)
                logits = matrices.generate.weight[rows] @ reduced.flatten() + matrices.generate.bias[rows]  # Eq. 6
            elif mixing == "dense":
                rows = slice(s * length, (s + 1) * length)
                hidden = torch.relu(matrices.fc1.weight @ line[j] + matrices.fc1.bias)
                logits = matrices.fc2.weight[rows] @ hidden + matrices.fc2.bias[rows]
            else:
                logits = matrices.logits[s, j]
            weights = logits.exp() / logits.exp().sum()
            mixed[j, channels] = sum(weights[i] * line[i, channels] for i in range(length))
    return mixed @ op.out.weight.t() + op.out.bias  # Eq. 7


@pytest.mark.parametrize("mixing", ["dynamic", "dense", "random"])
@pytest.mark.parametrize("reduced_dim", [1, 3])
@torch.no_grad()
def test_lines_are_mixed_as_in_the_paper(mixing, reduced_dim):
    x = maps(2, 3, 5, 8)
    for axis in (1, 2):
        op = randomise(DynaMixerOp(config(mixing=mixing, reduced_dim=reduced_dim), 0, axis)).double()
        lines = x.transpose(1, 2) if axis == 1 else x
        expected = torch.stack([torch.stack([by_hand(op, line, mixing) for line in sample]) for sample in lines])
        expected = expected.transpose(1, 2) if axis == 1 else expected
        torch.testing.assert_close(op(x), expected, rtol=1e-12, atol=1e-12)
        weights = op.matrices(x)
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights.sum(-1)), rtol=1e-12, atol=0)


@torch.no_grad()
def test_the_authors_store_matrices_source_first():
    model = randomise(visionmlp.create_model("dynamixer_test")).double()
    theirs = model.to_official(model.state_dict())
    for ours, name, length in (
        (model.stages[0].blocks[0].spatial.column, "network.0.0.attn.mix_h", 8),
        (model.stages[1].blocks[1].spatial.row, "network.2.1.attn.mix_w", 4),
    ):
        x = maps(1, length, length, ours.out.in_features)
        line = x[0, :, 0] if ours.axis == 1 else x[0, 0]
        segments = ours.segments
        z = nn.functional.linear(line, theirs[f"{name}.compress.weight"], theirs[f"{name}.compress.bias"])
        z = z.view(length, segments, -1).transpose(0, 1).flatten(1)
        z = nn.functional.linear(z, theirs[f"{name}.generate.weight"], theirs[f"{name}.generate.bias"])
        matrices = z.view(segments, length, length).softmax(1)
        mixed = matrices.transpose(1, 2) @ line.view(length, segments, -1).transpose(0, 1)
        out = nn.functional.linear(
            mixed.transpose(0, 1).flatten(1), theirs[f"{name}.out.weight"], theirs[f"{name}.out.bias"]
        )
        got = ours(x)[0, :, 0] if ours.axis == 1 else ours(x)[0, 0]
        torch.testing.assert_close(got, out, rtol=1e-12, atol=1e-12)


BRANCHES = [
    {"row_mixing": False},
    {"column_mixing": False},
    {"channel_mixing": False},
    {"reweight": False},
    {"row_mixing": False, "column_mixing": False, "reweight": False},
]


@pytest.mark.parametrize("options", [{}, *BRANCHES], ids=str)
@torch.no_grad()
def test_branches_are_summed(options):
    x = maps(2, 3, 5, 8)
    mixer = randomise(DynaMixing(config(**options), 0)).double()
    parts = (mixer.column, mixer.row, mixer.channel)
    names = ("column_mixing", "row_mixing", "channel_mixing")
    assert [part is None for part in parts] == [options.get(name) is False for name in names]
    branches = torch.stack([part(x) for part in parts if part is not None])
    if options.get("reweight", True):
        fc1, fc2 = mixer.reweight.fc1, mixer.reweight.fc2
        hidden = nn.functional.gelu(branches.sum(0).mean((1, 2)) @ fc1.weight.t() + fc1.bias)
        weights = (hidden @ fc2.weight.t() + fc2.bias).view(2, 8, len(branches)).softmax(2)
        branches = branches * weights.permute(2, 0, 1)[:, :, None, None]
    expected = branches.sum(0) @ mixer.proj.weight.t() + mixer.proj.bias
    torch.testing.assert_close(mixer(x), expected, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_shared_mixing_is_two_equal_operations():
    x = maps(2, 3, 3, 8)
    shared = randomise(DynaMixing(config(img_size=(12, 12), shared_mixing=True), 0)).double()
    apart = DynaMixing(config(img_size=(12, 12)), 0).double()
    apart.load_state_dict(
        {
            **shared.state_dict(),
            **{
                key.replace("column.", "row."): value
                for key, value in shared.state_dict().items()
                if key.startswith("column.")
            },
        }
    )
    torch.testing.assert_close(shared(x), apart(x), rtol=1e-12, atol=1e-12)


# the paper's counts in millions are cut or rounded: d = 8 has 29.6, and L of Table 1 97.8 for its 97
TABLES = [
    ({}, 26),
    ({"segments": (1, 1, 1, 1)}, 26),
    ({"segments": (2, 4, 4, 4)}, 26),
    ({"segments": (4, 8, 8, 8)}, 26),
    ({"mixing": "random"}, 25),
    ({"mixing": "dense"}, 32),
    ({"reduced_dim": 1}, 26),
    ({"reduced_dim": 4}, 27),
    ({"reduced_dim": 8}, 29),
    ({"column_mixing": False}, 23),
    ({"row_mixing": False}, 23),
    ({"channel_mixing": False}, 23),
    ({"reweight": False}, 24),
    ({"shared_mixing": True}, 23),
]


@pytest.mark.parametrize(("options", "stated"), TABLES, ids=str)
def test_tables_5_to_8(options, stated):
    with torch.device("meta"):
        model = visionmlp.create_model("dynamixer_s", **options)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    assert stated in (math.floor(millions), round(millions))


def test_segment_widths_of_table_5():
    for width, segments in ((24, (8, 16)), (48, (4, 8)), (96, (2, 4))):
        assert segments == (192 // width, 384 // width)
    assert variant("dynamixer_s").config.segments == (8, 16, 16, 16)  # type: ignore[attr-defined]


def test_initialisation():
    torch.manual_seed(0)
    model = visionmlp.create_model("dynamixer_l", blocks=(1, 1, 1, 1))
    spatial = model.stages[0].blocks[0].spatial
    matrices = spatial.row.matrices
    for layer in (matrices.compress, matrices.generate, spatial.row.out, spatial.channel, spatial.proj, model.head.fc):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.03)
        assert layer.bias is None or not layer.bias.any()
    assert spatial.channel.bias is None
    for mixing in ("random", "dense"):
        other = (
            visionmlp.create_model("dynamixer_s", blocks=(1, 1, 1, 1), mixing=mixing).stages[0].blocks[0].spatial.row
        )
        weight = other.matrices.logits if mixing == "random" else other.matrices.fc2.weight
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)


def even(state, names):
    """The state with values that do not depend on positions, given how each tensor's dimensions split."""
    for name, sizes, dims in names:
        split = state[name].view(sizes)
        split.copy_(split.mean(dims, keepdim=True))
    return state


@pytest.mark.parametrize("mixing", ["dynamic", "dense", "random"])
@torch.no_grad()
def test_other_sizes_take_interpolated_matrices(mixing):
    """What belongs to lines of the same length is kept; what does not tell tokens apart stays so."""
    native = randomise(visionmlp.create_model("dynamixer_test", mixing=mixing))
    row = "stages.1.blocks.0.spatial.row.matrices."
    splits = {
        "dynamic": [("generate.weight", (4, 4, 4, 2), (0, 1, 2)), ("generate.bias", (4, 4), (0, 1))],
        "dense": [("fc2.weight", (4, 4, 24), (1,)), ("fc2.bias", (4, 4), (1,))],
        "random": [("logits", (4, 4, 4), (1, 2))],
    }[mixing]
    splits = [(row + name, sizes, dims) for name, sizes, dims in splits]
    state = even(native.state_dict(), splits)
    wide = visionmlp.create_model("dynamixer_test", mixing=mixing, img_size=(32, 64))
    visionmlp.load_official(wide, native.to_official(state), img_size=32)
    got = wide.state_dict()
    resized = {key for key in got if got[key].shape != state[key].shape}
    entries = {name.removeprefix(row) for name, _, _ in splits}
    assert resized == {key for key in got if ".row." in key and key.split(".matrices.")[-1] in entries}
    assert all(torch.equal(got[key], state[key]) for key in got.keys() - resized)
    for name, sizes, dims in splits:
        old = state[name].view(sizes)
        new = got[name].view([2 * size if dim in dims else size for dim, size in enumerate(sizes)])
        # sums over the tokens that matrices are made from keep their size
        scale = 0.5 if name.endswith("generate.weight") else 1.0
        torch.testing.assert_close(new, scale * old.mean(dims, keepdim=True).expand_as(new))
    assert wide(torch.randn(1, 3, 32, 64)).isfinite().all()


@pytest.mark.parametrize("mixing", ["dynamic", "dense", "random"])
@torch.no_grad()
def test_a_size_can_be_told_from_the_matrices_alone(mixing):
    native = randomise(visionmlp.create_model("dynamixer_test", mixing=mixing, img_size=(64, 32)))
    state = native.to_official(native.state_dict())
    told, given = (
        visionmlp.load_official(visionmlp.create_model("dynamixer_test", mixing=mixing), state, img_size=size)
        for size in (None, (64, 32))
    )
    assert all(torch.equal(value, given.state_dict()[key]) for key, value in told.state_dict().items())


@torch.no_grad()
def test_matrices_that_do_not_fit_are_named():
    native = visionmlp.create_model("dynamixer_test", reduced_dim=3)
    with pytest.raises(CheckpointMismatch, match=r"generate\.weight was not made for img_size 48x48"):
        visionmlp.load_official(
            visionmlp.create_model("dynamixer_test"), native.to_official(native.state_dict()), img_size=48
        )
    with pytest.raises(CheckpointMismatch, match=r"compress\.weight"):
        visionmlp.load_official(visionmlp.create_model("dynamixer_test"), native.to_official(native.state_dict()))
    dense = visionmlp.create_model("dynamixer_test", mixing="dense")
    with pytest.raises(CheckpointMismatch, match=r"matrices\.fc2\.weight"):
        visionmlp.load_official(
            visionmlp.create_model("dynamixer_test", mixing="dense", segments=(4, 8, 8)),
            dense.to_official(dense.state_dict()),
            img_size=32,
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixing": "attention"}, "mixing must be one of dynamic, dense, random, got 'attention'"),
        (
            {"row_mixing": False, "column_mixing": False, "channel_mixing": False},
            "one of row_mixing, column_mixing and channel_mixing must be on",
        ),
        ({"row_mixing": False, "column_mixing": False}, "two branches to weigh; give reweight=False"),
        ({"shared_mixing": True, "row_mixing": False}, "needs both row_mixing and column_mixing"),
        ({"shared_mixing": True, "img_size": (32, 64)}, "shared_mixing needs square images, got img_size 32x64"),
        ({"reduced_dim": 0}, "reduced_dim must be at least 1"),
        ({"segments": (2, 4, 5)}, "24 channels cannot be cut into 5 segments"),
    ],
)
def test_rules_are_named(options, message):
    with pytest.raises(InvalidConfig, match=message):
        visionmlp.create_model("dynamixer_test", **options)


OPTIONS = [
    *BRANCHES,
    {"mixing": "dense"},
    {"mixing": "random"},
    {"reduced_dim": 3},
    {"segments": (1, 2, 6)},
    {"shared_mixing": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options_train_and_load_back(options):
    model = randomise(visionmlp.create_model("dynamixer_test", **options))
    x = torch.randn(2, 3, 32, 32)
    model(x).square().sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    twin = visionmlp.create_model("dynamixer_test", **options)
    visionmlp.load_official(twin, model.to_official(model.state_dict()))
    assert torch.equal(twin(x), model(x))


@pytest.mark.parametrize("options", [{"mixing": "random"}, {"shared_mixing": True}], ids=str)
@torch.no_grad()
def test_other_branches_export(options):
    model = randomise(visionmlp.create_model("dynamixer_test", blocks=(1, 1, 1), **options)).eval()
    batch = torch.export.Dim("batch", min=1, max=2**31 - 1)
    program = torch.export.export(model, (torch.randn(2, 3, 32, 32),), dynamic_shapes=({0: batch},))
    x = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mixing", ["dynamic", "dense", "random"])
def test_weights_of_an_axis_that_keeps_its_length_are_kept(mixing):
    """From 32x64 to 64x64 pixels only columns grow; matrices of rows are neither changed nor refused."""
    source = randomise(visionmlp.create_model("dynamixer_test", mixing=mixing, img_size=(32, 64)))
    target = visionmlp.create_model("dynamixer_test", mixing=mixing, img_size=(64, 64))
    visionmlp.load_official(target, source.to_official(source.state_dict()), img_size=(32, 64))
    before, after = source.stages[0].blocks[0].spatial, target.stages[0].blocks[0].spatial
    for name, value in before.row.state_dict().items():
        torch.testing.assert_close(after.row.state_dict()[name], value)
    changed = [n for n, v in before.column.state_dict().items() if v.shape != after.column.state_dict()[n].shape]
    assert changed == [f"matrices.{entry}" for entry in after.column.matrices.grid_entries]


@pytest.mark.parametrize(("as_images", "dim"), [(False, -2), (True, -1)])
def test_graphs_compute_the_softmax_where_their_runtime_is_fast(as_images, dim):
    model = randomise(visionmlp.create_model("dynamixer_test").eval())
    deployed = visionmlp.reparameterize(model)
    images = torch.randn(2, 3, *model.config.img_size)
    program = export_program(deployed, images, batch=2, as_images=as_images)
    of_matrices = [
        node.args[1]
        for node in program.graph.nodes
        if node.target is torch.ops.aten.softmax.int and node.meta["val"].dim() == 5
    ]
    assert of_matrices
    assert set(of_matrices) == {dim}
    with torch.inference_mode():
        torch.testing.assert_close(program.module()(images), model(images), rtol=1e-4, atol=1e-4)
