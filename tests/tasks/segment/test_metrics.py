"""One confusion matrix, equal to scikit-learn's; classes that nobody has are left out."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, jaccard_score

from visionmlp.engine.processes import Processes
from visionmlp.tasks.segment.classes import IGNORE
from visionmlp.tasks.segment.metrics import SegmentationMetric


def metric_of(predicted: torch.Tensor, labels: torch.Tensor, classes: int) -> SegmentationMetric:
    metric = SegmentationMetric(classes)
    metric.count_image()
    log_probabilities = torch.full((classes, *labels.shape), -2.0)
    metric.update(log_probabilities, predicted, labels)
    return metric


def test_scores_are_scikit_learns() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 5, (3, 20, 30))
    labels[generator.random(labels.shape) < 0.2] = IGNORE
    predicted = np.where(
        generator.random(labels.shape) < 0.6, np.minimum(labels, 4), generator.integers(0, 5, labels.shape)
    )
    metric = SegmentationMetric(5)
    for truth, answer in zip(labels, predicted, strict=True):
        logs = torch.from_numpy(generator.normal(size=(5, 20, 30)))
        metric.update(logs.log_softmax(0), torch.from_numpy(answer), torch.from_numpy(truth.astype(np.uint8)))
    valid = labels != IGNORE
    expected = confusion_matrix(labels[valid], predicted[valid], labels=range(5))
    np.testing.assert_array_equal(metric.confusion.numpy(), expected)
    scores = jaccard_score(labels[valid], predicted[valid], average=None, labels=range(5))
    np.testing.assert_allclose(metric.iou().numpy(), 100 * np.asarray(scores), rtol=1e-12)
    numbers = metric.compute()
    assert numbers["miou"] == pytest.approx(100 * np.mean(scores))
    assert numbers["pixel_accuracy"] == pytest.approx(100 * np.mean(labels[valid] == predicted[valid]))


def test_loss_is_the_mean_of_valid_pixels() -> None:
    logits = torch.randn(3, 4, 5, dtype=torch.float64)
    labels = torch.randint(0, 3, (4, 5))
    labels[0] = IGNORE
    metric = SegmentationMetric(3)
    metric.update(logits.log_softmax(0), logits.argmax(0), labels)
    expected = torch.nn.functional.cross_entropy(logits[None], labels[None], ignore_index=IGNORE)
    assert metric.compute()["loss"] == pytest.approx(expected.item(), rel=1e-12)


def test_classes_that_do_not_occur() -> None:
    labels = torch.tensor([[0, 0, 1, 1]])
    absent = metric_of(torch.tensor([[0, 0, 1, 0]]), labels, 3)
    assert absent.iou().isnan().tolist() == [False, False, True]
    assert absent.compute()["miou"] == pytest.approx(100 * (2 / 3 + 1 / 2) / 2)
    predicted = metric_of(torch.tensor([[0, 0, 1, 2]]), labels, 3)
    assert predicted.iou().tolist() == pytest.approx([100, 50, 0])
    assert predicted.accuracy().isnan().tolist() == [False, False, True]


def test_nothing_valid_is_no_number() -> None:
    numbers = metric_of(torch.zeros(2, 2, dtype=torch.long), torch.full((2, 2), IGNORE), 2).compute()
    assert all(math.isnan(value) for value in numbers.values())


def test_parts_add_up() -> None:
    """As processes merge: sums of matrices, pictures by their number."""
    labels, predicted = torch.randint(0, 3, (2, 6, 6)), torch.randint(0, 3, (2, 6, 6))
    one = metric_of(predicted[0], labels[0], 3)
    one.update(torch.full((3, 6, 6), -2.0), predicted[1], labels[1])
    parts = [metric_of(predicted[index], labels[index], 3) for index in (0, 1)]
    parts[1].show(1, predicted[1].numpy())

    class Two(Processes):
        def sum(self, value: torch.Tensor) -> torch.Tensor:
            name = next(key for key, own in parts[0].sums.values.items() if own is value)
            return value + parts[1].sums.values[name]

        def gather(self, item):  # type: ignore[no-untyped-def]
            return [item, parts[1].pictures.items]

    parts[0].merge(Two())
    assert torch.equal(parts[0].confusion, one.confusion)
    assert parts[0].images == 2
    assert list(parts[0].pictures.items) == [1]
