"""BLEU by sacreBLEU, chrF, loss and perplexity, which merge over processes."""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from visionmlp.engine.metrics import Collected, Sums
from visionmlp.engine.processes import Processes
from visionmlp.errors import require


class BleuScore(NamedTuple):
    """A score with what it depends on."""

    score: float
    signature: str
    """sacreBLEU's; it stands beside every published number."""


def bleu(hypotheses: Sequence[str], references: Sequence[str]) -> BleuScore:
    """sacreBLEU's own: detokenised text, its 13a tokens.

    Raises:
        MissingExtra: without sacrebleu.
    """
    return _scored(require("sacrebleu", extra="translation").metrics.BLEU(), hypotheses, references)


def chrf(hypotheses: Sequence[str], references: Sequence[str]) -> BleuScore:
    """chrF2 of sacreBLEU."""
    return _scored(require("sacrebleu", extra="translation").metrics.CHRF(), hypotheses, references)


def tokenised_bleu(hypotheses: Sequence[str], references: Sequence[str], *, split_hyphens: bool) -> BleuScore:
    """BLEU of words between blanks, as multi-bleu.perl counts: for text that a tokeniser has been over.

    Args:
        hypotheses: translations.
        references: as many.
        split_hyphens: write ``a-b`` as three words in both, as fairseq's and tensor2tensor's scripts for En-De do.
    """
    if split_hyphens:
        hypotheses, references = ([with_split_hyphens(line) for line in lines] for lines in (hypotheses, references))
    scorer = require("sacrebleu", extra="translation").metrics.BLEU(tokenize="none", smooth_method="none", force=True)
    return _scored(scorer, hypotheses, references)


def with_split_hyphens(line: str) -> str:
    """``rich-text`` as ``rich ##AT##-##AT## text``."""
    return re.sub(r"(\S)-(?=\S)", r"\1 ##AT##-##AT## ", line)


def _scored(scorer: Any, hypotheses: Sequence[str], references: Sequence[str]) -> BleuScore:
    result = scorer.corpus_score(list(hypotheses), [list(references)])
    return BleuScore(result.score, str(scorer.get_signature()))


class TranslationMetric:
    """``bleu``, ``chrf``, ``loss`` (nats a target token, without smoothing) and ``perplexity``.

    Args:
        references: by the number of the pair, as the file has them.
    """

    def __init__(self, references: Sequence[str]) -> None:
        self.references = references
        self.sums = Sums({"loss": torch.zeros((), dtype=torch.float64), "tokens": torch.zeros((), dtype=torch.int64)})
        self.hypotheses = Collected()
        """Translations by number."""

    def update(self, log_probabilities: Tensor, hypotheses: Sequence[str], numbers: Sequence[int]) -> None:
        """Take in a batch.

        Args:
            log_probabilities: of all target tokens, end symbols among them.
            hypotheses: translations.
            numbers: of their pairs.
        """
        self.sums.add({"loss": -log_probabilities.double().sum(), "tokens": torch.tensor(log_probabilities.numel())})
        for number, hypothesis in zip(numbers, hypotheses, strict=True):
            self.hypotheses.add(number, hypothesis)

    def merge(self, processes: Processes) -> None:
        """See `visionmlp.engine.Metric`."""
        self.sums.merge(processes)
        self.hypotheses.merge(processes)

    def pairs(self) -> tuple[list[str], list[str]]:
        """Translations and references, in the order of the file."""
        numbers = sorted(self.hypotheses.items)
        return [self.hypotheses.items[number] for number in numbers], [self.references[number] for number in numbers]

    def compute(self) -> dict[str, float]:
        """The numbers."""
        loss = self.sums.values["loss"].item() / max(1, int(self.sums.values["tokens"]))
        texts = self.pairs()
        return {
            "bleu": bleu(*texts).score,
            "chrf": chrf(*texts).score,
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
        }
