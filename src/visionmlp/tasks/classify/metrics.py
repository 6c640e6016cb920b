"""Loss, top-1, top-5 and confusion matrix, as sums that add up over batches and processes."""

import torch
import torch.nn.functional as F
from torch import Tensor

from visionmlp.engine.metrics import Sums


class ClassificationMetric(Sums):
    """``loss`` (cross-entropy), and ``top1`` and ``top5`` in percent (top5 is 100 for five classes or fewer).

    Args:
        num_classes: K.
    """

    def __init__(self, num_classes: int) -> None:
        scalar = torch.zeros((), dtype=torch.float64)
        super().__init__(
            {
                "images": scalar,
                "loss": scalar,
                "in_top5": scalar,
                "confusion": torch.zeros(num_classes, num_classes, dtype=torch.int64),
            }
        )

    @property
    def images(self) -> int:
        """Images that were taken in."""
        return int(self.values["images"].item())

    @property
    def confusion(self) -> Tensor:
        """(K, K), int64, on the CPU: true classes in rows, predictions in columns."""
        return self.values["confusion"].cpu()

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Take in a batch: logits (B, K) and class numbers (B,)."""
        logits = logits.double()
        classes = logits.shape[1]
        top = logits.topk(min(5, classes)).indices
        cells = labels * classes + top[:, 0]
        self.add(
            {
                "images": torch.tensor(len(labels), dtype=torch.float64, device=logits.device),
                "loss": F.cross_entropy(logits, labels, reduction="sum"),
                "in_top5": (top == labels[:, None]).sum().double(),
                "confusion": torch.bincount(cells, minlength=classes * classes).view(classes, classes),
            }
        )

    def compute(self) -> dict[str, float]:
        """The numbers."""
        images = self.values["images"].item()
        return {
            "loss": self.values["loss"].item() / images,
            "top1": 100 * self.values["confusion"].trace().item() / images,
            "top5": 100 * self.values["in_top5"].item() / images,
        }
