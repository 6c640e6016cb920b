"""Weighted nearest neighbours on frozen features: Wu et al., arXiv 1805.01978, with DINO's k = 20."""

import contextlib
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionmlp.data.batches import Batch
from visionmlp.engine.processes import Processes
from visionmlp.errors import DataError, InvalidConfig

_ROWS = 512
"""Queries at a time, which bounds the memory of their similarities."""


def votes_of_neighbours(
    bank: Tensor, labels: Tensor, queries: Tensor, *, num_classes: int, k: int = 20, temperature: float = 0.07
) -> Tensor:
    """Votes for each class (Q, K): exp(cosine / temperature), summed over the k nearest of the bank.

    Args:
        bank: features (N, C) with known classes.
        labels: their classes (N,).
        queries: features (Q, C).
        num_classes: K.
        k: neighbours; at most N.
        temperature: of the weights.
    """
    bank, queries = F.normalize(bank), F.normalize(queries)
    votes = []
    for rows in queries.split(_ROWS):
        similarity, nearest = (rows @ bank.T).topk(k)
        weights = ((similarity - similarity[:, :1]) / temperature).exp()  # of the same order, and never infinite
        votes.append(weights.new_zeros(len(rows), num_classes).scatter_add_(1, labels[nearest], weights))
    return torch.cat(votes)


class BankBatch(NamedTuple):
    """A batch of evaluation, and whether its images are the neighbours or the questions."""

    batch: Batch
    in_bank: bool


class BankThenQueries:
    """The training images as evaluation sees them, then those to evaluate: one pass of an evaluation."""

    def __init__(self, bank: Iterable[Batch], queries: Iterable[Batch]) -> None:
        self.bank, self.queries = bank, queries

    def __iter__(self) -> Iterator[BankBatch]:
        yield from (BankBatch(batch, True) for batch in self.bank)
        yield from (BankBatch(batch, False) for batch in self.queries)


class KnnMetric:
    """``knn`` and ``knn5``: percent of images whose class has the most votes, or is among the five with most.

    Args:
        num_classes: K.
        k: neighbours; cut to the size of the bank, with a warning.
        temperature: of the weights.

    Raises:
        InvalidConfig: for no neighbour, or a temperature that is not positive.
    """

    def __init__(self, num_classes: int, *, k: int = 20, temperature: float = 0.07) -> None:
        if k < 1:
            raise InvalidConfig(f"k must be at least 1, got {k}")
        if not temperature > 0:
            raise InvalidConfig(f"temperature must be positive, got {temperature}")
        self.num_classes, self.k, self.temperature = num_classes, k, temperature
        self.parts: dict[bool, list[tuple[Tensor, Tensor]]] = {True: [], False: []}

    def update(self, features: Tensor, labels: Tensor, *, in_bank: bool) -> None:
        """Features (B, C) and classes (B,) of a batch."""
        self.parts[in_bank].append((features.detach().cpu(), labels.cpu()))

    def merge(self, processes: Processes) -> None:
        """See `visionmlp.engine.metrics.Metric.merge`."""
        gathered = processes.gather(self.parts)
        self.parts = {kind: [part for parts in gathered for part in parts[kind]] for kind in (True, False)}

    @property
    def images(self) -> int:
        """Images that were asked about."""
        return sum(len(labels) for _, labels in self.parts[False])

    @property
    def neighbours(self) -> int:
        """Images of the bank."""
        return sum(len(labels) for _, labels in self.parts[True])

    def compute(self) -> dict[str, float]:
        """See the class.

        Raises:
            DataError: without an image on either side.
        """
        (bank, known), (queries, labels) = (self._side(kind) for kind in (True, False))
        k = min(self.k, len(bank))
        if k < self.k:
            warnings.warn(f"k is {k}, as only {len(bank)} training images can be neighbours", stacklevel=2)
        votes = votes_of_neighbours(
            bank, known, queries, num_classes=self.num_classes, k=k, temperature=self.temperature
        )
        top = votes.topk(min(5, self.num_classes)).indices == labels[:, None]
        return {"knn": 100 * top[:, 0].double().mean().item(), "knn5": 100 * top.any(1).double().mean().item()}

    def _side(self, in_bank: bool) -> tuple[Tensor, Tensor]:
        if not self.parts[in_bank]:
            raise DataError(f"no image of the {'training' if in_bank else 'evaluation'} data can be read")
        features, labels = (torch.cat(tensors) for tensors in zip(*self.parts[in_bank], strict=True))
        if features.dtype != torch.float64:
            features = features.float()  # bfloat16 has many equal similarities
        # of equal neighbours the first counts, whichever process saw it
        order = torch.from_numpy(np.lexsort((features[:, 0].numpy(), labels.numpy())))
        return features[order], labels[order]


def features_of(model: nn.Module, images: Tensor) -> Tensor:
    """Pooled features (B, C) of a backbone, those that its classifier reads."""
    backbone: Any = model
    return backbone.forward_head(backbone.forward_features(images), pre_logits=True)


def take(model: nn.Module, item: BankBatch, metric: KnnMetric) -> None:
    """Take a batch into the metric."""
    metric.update(features_of(model, item.batch.images), item.batch.labels, in_bank=item.in_bank)


def closing(*batches: Any) -> contextlib.ExitStack:
    """Ends the workers of all these batches."""
    stack = contextlib.ExitStack()
    for each in batches:
        stack.callback(each.close)
    return stack
