"""Calibration and ReaL accuracy against independent counts, and merged over parts of the images."""

import importlib.util
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from visionmlp.tasks.classify.metrics import CalibrationMetric, EvaluationMetric

IMAGES, CLASSES = 400, 7


@pytest.fixture(scope="module")
def predictions() -> tuple[Tensor, Tensor]:
    """Logits of all confidences, of which about half are right."""
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(IMAGES, CLASSES, generator=random) * torch.linspace(0, 6, IMAGES)[:, None]
    labels = torch.where(torch.rand(IMAGES, generator=random) < 0.4, logits.argmax(1), torch.arange(IMAGES) % CLASSES)
    return logits, labels


def ece_by_counting(logits: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Guo et al., equations 2 and 3, image by image."""
    error = 0.0
    exponentials = np.exp(logits.astype(np.float64))
    probabilities = exponentials / exponentials.sum(1, keepdims=True)
    for m in range(bins):
        confidences, right = [], []
        for row, label in zip(probabilities, labels, strict=True):
            if m / bins < row.max() <= (m + 1) / bins:
                confidences.append(row.max())
                right.append(row.argmax() == label)
        if right:
            error += len(right) / len(labels) * abs(np.mean(right) - np.mean(confidences))
    return 100 * error


def test_calibration_error_by_counting(predictions: tuple[Tensor, Tensor]) -> None:
    logits, labels = predictions
    metric = CalibrationMetric()
    metric.update(logits, labels)
    expected = ece_by_counting(logits.numpy(), labels.numpy())
    assert expected > 5
    assert metric.compute()["ece"] == pytest.approx(expected, rel=1e-12)
    assert (metric.bins[:, 0] > 0).sum() > 10
    assert metric.bins[:, 0].sum() == IMAGES
    assert metric.bins[:, 2].sum() == (logits.argmax(1) == labels).sum()
    if importlib.util.find_spec("torchmetrics") is not None:
        from torchmetrics.functional.classification import multiclass_calibration_error  # type: ignore[import-not-found]

        theirs = multiclass_calibration_error(logits.double().softmax(1), labels, num_classes=CLASSES, n_bins=15)
        assert metric.compute()["ece"] == pytest.approx(100 * theirs.item(), rel=1e-5)


def test_a_sure_model_that_is_right_has_no_error_and_one_that_is_wrong_has_all() -> None:
    labels = torch.arange(4)
    for shift, expected in ((0, 0.0), (1, 100.0)):
        metric = CalibrationMetric()
        metric.update(torch.eye(4) * 1000, (labels + shift) % 4)
        assert metric.compute()["ece"] == expected
    assert math.isnan(CalibrationMetric().compute()["ece"])


def test_an_evaluation_does_not_depend_on_who_saw_what(predictions: tuple[Tensor, Tensor]) -> None:
    logits, labels = predictions
    random = np.random.default_rng(1)
    answers = [random.permutation(CLASSES)[: random.integers(0, 4)].tolist() for _ in range(IMAGES)]
    indices = torch.arange(IMAGES)

    def seen(images: Tensor) -> EvaluationMetric:
        metric = EvaluationMetric(CLASSES, answers)
        for part in images.split(33):
            metric.update(logits[part], labels[part], indices[part])
        return metric

    whole = seen(indices)
    first, second = seen(indices[1::3]), seen(torch.cat([indices[2::3], indices[::3]]))
    # what all_reduce does, quantity by quantity and in the same order on both sides
    theirs = iter(
        [value for part in (second.classification, second.calibration, second.real) for value in part.values.values()]
    )  # type: ignore[union-attr]
    processes: Any = SimpleNamespace(sum=lambda value: value + next(theirs))
    first.merge(processes)
    assert first.compute() == pytest.approx(whole.compute(), rel=1e-12)
    assert first.images == whole.images == IMAGES
    assert torch.equal(first.classification.confusion, whole.classification.confusion)

    assert whole.real is not None
    right = [int(row.argmax()) in answer for row, answer in zip(logits, answers, strict=True) if answer]
    assert whole.real.images == len(right) < IMAGES
    assert whole.real.empty == IMAGES - len(right)
    assert whole.compute()["real"] == pytest.approx(100 * sum(right) / len(right))


def test_images_without_a_class_count_for_real_labels_alone(predictions: tuple[Tensor, Tensor]) -> None:
    logits, _ = predictions
    metric = EvaluationMetric(CLASSES, [[int(row.argmax())] for row in logits])
    metric.update(logits, torch.full((IMAGES,), -1), torch.arange(IMAGES))
    numbers = metric.compute()
    assert numbers.pop("real") == 100.0
    assert set(numbers) == {"loss", "top1", "top5", "ece"}
    assert all(map(math.isnan, numbers.values()))
    assert metric.images == IMAGES
