"""Routing against loops over items, the losses by hand, and what is collected."""

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from visionmlp.layers.auxiliary import AuxiliaryLoss, collect_auxiliary
from visionmlp.layers.moe import (
    Choice,
    ExpertLinear,
    Experts,
    MixtureOfExperts,
    Router,
    assign_places,
    expected_load,
    importance,
    places_of_expert,
    squared_variation,
)

DIM, ITEMS = 5, 7


def build(
    *,
    experts: int = 4,
    top_k: int = 2,
    capacity_factor: float = 1.0,
    noise: bool = False,
    normalise_gates: bool = False,
    weights: tuple[float, float] = (0.3, 0.7),
) -> MixtureOfExperts:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        moe = MixtureOfExperts(
            "moe",
            Experts(experts, DIM, 6, act=nn.GELU()),
            Router(DIM, experts, top_k=top_k, noise=noise, normalise_gates=normalise_gates),
            capacity_factor=capacity_factor,
            importance_weight=weights[0],
            load_weight=weights[1],
        )
    return moe.double()


def items(batch: int = 3) -> Tensor:
    return torch.randn(batch, ITEMS, DIM, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def one_by_one(moe: MixtureOfExperts, x: Tensor) -> tuple[Tensor, int]:
    """The output and the number of choices without a place, item after item."""
    y, overflow = torch.zeros_like(x), 0
    k, count = moe.router.top_k, moe.router.experts
    capacity = math.ceil(k * x.shape[1] * moe.capacity_factor / count)
    for image in range(len(x)):
        used = [0] * count
        for rank in range(k):
            for item in range(x.shape[1]):
                value = x[image, item]
                gates = torch.softmax(moe.router.fc.weight @ value, 0)
                ranked = gates.argsort(descending=True)[:k].tolist()
                gate = gates[ranked[rank]] / (gates[ranked].sum() if moe.router.normalise_gates else 1)
                expert = ranked[rank]
                used[expert] += 1
                if used[expert] > capacity:
                    overflow += 1
                    continue
                fc1, fc2 = moe.experts.fc1, moe.experts.fc2
                hidden = F.gelu(fc1.weight[expert] @ value + fc1.bias[expert])
                y[image, item] += gate * (fc2.weight[expert] @ hidden + fc2.bias[expert])
    return y, overflow


@pytest.mark.parametrize("normalise_gates", [False, True])
@pytest.mark.parametrize("capacity_factor", [0.4, 1.0, 4.0])
@pytest.mark.parametrize(("experts", "top_k"), [(4, 1), (4, 2), (3, 3)])
def test_it_equals_a_loop_over_items(experts: int, top_k: int, capacity_factor: float, normalise_gates: bool) -> None:
    moe = build(experts=experts, top_k=top_k, capacity_factor=capacity_factor, normalise_gates=normalise_gates)
    x = items()
    expected, overflow = one_by_one(moe, x)
    assert (overflow > 0) == (capacity_factor < 1 or (capacity_factor == 1 and experts == 4))
    with collect_auxiliary(moe) as collected:
        torch.testing.assert_close(moe.train()(x), expected, rtol=1e-12, atol=1e-12)
    share = collected[0].statistics["moe.overflow"].item()
    assert share == pytest.approx(overflow / (x.shape[0] * x.shape[1] * top_k), abs=1e-6)
    torch.testing.assert_close(moe.eval()(x), expected, rtol=1e-12, atol=1e-12)
    with torch.no_grad():  # where the table is filled in another way
        torch.testing.assert_close(moe(x), expected, rtol=1e-12, atol=1e-12)
        assert moe(x[:0]).shape == (0, ITEMS, DIM)


def test_gradients_equal_those_of_the_loop() -> None:
    moe = build(capacity_factor=0.8)
    gradients = []
    for function in (moe, lambda x: one_by_one(moe, x)[0]):
        moe.zero_grad()
        x = items().requires_grad_()
        function(x).square().sum().backward()
        assert x.grad is not None
        gradients.append([x.grad, *(p.grad for p in moe.parameters())])
    for got, expected in zip(*gradients, strict=True):
        assert got is not None
        assert got.abs().max() > 1e-4
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def test_places_are_given_by_rank_then_position_within_an_image() -> None:
    chosen = torch.tensor([[[0, 1], [0, 1], [1, 0]], [[1, 0], [1, 0], [1, 0]]])
    rows, kept = assign_places(chosen, 2, 2)
    # expert 0 of image 0: items 0, 1 by first choice, so the second choice of item 2 finds no place
    assert kept.tolist() == [[True, True, True, True, False, False], [True, True, False, True, True, False]]
    places = rows[kept].tolist()
    assert len(set(places)) == len(places)
    assert rows[~kept].unique().tolist() == [2 * 2 * 2]
    # row = (expert * images + image) * capacity + place
    assert rows.tolist() == [[0, 1, 4, 5, 8, 8], [6, 7, 8, 2, 3, 8]]


@pytest.mark.parametrize(
    ("factor", "places"),
    [(1.0, 4), (1.2, 5), (100.0, 7), (0.01, 1)],  # 2 choices x 7 items / 4 experts = 3.5
)
def test_capacity(factor: float, places: int) -> None:
    assert places_of_expert(ITEMS, 2, 4, factor) == places


def test_losses_by_hand() -> None:
    moe = build()
    x = items()
    with collect_auxiliary(moe) as collected:
        moe.train()(x)
    logits = (x @ moe.router.fc.weight.t()).flatten(0, 1).detach()
    gates = torch.stack([torch.softmax(row, 0) for row in logits])
    counts = torch.zeros(4, dtype=torch.float64)
    for row in logits:
        threshold = row.sort(descending=True).values[1]
        for expert in range(4):
            # P(logit + noise >= threshold), the noise of deviation 1/4
            counts[expert] += 0.5 * math.erfc(-(row[expert] - threshold).item() * 4 / 2**0.5)

    def variation(values: Tensor) -> float:
        mean = values.mean()
        return (((values - mean) ** 2).mean() / mean**2).item()

    expected = 0.3 * variation(gates.sum(0)) + 0.7 * variation(counts)
    assert collected[0].loss.item() == pytest.approx(expected, rel=1e-8)
    assert variation(counts) > 1e-3
    statistics = collected[0].statistics
    chosen = logits.topk(2).indices
    for expert in range(4):
        assert statistics[f"moe.load{expert}"].item() == pytest.approx((chosen == expert).double().mean().item())
    entropy = -(gates * gates.log()).sum(1).mean() / math.log(4)
    assert statistics["moe.entropy"].item() == pytest.approx(entropy.item(), rel=1e-6)
    assert not any(value.requires_grad for value in statistics.values())


def test_the_losses_pull_towards_balance() -> None:
    torch.manual_seed(0)
    moe = build(weights=(0.5, 0.5)).train()
    with torch.no_grad():
        moe.router.fc.weight[0] += 3 * items().mean((0, 1))  # nearly everything goes to the first expert
    x = items(16) + items().mean((0, 1)) * 4

    def load() -> Tensor:
        return torch.bincount(moe.router(x).experts.flatten(), minlength=4) / (2 * x.shape[0] * x.shape[1])

    before = load()
    optimizer = torch.optim.Adam(moe.router.parameters(), lr=0.03)
    for _ in range(120):
        with collect_auxiliary(moe) as collected:
            moe(x)
        optimizer.zero_grad()
        collected[0].loss.backward()
        optimizer.step()
    assert before.max() > 0.4
    assert load().max() < 0.33


def test_importance_counts_all_gates_and_load_only_chances_to_be_chosen() -> None:
    logits = torch.tensor([[[2.0, 1.0, -9.0, -9.0]]], dtype=torch.float64)
    choice = Choice(logits, logits, logits, torch.tensor([[[0]]]))
    assert importance(choice).sum().item() == pytest.approx(1)
    load = expected_load(choice)[0:2].tolist()
    assert load == pytest.approx([0.5, 0.5 * math.erfc(4 / 2**0.5)])
    assert squared_variation(torch.tensor([2.0, 2.0])).item() == 0
    assert squared_variation(torch.tensor([0.0, 4.0])).item() == pytest.approx(1)
    assert squared_variation(torch.zeros(3)).item() == 0


def test_noise_is_drawn_in_training_only_and_has_the_stated_deviation() -> None:
    router = Router(DIM, 4, top_k=1, noise=True, normalise_gates=False).double()
    x = items(400)
    torch.manual_seed(0)
    choice = router.train()(x)
    noise = choice.noisy - choice.logits
    assert noise.std().item() == pytest.approx(1 / 4, rel=0.02)
    assert noise.mean().item() == pytest.approx(0, abs=0.01)
    torch.testing.assert_close(choice.logits, x @ router.fc.weight.t())
    assert torch.equal(router.eval()(x).noisy, choice.logits)
    router.noise = False
    assert torch.equal(router.train()(x).noisy, choice.logits)


def test_images_do_not_take_each_others_places() -> None:
    moe = build(capacity_factor=0.5)
    x = items()
    whole = moe(x)
    for image in range(3):
        torch.testing.assert_close(moe(x[image : image + 1])[0], whole[image], rtol=1e-12, atol=1e-12)
    assert moe(x[:0]).shape == (0, ITEMS, DIM)
    with collect_auxiliary(moe) as collected:
        moe.train()(x[:0])
    assert collected[0].loss.item() == 0


def test_scores_of_low_precision_are_compared_in_float32() -> None:
    router = Router(DIM, 3, top_k=1, noise=False, normalise_gates=False)
    assert router(items().float()).gates.dtype == torch.float32
    assert router.bfloat16()(items().bfloat16()).gates.dtype == torch.float32
    moe = build().bfloat16()
    assert moe(items().bfloat16()).dtype == torch.bfloat16


def test_nothing_is_kept_between_steps() -> None:
    moe = build().train()
    assert isinstance(moe, AuxiliaryLoss)
    wrapped = nn.Sequential(moe)
    with collect_auxiliary(wrapped) as collected:
        wrapped(items())
        wrapped(items())
    assert len(collected) == 2
    wrapped(items())
    assert len(collected) == 2
    assert not moe.is_collected
    copy.deepcopy(wrapped)
    pickle.dumps(wrapped)
    with collect_auxiliary(moe.eval()) as collected:
        moe(items())
    assert collected == []
    with collect_auxiliary(nn.Linear(1, 1)) as collected:
        pass
    assert collected == []


def test_a_recomputed_module_counts_once() -> None:
    results = []
    for recompute in (False, True):
        moe = build(noise=True).train()
        x = items().requires_grad_()
        torch.manual_seed(4)
        with collect_auxiliary(moe) as collected:
            y = checkpoint(moe, x, use_reentrant=False) if recompute else moe(x)
        (y.square().sum() + 10 * collected[0].loss).backward()
        assert len(collected) == 1
        results.append([x.grad, *(p.grad for p in moe.parameters())])
    for plain, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_collecting_compiles_without_graph_breaks() -> None:
    torch._dynamo.reset()
    moe = build().train()
    compiled = torch.compile(moe, fullgraph=True, backend="aot_eager")
    gradients = []
    for model in (moe, compiled):
        moe.zero_grad()
        with collect_auxiliary(model) as collected:  # type: ignore[arg-type]
            y = model(items())
        assert len(collected) == 1
        (y.sum() + 10 * collected[0].loss).backward()
        gradients.append([moe.router.fc.weight.grad, collected[0].statistics["moe.load1"]])
    for plain, traced in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, traced)


@pytest.mark.parametrize("training", [False, True])
def test_exports_with_dynamic_batch(training: bool) -> None:
    moe = build(capacity_factor=0.8).train(training)
    shapes = ({0: torch.export.Dim("batch", min=1, max=2**31 - 1)},)
    program = torch.export.export(moe, (items(2),), dynamic_shapes=shapes).module()
    for batch in (1, 4):
        torch.testing.assert_close(program(items(batch)), moe(items(batch)))


def test_expert_layers_start_like_linear_ones() -> None:
    layer = ExpertLinear(3, 400, 50)
    assert layer.weight.abs().max().item() == pytest.approx(1 / 20, rel=0.01)
    assert layer.weight.std().item() == pytest.approx(1 / 20 / 3**0.5, rel=0.02)
    x = torch.randn(3, 2, 400)
    for expert in range(3):
        expected = F.linear(x[expert], layer.weight[expert], layer.bias[expert])
        torch.testing.assert_close(layer(x)[expert], expected)
