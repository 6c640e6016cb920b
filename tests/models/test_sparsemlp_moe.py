"""Sparse-MLP (MoE): the block as the paper describes it, options, presets, resizing, upcycling."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import visionmlp
from tests.randomise import randomise
from visionmlp.errors import CheckpointError, CheckpointMismatch, InvalidConfig
from visionmlp.layers.auxiliary import collect_auxiliary
from visionmlp.layers.mixer_block import MixerBlock
from visionmlp.measure.catalog import catalog
from visionmlp.models.official import load_strictly, resize_tokens
from visionmlp.models.registry import list_models, variant
from visionmlp.models.sparsemlp_moe import SparseBlock

NAME = "sparsemlp_moe_test"


def build(**options: Any) -> Any:
    """Random weights in float64; those of the experts are enlarged, since `randomise` makes them weak."""
    model = randomise(visionmlp.create_model(NAME, **options)).double().eval()
    for name, parameter in model.named_parameters():
        if ".experts." in name:
            parameter.data.mul_(3)
    return model


def image(batch: int = 2, size: tuple[int, int] = (32, 32)) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def experts_one_by_one(moe: Any, items: Tensor) -> Tensor:
    """(N, D) of one image; ample places."""
    out = torch.zeros_like(items)
    for i, item in enumerate(items):
        gates = torch.softmax(moe.router.fc.weight @ item, 0)
        for gate, expert in zip(*gates.topk(moe.router.top_k), strict=True):
            fc1, fc2 = moe.experts.fc1, moe.experts.fc2
            hidden = F.gelu(fc1.weight[expert] @ item + fc1.bias[expert], approximate="tanh")
            out[i] += gate * (fc2.weight[expert] @ hidden + fc2.bias[expert])
    return out


@torch.no_grad()
def test_a_sparse_block_is_what_the_paper_describes() -> None:
    """Written out for one image: (S, C) to (S1, C1), channels as items, positions as items, back."""
    model = build(capacity_factor=9.0)
    block = model.stages[0].blocks[-1]
    x = torch.randn(2, 4, 4, 16, dtype=torch.float64)
    for given, got in zip(x, block(x), strict=True):
        y = given.reshape(16, 16)
        y = y @ block.enter.channels.weight.t() + block.enter.channels.bias
        y = block.enter.tokens.weight @ y + block.enter.tokens.bias[:, None]
        assert y.shape == (32, 8)
        y = y + experts_one_by_one(block.spatial.moe, block.norm1(y).t()).t()
        y = y + experts_one_by_one(block.channel, block.norm2(y))
        y = block.leave.tokens.weight @ y + block.leave.tokens.bias[:, None]
        y = y @ block.leave.channels.weight.t() + block.leave.channels.bias
        torch.testing.assert_close(got, y.view(4, 4, 16), rtol=1e-10, atol=1e-12)


def test_the_last_blocks_are_sparse() -> None:
    for count in (1, 2, 4):
        kinds = [type(block) for block in visionmlp.create_model(NAME, sparse_blocks=count).stages[0].blocks]
        assert kinds == [MixerBlock] * (4 - count) + [SparseBlock] * count


def test_presets_are_smaller_and_cheaper_than_the_dense_models_and_say_what_they_are() -> None:
    for entry in catalog("sparsemlp_moe_*"):
        dense = variant(f"mlpmixer_{entry.name[-1]}16")
        assert 0.9 * dense.params < entry.params < dense.params
        assert 0.8 * dense.macs < entry.macs < dense.macs
        assert (entry.paper_params, entry.paper_macs, entry.paper_top1) == (None, None, None)
        assert entry.source.startswith("reconstruction: no public code")
    experts = [variant(name).config.token_experts for name in list_models("sparsemlp_moe")]  # type: ignore[attr-defined]
    assert experts == [4, 8, 16]


@pytest.mark.parametrize(
    "options",
    [
        {"sparse_blocks": 1},
        {"token_expansion": 1},
        {"channel_reduction": 1},
        {"token_experts": 4},
        {"token_top_k": 2},
        {"token_expert_dim": 5},
        {"channel_experts": 2},
        {"channel_top_k": 1},
        {"channel_expert_dim": 9},
        {"capacity_factor": 0.5},
        {"normalise_gates": True},
        {"kernel_sizes": (3,)},
    ],
    ids=str,
)
@torch.no_grad()
def test_options_change_the_output_and_keep_the_deploy_form_exact(options: dict[str, Any]) -> None:
    model = build(**options)
    expected = model(image())
    assert (expected - build()(image())).abs().max() > 1e-4
    deployed = visionmlp.reparameterize(model)
    torch.testing.assert_close(deployed(image()), expected, rtol=1e-10, atol=1e-11)
    # of a dense block without locality nothing but the affine of its second norm and the GELU changes
    norms = [m for m in deployed.modules() if isinstance(m, nn.LayerNorm)]
    assert len(norms) == 2 * 4 + 1
    assert sum(not norm.elementwise_affine for norm in norms) == 4 - model.config.sparse_blocks


def test_weights_of_the_losses_and_noise() -> None:
    def losses(**options: Any) -> list[float]:
        model = build(router_noise=False, **options).train()
        with collect_auxiliary(model) as collected:
            model(image())
        return [part.loss.item() for part in collected]

    both = losses()
    assert len(both) == 4
    importance, load = losses(load_weight=0.0), losses(importance_weight=0.0)
    assert [a + b for a, b in zip(importance, load, strict=True)] == pytest.approx(both)
    assert min(*importance, *load) > 0
    assert losses(importance_weight=0.01, load_weight=0.01) == pytest.approx([2 * loss for loss in both])
    assert losses(importance_weight=0.0, load_weight=0.0) == [0.0] * 4
    noisy = build().train()
    assert not torch.equal(noisy(image()), noisy(image()))
    silent = build(router_noise=False).train()
    assert torch.equal(silent(image()), silent(image()))


def test_statistics_name_block_and_kind() -> None:
    model = build().train()
    with collect_auxiliary(model) as collected:
        model(image())
    names = [name for part in collected for name in part.statistics]
    for block in ("block2", "block3"):
        for kind, experts in (("token", 2), ("channel", 3)):
            expected = {*(f"load{i}" for i in range(experts)), "overflow", "entropy"}
            assert {name.rsplit(".")[-1] for name in names if name.startswith(f"{block}.{kind}.")} == expected
    assert len(names) == len(set(names)) == 2 * (2 + 3 + 4)


def test_checkpointing_neither_loses_nor_repeats_the_balance_loss() -> None:
    gradients = []
    for enable in (False, True):
        model = build().train()
        model.set_grad_checkpointing(enable)
        torch.manual_seed(0)
        with collect_auxiliary(model) as collected:
            logits = model(image())
        assert len(collected) == 4
        (logits.sum() + torch.stack([part.loss for part in collected]).sum()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
        copy.deepcopy(model)  # no graph stays behind
    for name, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], value)


def test_positions_begin_as_equal_maps() -> None:
    torch.manual_seed(0)
    block = visionmlp.create_model("sparsemlp_moe_s", depth=1, sparse_blocks=1, token_expansion=3).stages[0].blocks[0]
    x = torch.randn(2, 14, 14, 512)
    inside = block.enter(x)
    expected = block.enter.channels(x).flatten(1, 2)
    for copied in inside.chunk(3, dim=1):
        torch.testing.assert_close(copied, expected)
    torch.testing.assert_close(block.leave(inside), block.leave.channels(expected).view(2, 14, 14, 512))


def test_initialisation_is_mixers() -> None:
    torch.manual_seed(0)
    model = visionmlp.create_model("sparsemlp_moe_s", depth=2, sparse_blocks=1)
    dense, sparse = model.stages[0].blocks
    layers = [
        (model.stem.proj, 768),
        (dense.spatial.fc1, 196),
        (sparse.leave.channels, 256),
        (sparse.spatial.moe.experts.fc1, 392),
        (sparse.spatial.moe.router.fc, 392),
        (sparse.channel.experts.fc2, 512),
    ]
    for layer, fan_in in layers:
        assert layer.weight.std().item() == pytest.approx(fan_in**-0.5, rel=0.03)
        assert layer.weight.abs().max().item() < 2.3 * fan_in**-0.5
        assert layer.bias is None or not layer.bias.any()
    assert not model.head.fc.weight.any()
    assert sparse.norm1.eps == 1e-6
    assert sparse.channel.experts.act.approximate == "tanh"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparse_blocks": 5}, "sparse_blocks 5 are more than all blocks, depth = 4"),
        ({"sparse_blocks": 4, "kernel_sizes": (3,)}, "kernel_sizes need a dense block"),
        ({"channel_reduction": 3}, "channel_reduction 3 does not divide dim 16"),
        ({"token_experts": 1}, "token_experts must be at least 2"),
        ({"channel_top_k": 4}, "channel_top_k 4 is more than channel_experts = 3"),
        ({"capacity_factor": 0.0}, "capacity_factor must be positive"),
        ({"load_weight": -1.0}, "load_weight must not be negative"),
        ({"proj_drop_rate": 1.0}, r"proj_drop_rate must be in \[0, 1\)"),
        ({"kernel_sizes": (2,)}, "odd and positive"),
        ({"router_noise": 1}, "router_noise must be a bool"),
        ({"img_size": (36, 32)}, "36x32 is not a multiple of 8"),
    ],
)
def test_rules_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfig if "img_size" not in options else ValueError, match=message):
        visionmlp.create_model(NAME, **options)


@torch.no_grad()
def test_weights_of_another_size_are_interpolated() -> None:
    """Constant and linear weights over positions are interpolated without error in the middle of the map."""
    small = build()
    state = small.state_dict()
    rows = torch.arange(4, dtype=torch.float64)
    ramp = rows[:, None] + 10 * rows  # (4, 4): value of a position
    name = "stages.0.blocks.3."
    state[f"{name}spatial.moe.experts.fc2.bias"][:] = torch.stack([ramp, -ramp]).flatten()
    state[f"{name}enter.tokens.weight"][:] = 1.0
    state[f"{name}spatial.moe.router.fc.weight"][:] = 1.0
    small.load_state_dict(state)
    for size, grid in (((64, 64), (8, 8)), ((64, 32), (8, 4))):
        large = visionmlp.create_model(NAME, img_size=size).double().eval()
        load_strictly(large, resize_tokens(large, small.state_dict(), (32, 32)), "small")
        block = large.stages[0].blocks[3]
        bias = block.spatial.moe.experts.fc2.bias.view(2, 2, *grid)
        torch.testing.assert_close(bias[:, 0], -bias[:, 1])
        expected = F.interpolate(ramp[None, None], size=grid, mode="bicubic", antialias=True)[0, 0]
        torch.testing.assert_close(bias[0, 0], expected)
        # sums over positions keep their size
        inputs = 16 / (grid[0] * grid[1])
        torch.testing.assert_close(block.enter.tokens.weight, torch.full_like(block.enter.tokens.weight, inputs))
        router = block.spatial.moe.router.fc.weight
        torch.testing.assert_close(router, torch.full_like(router, inputs))
        assert large(image(size=size)).shape == (2, 10)
    back = visionmlp.create_model(NAME).double()
    load_strictly(back, resize_tokens(back, small.state_dict(), None), "itself")
    assert all(torch.equal(a, b) for a, b in zip(back.state_dict().values(), small.state_dict().values(), strict=True))


@torch.no_grad()
def test_a_wider_map_of_constant_channels_keeps_its_meaning(tmp_path: Any) -> None:
    """With weights that do not depend on the position, an image of twice the size gives the same features."""
    small = build(capacity_factor=9.0)
    entries = {}
    for prefix, mixer in small.named_modules():
        for entry in getattr(mixer, "grid_entries", ()):
            value = small.state_dict()[f"{prefix}.{entry}"]
            entries[f"{prefix}.{entry}"] = torch.full_like(value, value.mean().item())
    small.load_state_dict({**small.state_dict(), **entries})
    path = tmp_path / "small.safetensors"
    visionmlp.save_checkpoint(path, small)
    large, _ = visionmlp.load_model(path, img_size=64)
    flat = torch.full((1, 3, 64, 64), 0.7, dtype=torch.float64)
    expected = small(flat[:, :, :32, :32])
    torch.testing.assert_close(large.double()(flat), expected, rtol=1e-5, atol=1e-5)  # float32 weights


def test_locality_goes_to_the_dense_blocks() -> None:
    local = randomise(visionmlp.add_locality(build(), (1, 3))).double()
    assert local.config.kernel_sizes == (1, 3)  # type: ignore[union-attr]
    assert len([m for m in local.modules() if isinstance(m, nn.ModuleDict) and len(m) == 2]) == 2
    with torch.no_grad():
        torch.testing.assert_close(visionmlp.reparameterize(local)(image()), local(image()))  # type: ignore[arg-type]


def test_there_are_no_authors_checkpoints() -> None:
    model = build()
    twin = visionmlp.load_official(visionmlp.create_model(NAME).double(), model.to_official(model.state_dict()))
    assert all(torch.equal(a, b) for a, b in zip(twin.parameters(), model.parameters(), strict=True))
    with pytest.raises(CheckpointError, match=r"no authors' checkpoints of sparsemlp_moe_test.*upcycle"):
        visionmlp.load_official(model, {"blocks.0.weight": torch.zeros(1)})


DENSE = {"depth": 4, "token_dim": 12, "channel_dim": 40}
EXACT: dict[str, Any] = {
    "normalise_gates": True,
    "capacity_factor": 3.0,
    "channel_reduction": 1,
    "token_expert_dim": 12,
    "channel_expert_dim": 40,
}


def dense_model(**options: Any) -> Any:
    return randomise(visionmlp.create_model("mlpmixer_test", **{**DENSE, **options})).double().eval()


@pytest.mark.parametrize(
    "options",
    [
        {"token_expansion": 1},
        {"token_expansion": 2},
        {"token_expansion": 1, "token_expert_dim": 24, "channel_expert_dim": 80},  # every unit twice
        {"kernel_sizes": (3,)},  # branches of the dense model merge into the experts
    ],
    ids=str,
)
@torch.no_grad()
def test_upcycling_keeps_the_function(options: dict[str, Any]) -> None:
    dense = dense_model(kernel_sizes=options.get("kernel_sizes", ()))
    model = visionmlp.upcycle(build(**{**EXACT, **options}), dense)
    torch.testing.assert_close(model(image()), dense(image()), rtol=1e-10, atol=1e-11)
    fresh = build(**{**EXACT, **options})
    assert (fresh(image()) - dense(image())).abs().max() > 1e-2
    again = visionmlp.upcycle(build(**{**EXACT, **options}), dense.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
    for name, value in fresh.state_dict().items():
        if ".router." in name:
            assert torch.equal(model.state_dict()[name], value)


@torch.no_grad()
def test_upcycling_narrow_experts_share_the_units() -> None:
    """Four experts of a quarter of the units each: all of them together, weighted alike, are the dense MLP."""
    options = {**EXACT, "channel_experts": 4, "channel_top_k": 4, "channel_expert_dim": 10, "capacity_factor": 9.0}
    model, dense = build(**options), dense_model()
    visionmlp.upcycle(model, dense)
    for block in model.stages[0].blocks[2:]:
        block.channel.router.fc.weight.zero_()  # equal gates
    torch.testing.assert_close(model(image()), dense(image()), rtol=1e-10, atol=1e-11)


@torch.no_grad()
def test_upcycling_into_the_default_widths_is_near_the_dense_model() -> None:
    """Half of the channels are lost within the block; the best half keeps more than another one."""
    dense = dense_model()
    model = visionmlp.upcycle(build(), dense)
    x = image(8)
    torch.testing.assert_close(
        model.forward_intermediates(x, indices=[1], intermediates_only=True)[0],
        dense.forward_intermediates(x, indices=[1], intermediates_only=True)[0],
    )
    for block in model.stages[0].blocks[2:]:
        kept = block.enter.channels.weight
        torch.testing.assert_close(kept @ kept.t(), torch.eye(8, dtype=torch.float64))
        torch.testing.assert_close(block.leave.channels.weight, kept.t())
        round_trip = block.leave.tokens.weight @ block.enter.tokens.weight
        torch.testing.assert_close(round_trip, torch.eye(16, dtype=torch.float64))


@pytest.mark.parametrize(
    ("options", "kind"),
    [({"depth": 3}, "missing"), ({"depth": 5}, "unexpected"), ({"dim": 24}, "misshapen"), ({"num_classes": 3}, "head")],
)
def test_upcycling_refuses_other_widths(options: dict[str, Any], kind: str) -> None:
    model = build()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CheckpointMismatch, match=f"the dense model does not fit sparsemlp_moe_test.*{kind}"):
        visionmlp.upcycle(model, dense_model(**options))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
