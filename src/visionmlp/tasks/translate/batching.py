"""Batches of sentences of like length, as many as a number of tokens allows.

Which pairs make a batch is fixed for a run; their order is a function of (seed, epoch). So nothing has to be saved to
resume in the middle of an epoch.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from visionmlp.data.seeding import derive_seed
from visionmlp.models.translator import EOS, PAD
from visionmlp.tasks.translate.data import Encoded


class Batch(NamedTuple):
    """Sentences and their translations."""

    source: Tensor
    """(B, S), ended and padded on the right."""
    target: Tensor
    """(B, T), the same."""
    numbers: tuple[int, ...]
    """Of the pairs in their corpus."""

    @property
    def decoder_input(self) -> Tensor:
        """(B, T): the end symbol, then all of the target but its last position."""
        return torch.cat([torch.full_like(self.target[:, :1], EOS), self.target[:, :-1]], dim=1)


def batches_of(lengths: np.ndarray, numbers: np.ndarray, tokens: int, *, seed: int | None = None) -> list[np.ndarray]:
    """Numbers of pairs in batches.

    Args:
        lengths: (2, pairs), of source and target, their end symbols counted.
        numbers: of the pairs to take.
        tokens: largest sentences x longest of a batch; a single longer pair is a batch of its own.
        seed: mixes pairs of equal length; None keeps them in order.
    """
    if seed is not None:
        numbers = np.random.default_rng(seed).permutation(numbers)
    longest = lengths.max(0)
    # by source, then by target, so that padding is little in both
    order = numbers[np.lexsort((lengths[1, numbers], lengths[0, numbers]))]
    batches, start, widest = [], 0, 0
    for place, number in enumerate(order):
        widest = max(widest, int(longest[number]))
        if place > start and (place - start + 1) * widest > tokens:
            batches.append(order[start:place])
            start, widest = place, int(longest[number])
    return [*batches, order[start:]] if len(order) else batches


class Batches:
    """Collates pairs.

    Args:
        source: sentences.
        target: their translations.
    """

    def __init__(self, source: Encoded, target: Encoded) -> None:
        self.source, self.target = source, target

    def __call__(self, numbers: Sequence[int]) -> Batch:
        """A batch of these pairs; of none see `TrainingBatches`."""
        if not len(numbers):
            return Batch(torch.tensor([[EOS]]), torch.tensor([[PAD]]), ())
        return Batch(
            padded([self.source[number] for number in numbers]),
            padded([self.target[number] for number in numbers]),
            tuple(int(number) for number in numbers),
        )


def padded(sentences: Sequence[np.ndarray]) -> Tensor:
    """(B, T) of ids, padded on the right."""
    ids = np.full((len(sentences), max(map(len, sentences))), PAD, np.int64)
    for row, sentence in zip(ids, sentences, strict=True):
        row[: len(sentence)] = sentence
    return torch.from_numpy(ids)


class TrainingBatches:
    """Of one process: `visionmlp.engine.task.EpochData`.

    A step is a batch, whose sentences the processes and the accumulated parts share; so it is the same for any number
    of them. Who has none gets a source without words, whose target has no token that counts.

    Args:
        collate: makes a batch.
        batches: of all steps of an epoch.
        seed: of the run.
        rank: of this process.
        ranks: processes.
        accumulate: parts of each process.
    """

    def __init__(
        self,
        collate: Batches,
        batches: Sequence[np.ndarray],
        *,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        accumulate: int = 1,
    ) -> None:
        self.collate, self.batches, self.seed = collate, batches, seed
        self.rank, self.ranks, self.accumulate = rank, ranks, accumulate

    def __len__(self) -> int:
        """Parts of an epoch, on this process."""
        return len(self.batches) * self.accumulate

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """The parts of an epoch behind the first ``skip``."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch))
        order = torch.randperm(len(self.batches), generator=generator).tolist()
        for place in range(skip, len(self)):
            step, part = divmod(place, self.accumulate)
            share = self.batches[order[step]][part * self.ranks + self.rank :: self.ranks * self.accumulate]
            yield self.collate(share.tolist())


class EvaluationBatches:
    """All pairs, each once, in batches of like length; a process has every rank-th batch."""

    def __init__(self, collate: Batches, batches: Sequence[np.ndarray], *, rank: int = 0, ranks: int = 1) -> None:
        self.collate, self.batches = collate, batches[rank::ranks]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return (self.collate(numbers.tolist()) for numbers in self.batches)
