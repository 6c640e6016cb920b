"""Losses, mixing and metrics of the classification task."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from visionmlp.data import Batch
from visionmlp.tasks.classify.task import Classification, Mixing

LOGITS = torch.randn(6, 7, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 6, 3, 3, 1, 5])


class Fixed(nn.Module):
    """Returns the same logits and remembers its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = x
        return LOGITS


def loss(**options: object) -> float:
    result = Classification(7, **options).training_loss(Fixed(), Batch(torch.zeros(6, 3, 4, 4), LABELS))  # type: ignore[arg-type]
    assert result.count == 6
    return result.total.item() / 6


def test_losses_by_hand() -> None:
    assert loss() == pytest.approx(F.cross_entropy(LOGITS, LABELS).item())
    assert loss(label_smoothing=0.2) == pytest.approx(F.cross_entropy(LOGITS, LABELS, label_smoothing=0.2).item())
    target = F.one_hot(LABELS, 7).float()
    assert loss(loss="bce") == pytest.approx(F.binary_cross_entropy_with_logits(LOGITS, target).item())
    assert loss(loss="bce_sum") == pytest.approx(7 * loss(loss="bce"), rel=1e-5)
    smooth = target * 0.8 + 0.2 / 7
    assert loss(loss="bce", label_smoothing=0.2) == pytest.approx(
        F.binary_cross_entropy_with_logits(LOGITS, smooth).item()
    )


@pytest.mark.parametrize("name", ["cross_entropy", "bce", "bce_sum"])
def test_mixup_mixes_images_and_targets_alike(name: str) -> None:
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 4, 4).contiguous()
    task = Classification(7, loss=name, mixing=Mixing(mixup=1.0))  # type: ignore[arg-type]
    model = Fixed()
    np.random.seed(3)  # noqa: NPY002 (mixup draws from it)
    value = task.training_loss(model, Batch(images, LABELS)).total.item() / 6
    share = 1 - model.seen[0, 0, 0, 0].item() / 5  # of the image itself, as its partner is image 5
    target = share * F.one_hot(LABELS, 7) + (1 - share) * F.one_hot(LABELS.flip(0), 7)
    expected = {
        "cross_entropy": -(target * LOGITS.log_softmax(1)).sum(1).mean(),
        "bce": F.binary_cross_entropy_with_logits(LOGITS, target),
        "bce_sum": 7 * F.binary_cross_entropy_with_logits(LOGITS, target),
    }[name]
    assert 0 < share < 1
    assert value == pytest.approx(expected.item(), rel=1e-5)
    assert images[0].sum() == 0  # the batch itself is left as it was


@pytest.mark.parametrize(
    ("mixing", "kinds"),
    [
        (Mixing(), {"none"}),
        (Mixing(mixup=1.0, probability=0.0), {"none"}),
        (Mixing(mixup=1.0), {"mixup"}),
        (Mixing(cutmix=1.0), {"cutmix"}),
        (Mixing(mixup=1.0, cutmix=1.0), {"mixup", "cutmix"}),
        (Mixing(mixup=1.0, cutmix=1.0, switch_probability=0.0), {"mixup"}),
        (Mixing(mixup=1.0, probability=0.5), {"mixup", "none"}),
    ],
)
def test_each_mixing_option_has_its_effect(mixing: Mixing, kinds: set[str]) -> None:
    images = torch.arange(1.0, 7.0).view(6, 1, 1, 1).expand(6, 3, 32, 32).contiguous()
    task, model, seen = Classification(7, mixing=mixing), Fixed(), set()
    np.random.seed(0)  # noqa: NPY002 (mixup draws from it)
    for _ in range(12):
        task.training_loss(model, Batch(images, LABELS))
        values = model.seen[0].unique().tolist()
        seen.add("none" if values == [1.0] else "cutmix" if set(values) <= {1.0, 6.0} else "mixup")
    assert seen == kinds


def test_mixing_mode_decides_what_shares_a_draw() -> None:
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 4, 4).contiguous()

    def shares(mode: str) -> list[float]:
        model = Fixed()
        np.random.seed(0)  # noqa: NPY002 (mixup draws from it)
        task = Classification(7, mixing=Mixing(mixup=1.0, mode=mode))  # type: ignore[arg-type]
        task.training_loss(model, Batch(images, LABELS))
        own = torch.arange(6.0)
        return ((model.seen[:, 0, 0, 0] - own.flip(0)) / (own - own.flip(0))).tolist()

    assert len({round(share, 4) for share in shares("batch")}) == 1
    pair = shares("pair")
    assert pair == pytest.approx(pair[::-1], abs=1e-5)
    assert len({round(share, 4) for share in pair}) == 3
    assert len({round(share, 4) for share in shares("elem")}) == 6


def test_metrics_by_counting() -> None:
    task = Classification(7)
    total = task.new_metric()
    for _ in range(2):
        task.evaluate(Fixed(), Batch(torch.zeros(6, 3, 1, 1), LABELS), total)
    metrics = total.compute()
    order = LOGITS.argsort(1, descending=True)
    ranks = [order[i].tolist().index(label) for i, label in enumerate(LABELS.tolist())]
    assert metrics["top1"] == pytest.approx(100 * sum(rank == 0 for rank in ranks) / 6)
    assert metrics["top5"] == pytest.approx(100 * sum(rank < 5 for rank in ranks) / 6)
    assert 0 < sum(rank < 5 for rank in ranks) < 6
    assert metrics["loss"] == pytest.approx(F.cross_entropy(LOGITS, LABELS).item())
    confusion = torch.zeros(7, 7, dtype=torch.int64)
    for label, prediction in zip(LABELS, order[:, 0], strict=True):
        confusion[label, prediction] += 2
    assert torch.equal(total.confusion, confusion)
    assert not math.isnan(metrics["loss"])
