"""Losses over pixels that add up: over parts of a batch and over processes they equal those of one large batch.

Each image has a weight n, and a loss is the sum over images of n times the image's mean, over the sum of the n. With
``all_pixels``, mmsegmentation's default, n counts the image's pixels and pixels that are ignored add nothing to the
mean's numerator but do count below (mmsegmentation issue 886); with ``valid_pixels`` they do not count.
"""

import dataclasses
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from visionmlp.heads.pixels import resize
from visionmlp.tasks.segment.classes import IGNORE

Normaliser = Literal["all_pixels", "valid_pixels"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentationLoss:
    """Cross-entropy of a head and of an auxiliary head, with hard pixels only and with Dice by option."""

    normaliser: Normaliser = "all_pixels"
    auxiliary_weight: float = 0.4
    dice_weight: float = 0.0
    ohem_threshold: float | None = None
    """Pixels of an image whose class has at least this probability are left out of the head's cross-entropy..."""
    ohem_min_kept: int = 100_000
    """...unless fewer than these would stay; then the hardest stay."""

    def __call__(self, logits: Tensor, auxiliary: Tensor | None, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Sum and count, both scalars.

        Args:
            logits: (B, K, h, w), which are resized to the labels' size.
            auxiliary: those of the auxiliary head, or None.
            labels: (B, H, W), with `IGNORE`.
        """
        labels = labels.long()
        logits = resize(_exact(logits), labels.shape[1:])
        losses = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
        valid = labels != IGNORE
        kept = valid if self.ohem_threshold is None else self._hard(losses.detach(), valid)
        counts = self._counts(kept)
        total = (losses * kept).sum()
        if auxiliary is not None:
            aside = resize(_exact(auxiliary), labels.shape[1:])
            means = F.cross_entropy(aside, labels, ignore_index=IGNORE, reduction="none").sum((1, 2))
            total = total + self.auxiliary_weight * (counts * means / self._counts(valid).clamp(min=1)).sum()
        if self.dice_weight:
            total = total + self.dice_weight * (counts * dice(logits, labels)).sum()
        return total, counts.sum()

    def _counts(self, counted: Tensor) -> Tensor:
        """(B,): the weight of each image, for pixels (B, H, W) that are looked at."""
        if self.normaliser == "all_pixels":
            return torch.full((len(counted),), counted[0].numel(), dtype=torch.float64, device=counted.device)
        return counted.sum((1, 2)).double()

    def _hard(self, losses: Tensor, valid: Tensor) -> Tensor:
        """Which pixels stay, image by image."""
        assert self.ohem_threshold is not None
        probabilities = torch.where(valid, (-losses).exp(), torch.inf).flatten(1)
        kept = min(self.ohem_min_kept, probabilities.shape[1])
        least = probabilities.kthvalue(kept, dim=1).values if kept else torch.zeros_like(probabilities[:, 0])
        threshold = least.clamp(min=self.ohem_threshold)[:, None]
        # an image with fewer valid pixels than min_kept keeps all of them
        hard = (probabilities < threshold) | ((probabilities <= least[:, None]) & (kept > 0))
        return hard.view_as(valid) & valid


def dice(logits: Tensor, labels: Tensor, *, smooth: float = 1.0) -> Tensor:
    """(B,): of each image the mean over classes of 1 - (2 sum(p t) + smooth) / (sum(p^2) + sum(t^2) + smooth).

    Args:
        logits: (B, K, H, W); p is their softmax.
        labels: (B, H, W); t is one where a pixel is of the class. Sums are over pixels that are not `IGNORE`.
        smooth: keeps classes that do not occur from 0 / 0.

    Source: Milletari et al., V-Net (arXiv 1606.04797), section 3, with squares below; 1 is mmsegmentation's ``smooth``.
    """
    valid = (labels != IGNORE)[:, None]
    probabilities = logits.softmax(1) * valid
    classes = logits.shape[1]
    truth = F.one_hot(torch.where(valid[:, 0], labels, 0), classes).movedim(-1, 1) * valid
    common = (probabilities * truth).sum((2, 3))
    both = probabilities.square().sum((2, 3)) + truth.sum((2, 3))
    losses = 1 - (2 * common + smooth) / (both + smooth)
    # nothing to learn from an image that is all ignored
    return losses.mean(1) * valid.any(3).any(2)[:, 0]


def _exact(logits: Tensor) -> Tensor:
    """At least float32: sums over many pixels."""
    return logits if logits.dtype == torch.float64 else logits.float()
