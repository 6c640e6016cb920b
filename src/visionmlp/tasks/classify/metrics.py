"""Loss, accuracy, confusion matrix, calibration and ReaL accuracy: sums that add up over batches and processes."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from visionmlp.engine.metrics import Sums
from visionmlp.engine.processes import Processes

CALIBRATION_BINS = 15
"""Guo et al.'s."""


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
        """The numbers; of no images they are NaN."""
        images = self.values["images"].item() or math.nan
        return {
            "loss": self.values["loss"].item() / images,
            "top1": 100 * self.values["confusion"].trace().item() / images,
            "top5": 100 * self.values["in_top5"].item() / images,
        }


class CalibrationMetric(Sums):
    """``ece``, the expected calibration error in percent, and what a reliability diagram shows.

    Images fall into 15 bins of equal width, (m/15, (m+1)/15], by their confidence, the largest probability. The error
    is the distance between accuracy and mean confidence of a bin, averaged over the bins with their shares of the
    images as weights (Guo et al., arXiv 1706.04599, equations 2 and 3).
    """

    def __init__(self) -> None:
        zeros = torch.zeros(CALIBRATION_BINS, dtype=torch.float64)
        super().__init__({"images": zeros, "confidence": zeros, "correct": zeros})

    @property
    def bins(self) -> Tensor:
        """(15, 3), float64, on the CPU: images, sum of their confidences, and how many are right."""
        return torch.stack([self.values[name].cpu() for name in ("images", "confidence", "correct")], 1)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Take in a batch: logits (B, K) and class numbers (B,)."""
        confidence, predicted = logits.double().softmax(1).max(1)
        edges = torch.arange(1, CALIBRATION_BINS, dtype=torch.float64, device=logits.device) / CALIBRATION_BINS
        bins = torch.bucketize(confidence, edges)
        ones = torch.ones_like(confidence)
        self.add(
            {
                name: torch.bincount(bins, weights, minlength=CALIBRATION_BINS)
                for name, weights in (
                    ("images", ones),
                    ("confidence", confidence),
                    ("correct", (predicted == labels).double()),
                )
            }
        )

    def compute(self) -> dict[str, float]:
        """The number; of no images it is NaN."""
        gaps = (self.values["correct"] - self.values["confidence"]).abs().sum().item()
        return {"ece": 100 * gaps / (self.values["images"].sum().item() or math.nan)}


class RealMetric(Sums):
    """``real``, the percentage of images whose first class is among their ReaL labels; images without any do not count.

    Args:
        answers: the right outputs of each image, by its index in the source.
    """

    def __init__(self, answers: Sequence[Sequence[int]]) -> None:
        super().__init__({name: torch.zeros((), dtype=torch.int64) for name in ("correct", "images", "empty")})
        width = max(map(len, answers), default=0)
        rows = [[*answer, *[-1] * (width - len(answer))] for answer in answers]
        self.answers = torch.tensor(rows, dtype=torch.int64)

    @property
    def images(self) -> int:
        """Images that count."""
        return int(self.values["images"].item())

    @property
    def empty(self) -> int:
        """Images that do not, since nobody could name them."""
        return int(self.values["empty"].item())

    def update(self, logits: Tensor, indices: Tensor) -> None:
        """Take in a batch: logits (B, K) and the images' indices in the source (B,)."""
        answers = self.answers[indices.cpu()].to(logits.device)
        counts = (answers >= 0).any(1)
        correct = (answers == logits.argmax(1)[:, None]).any(1)
        self.add({"correct": correct.sum(), "images": counts.sum(), "empty": (~counts).sum()})

    def compute(self) -> dict[str, float]:
        """The number; of no images it is NaN."""
        return {"real": 100 * self.values["correct"].item() / (self.images or math.nan)}


class EvaluationMetric:
    """All that ``eval`` says about a classifier.

    Args:
        num_classes: K.
        real: the right outputs of each image by ReaL, for `RealMetric`.
    """

    def __init__(self, num_classes: int, real: Sequence[Sequence[int]] | None = None) -> None:
        self.classification = ClassificationMetric(num_classes)
        self.calibration = CalibrationMetric()
        self.real = None if real is None else RealMetric(real)

    @property
    def images(self) -> int:
        """Images that were taken in."""
        return self.classification.images if self.real is None else self.real.images + self.real.empty

    def update(self, logits: Tensor, labels: Tensor, indices: Tensor) -> None:
        """Take in a batch: logits (B, K), class numbers (B,), -1 where unknown, and indices in the source (B,)."""
        known = labels >= 0
        if known.any():
            self.classification.update(logits[known], labels[known])
            self.calibration.update(logits[known], labels[known])
        if self.real is not None:
            self.real.update(logits, indices)

    def merge(self, processes: Processes) -> None:
        """See `visionmlp.engine.metrics.Metric.merge`."""
        self.classification.merge(processes)
        self.calibration.merge(processes)
        if self.real is not None:
            self.real.merge(processes)

    def compute(self) -> dict[str, float]:
        """``loss``, ``top1``, ``top5``, ``ece`` and, where it is asked for, ``real``."""
        real = {} if self.real is None else self.real.compute()
        return {**self.classification.compute(), **self.calibration.compute(), **real}
