"""Loss, top-1, top-5 and confusion matrix, as sums that add up over batches and processes."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


def classification_sums(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Sums over a batch.

    Args:
        logits: (B, K).
        labels: class numbers (B,).

    Returns:
        ``images``, ``loss`` (cross-entropy) and ``in_top5``, scalars; ``confusion`` (K, K), int64, with true classes in
        rows and predictions in columns.
    """
    logits = logits.double()
    classes = logits.shape[1]
    top = logits.topk(min(5, classes)).indices
    cells = labels * classes + top[:, 0]
    return {
        "images": torch.tensor(len(labels), dtype=torch.float64, device=logits.device),
        "loss": F.cross_entropy(logits, labels, reduction="sum"),
        "in_top5": (top == labels[:, None]).sum(),
        "confusion": torch.bincount(cells, minlength=classes * classes).view(classes, classes),
    }


def classification_metrics(sums: Mapping[str, Tensor]) -> dict[str, float]:
    """``loss``, and ``top1`` and ``top5`` in percent (top5 is 100 for five classes or fewer)."""
    images = sums["images"].item()
    return {
        "loss": sums["loss"].item() / images,
        "top1": 100 * sums["confusion"].trace().item() / images,
        "top5": 100 * sums["in_top5"].item() / images,
    }
