"""Losses add up: parts and processes equal one batch; ignored pixels teach nothing; an all-ignored batch is no NaN."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from visionmlp.tasks.segment.classes import IGNORE
from visionmlp.tasks.segment.loss import SegmentationLoss, dice

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dice": {"dice_weight": 0.7},
    "ohem": {"ohem_threshold": 0.3, "ohem_min_kept": 20},
    "all": {"dice_weight": 0.7, "ohem_threshold": 0.3, "ohem_min_kept": 20},
}


def batch(images: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(images, 4, 3, 4, generator=generator, dtype=torch.float64).requires_grad_()
    auxiliary = torch.randn(images, 4, 2, 2, generator=generator, dtype=torch.float64).requires_grad_()
    labels = torch.randint(0, 4, (images, 12, 16), generator=generator)
    for index in range(images):  # as many ignored rows as the image's number, and one image that is all ignored
        labels[index, : 3 * index] = IGNORE
    return logits, auxiliary, labels.to(torch.uint8)


@pytest.mark.parametrize("normaliser", ["all_pixels", "valid_pixels"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_parts_equal_one_batch(normaliser: Any, options: dict[str, Any]) -> None:
    loss = SegmentationLoss(normaliser=normaliser, **options)
    logits, auxiliary, labels = batch()
    total, count = loss(logits, auxiliary, labels)
    whole = torch.autograd.grad(total / count, (logits, auxiliary))
    parts = [slice(0, 1), slice(1, 4), slice(4, 5)]
    sums = [loss(logits[part], auxiliary[part], labels[part]) for part in parts]
    totals, counts = (torch.stack(values).sum() for values in zip(*sums, strict=True))
    for one, other in zip(whole, torch.autograd.grad(totals / counts, (logits, auxiliary)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(totals / counts, total / count, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("normaliser", "divisor"), [("all_pixels", 5 * 12 * 16), ("valid_pixels", None)])
def test_cross_entropy_is_pytorchs(normaliser: Any, divisor: int | None) -> None:
    logits, auxiliary, labels = batch()
    total, count = SegmentationLoss(normaliser=normaliser, auxiliary_weight=0.4)(logits, auxiliary, labels)
    target = labels.long()
    sums = [
        F.cross_entropy(
            F.interpolate(given, size=(12, 16), mode="bilinear"), target, ignore_index=IGNORE, reduction="sum"
        )
        for given in (logits, auxiliary)
    ]
    expected = divisor or int((labels != IGNORE).sum())
    assert count.item() == expected
    torch.testing.assert_close(total / count, (sums[0] + 0.4 * sums[1]) / expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("normaliser", ["all_pixels", "valid_pixels"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_nothing_but_ignored_pixels_is_zero_with_a_gradient(normaliser: Any, options: dict[str, Any]) -> None:
    logits, auxiliary, labels = batch(1)
    total, count = SegmentationLoss(normaliser=normaliser, **options)(
        logits, auxiliary, torch.full_like(labels, IGNORE)
    )
    assert total.item() == 0
    assert count.item() == (0 if normaliser == "valid_pixels" else labels.numel())
    for gradient in torch.autograd.grad(total, (logits, auxiliary)):
        assert gradient.abs().sum() == 0


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_values_under_the_ignore_mask_do_not_matter(options: dict[str, Any]) -> None:
    loss = SegmentationLoss(normaliser="valid_pixels", **options)
    labels = torch.randint(0, 4, (2, 6, 6))
    labels[:, :3] = IGNORE
    one = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    other = one.clone()
    other[:, :, :3] = 9 * torch.randn(2, 4, 3, 6, dtype=torch.float64)
    torch.testing.assert_close(loss(one, None, labels), loss(other, None, labels), rtol=1e-12, atol=1e-14)
    only = torch.full((1, 6, 6), IGNORE)
    only[0, 4, 4] = 2
    total, count = loss(one[:1], None, only)
    assert count.item() == 1
    assert torch.isfinite(total)


def test_dice_by_hand() -> None:
    labels = torch.tensor([[[0, 1, IGNORE]]])
    sure = torch.tensor([[[[40.0, -40.0, 40.0]], [[-40.0, 40.0, -40.0]]]])
    assert dice(sure, labels).item() == pytest.approx(0.0, abs=1e-6)
    assert dice(-sure, labels).item() == pytest.approx(
        1 - 1 / 3, abs=1e-6
    )  # nothing in common: 1 - smooth / (2 + smooth)
    even = torch.zeros(1, 2, 1, 3)
    assert dice(even, labels).item() == pytest.approx(1 - (1 + 1) / (0.5 + 1 + 1), abs=1e-6)


@pytest.mark.parametrize("min_kept", [0, 1, 7, 144, 10_000])
def test_ohem_keeps_the_hardest(min_kept: int) -> None:
    """Against a sort, image by image."""
    generator = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(3, 3, 12, 12, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (3, 12, 12), generator=generator)
    labels[0, :11] = IGNORE  # fewer valid pixels than min_kept
    labels[1, 0] = IGNORE
    loss = SegmentationLoss(normaliser="valid_pixels", ohem_threshold=0.2, ohem_min_kept=min_kept)
    total, count = loss(logits, None, labels)
    expected, kept = 0.0, 0
    for image, truth in zip(logits, labels, strict=True):
        valid = truth != IGNORE
        chosen = image.softmax(0).movedim(0, -1)[valid].gather(1, truth[valid][:, None])[:, 0].sort().values
        stay = max(int((chosen < 0.2).sum()), min(min_kept, len(chosen)))
        expected, kept = expected - chosen[:stay].log().sum().item(), kept + stay
    assert count.item() == kept
    assert total.item() == pytest.approx(expected, rel=1e-12)


def test_each_option_changes_the_loss() -> None:
    logits, auxiliary, labels = batch()
    variants = [{}, {"normaliser": "valid_pixels"}, {"auxiliary_weight": 0.1}, *list(OPTIONS.values())[1:3]]
    values = []
    for options in variants:
        total, count = SegmentationLoss(**options)(logits, auxiliary, labels)
        values.append((total / count).item())
    assert all(abs(one - other) > 1e-6 for one, other in itertools.combinations(values, 2))


def test_half_precision_logits_are_summed_in_float32() -> None:
    logits, _, labels = batch()
    total, _ = SegmentationLoss()(logits.bfloat16(), None, labels)
    assert total.dtype in (torch.float32, torch.float64)
