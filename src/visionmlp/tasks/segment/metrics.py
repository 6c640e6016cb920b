"""Scores of segmentation, all from one confusion matrix, which adds up over images and processes."""

import math

import numpy as np
import torch
from torch import Tensor

from visionmlp.engine.metrics import Collected, Sums
from visionmlp.engine.processes import Processes
from visionmlp.tasks.segment.classes import IGNORE


class SegmentationMetric:
    """``loss`` (cross-entropy of valid pixels), ``miou`` and ``pixel_accuracy`` in percent.

    Pixels whose label is `IGNORE` do not count. A class that neither the labels nor the predictions have is left out of
    the mean; one that only the predictions have counts with 0.

    Args:
        num_classes: K.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.sums = Sums(
            {
                "images": torch.zeros((), dtype=torch.int64),
                "loss": torch.zeros((), dtype=torch.float64),
                "confusion": torch.zeros(num_classes, num_classes, dtype=torch.int64),
            }
        )
        self.pictures = Collected()
        """Predicted class numbers (H, W), uint8, of images that are shown, by their number."""

    @property
    def images(self) -> int:
        """Images that were taken in."""
        return int(self.sums.values["images"].item())

    @property
    def confusion(self) -> Tensor:
        """(K, K), int64, on the CPU: true classes in rows, predictions in columns; of pixels."""
        return self.sums.values["confusion"].cpu()

    def count_image(self) -> None:
        """One more image."""
        self.sums.add({"images": torch.ones((), dtype=torch.int64)})

    def update(self, log_probabilities: Tensor, predicted: Tensor, labels: Tensor) -> None:
        """Take in pixels.

        Args:
            log_probabilities: (K, H, W).
            predicted: (H, W), class numbers.
            labels: (H, W), with `IGNORE`.
        """
        labels = labels.long().to(predicted.device)
        valid = labels != IGNORE
        cells = (labels * self.num_classes + predicted)[valid]
        confusion = torch.bincount(cells, minlength=self.num_classes**2)
        own = log_probabilities.gather(0, torch.where(valid, labels, 0)[None])[0]
        self.sums.add(
            {
                "loss": -own[valid].double().sum(),
                "confusion": confusion.view(self.num_classes, self.num_classes),
            }
        )

    def show(self, number: int, predicted: np.ndarray) -> None:
        """Keep the prediction of an image for a picture."""
        self.pictures.add(number, predicted)

    def merge(self, processes: Processes) -> None:
        """See `visionmlp.engine.Metric`."""
        self.sums.merge(processes)
        self.pictures.merge(processes)

    def iou(self) -> Tensor:
        """(K,), float64: intersection over union, in percent; NaN for a class that nobody has."""
        counts = self.confusion.double()
        both = counts.diag()
        return 100 * both / (counts.sum(0) + counts.sum(1) - both)

    def accuracy(self) -> Tensor:
        """(K,), float64: share of the pixels of a class that are right, in percent; NaN for one without pixels."""
        counts = self.confusion.double()
        return 100 * counts.diag() / counts.sum(1)

    def compute(self) -> dict[str, float]:
        """The numbers; without a valid pixel they are NaN."""
        pixels = self.confusion.sum().item() or math.nan
        return {
            "loss": self.sums.values["loss"].item() / pixels,
            "miou": self.iou().nanmean().item(),
            "pixel_accuracy": 100 * self.confusion.trace().item() / pixels,
        }
