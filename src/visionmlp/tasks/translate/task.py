"""Translation: smoothed cross-entropy of all target tokens, and translations that are scored."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionmlp.engine.task import Task, TrainingLoss
from visionmlp.models.translator import PAD, Translator
from visionmlp.tasks.translate.batching import Batch
from visionmlp.tasks.translate.decoding import Search, beam_search, log_probabilities
from visionmlp.tasks.translate.lines import one_line
from visionmlp.tasks.translate.metrics import TranslationMetric
from visionmlp.tasks.translate.tokenizer import Tokenizer


class Translation(Task):
    """The task of `visionmlp.engine.fit`, of a `Translator`.

    Args:
        tokenizer: of the ids.
        references: of the evaluated pairs, by number.
        label_smoothing: see `smoothed_loss`.
        search: of evaluation's translations.
    """

    metric: ClassVar[str] = "bleu"
    unit: ClassVar[str] = "tokens"

    def __init__(
        self, tokenizer: Tokenizer, references: Sequence[str], *, label_smoothing: float = 0.0, search: Search
    ) -> None:
        self.tokenizer, self.references = tokenizer, references
        self.label_smoothing, self.search = label_smoothing, search

    def training_loss(self, model: nn.Module, batch: Batch) -> TrainingLoss:
        """Sum over the target tokens, end symbols among them; so batches of any size weigh by their tokens."""
        logits = model(batch.source, batch.decoder_input)
        total = smoothed_loss(logits, batch.target, self.label_smoothing)
        return TrainingLoss(total=total, count=(batch.target != PAD).sum())

    def new_metric(self) -> TranslationMetric:
        """See `TranslationMetric`."""
        return TranslationMetric(self.references)

    def evaluate(self, model: nn.Module, batch: Batch, metric: TranslationMetric) -> None:
        """Loss of the references, and translations of the sources."""
        assert isinstance(model, Translator)
        logits = model(batch.source, batch.decoder_input)
        there = batch.target != PAD
        own = log_probabilities(logits).gather(2, batch.target[..., None])[..., 0][there]
        found = beam_search(model, batch.source, self.search)
        # files of them have a line for each
        texts = [one_line(self.tokenizer.decode(best[0].tokens)) for best in found]
        metric.update(own, texts, batch.numbers)


def smoothed_loss(logits: Tensor, target: Tensor, smoothing: float) -> Tensor:
    """Sum over the tokens of a batch: ``(1 - e - e') nll + e' sum of all -log p``, ``e' = e / (V - 1)``.

    As fairseq since 2020: the right word has exactly ``1 - e``, the others share ``e``, padding's symbol among them.
    Padded positions have no loss and no gradient.

    Args:
        logits: (B, T, V).
        target: (B, T).
        smoothing: e.
    """
    size = logits.shape[-1]
    return F.cross_entropy(
        logits.flatten(0, 1).float() if logits.dtype == torch.bfloat16 else logits.flatten(0, 1),
        target.flatten(),
        ignore_index=PAD,
        label_smoothing=smoothing * size / (size - 1),
        reduction="sum",
    )
