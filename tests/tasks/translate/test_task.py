"""The loss against its formula, padding without a gradient, scores against their definitions, merging."""

import dataclasses
import math
from collections import Counter
from pathlib import Path

import pytest
import sacrebleu
import torch

from tests.models.test_translator import padded, sentences, translator
from visionmlp.engine.processes import Processes
from visionmlp.models.translator import EOS, PAD
from visionmlp.tasks.translate.batching import Batches
from visionmlp.tasks.translate.config import TranslateConfig
from visionmlp.tasks.translate.metrics import TranslationMetric, bleu, tokenised_bleu, with_split_hyphens
from visionmlp.tasks.translate.task import smoothed_loss


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_the_loss_is_fairseqs_formula(smoothing: float) -> None:
    target = padded(sentences([4, 9, 1], seed=3))
    logits = torch.randn(3, 9, 19, dtype=torch.float64, requires_grad=True)
    loss = smoothed_loss(logits, target, smoothing)
    loss.backward()
    log_probabilities, share = logits.detach().log_softmax(-1), smoothing / 18
    expected = 0.0
    for row, words in enumerate(target.tolist()):
        for place, word in enumerate(words):
            if word != PAD:
                nll = -log_probabilities[row, place, word].item()
                rest = -log_probabilities[row, place].sum().item()
                expected += (1 - smoothing - share) * nll + share * rest
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert logits.grad is not None
    assert not logits.grad[target == PAD].any()
    # the gradient of a position is what is predicted less what is wanted
    wanted = torch.full((19,), share, dtype=torch.float64)
    wanted[target[0, 0]] = 1 - smoothing
    torch.testing.assert_close(logits.grad[0, 0], logits.detach()[0, 0].softmax(-1) - wanted, rtol=1e-10, atol=1e-12)


def test_a_batch_is_the_sum_of_its_sentences() -> None:
    network = translator("resmlp_seq2seq_test")
    sources, targets = sentences([3, 8, 5]), sentences([9, 2, 6], seed=2)

    def loss_of(numbers) -> torch.Tensor:
        target = padded([targets[number] for number in numbers])
        inputs = torch.cat([torch.full_like(target[:, :1], EOS), target[:, :-1]], 1)
        return smoothed_loss(network(padded([sources[number] for number in numbers]), inputs), target, 0.1)

    network.zero_grad()
    loss_of([0, 1, 2]).backward()
    together = [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]
    network.zero_grad()
    sum(loss_of([number]) for number in range(3)).backward()  # type: ignore[union-attr]
    for one, parameter in zip(together, network.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad, rtol=1e-9, atol=1e-11)


def test_a_part_without_sentences_teaches_nothing() -> None:
    batch = Batches(None, None)([])  # type: ignore[arg-type]
    for name in ("resmlp_seq2seq_test", "transformer_seq2seq_test"):
        network = translator(name)
        loss = smoothed_loss(network(batch.source, batch.decoder_input), batch.target, 0.1)
        loss.backward()
        assert loss.item() == 0
        assert not any(parameter.grad.any() for parameter in network.parameters() if parameter.grad is not None)


HYPOTHESES = ["the man rides a bike .", "a dog", "two well-known men eat fresh-baked bread in the park ."]
REFERENCES = ["the man rides a red bike .", "a dog runs", "two well-known men are eating fresh-baked bread outside ."]


def test_tokenised_bleu_is_the_formula() -> None:
    """multi-bleu: clipped counts of 1 to 4 words, geometric mean, brevity."""

    def grams(words, size):
        return Counter(tuple(words[i : i + size]) for i in range(len(words) - size + 1))

    matches, totals, lengths = [0] * 4, [0] * 4, [0, 0]
    for hypothesis, reference in zip(HYPOTHESES, REFERENCES, strict=True):
        own, other = hypothesis.split(), reference.split()
        lengths = [lengths[0] + len(own), lengths[1] + len(other)]
        for size in range(1, 5):
            counts = grams(own, size)
            matches[size - 1] += sum((counts & grams(other, size)).values())
            totals[size - 1] += sum(counts.values())
    mean = math.exp(sum(math.log(match / total) for match, total in zip(matches, totals, strict=True)) / 4)
    expected = 100 * mean * math.exp(min(0.0, 1 - lengths[1] / lengths[0]))
    assert tokenised_bleu(HYPOTHESES, REFERENCES, split_hyphens=False).score == pytest.approx(expected, rel=1e-9)
    assert with_split_hyphens("a-b-c - d-") == "a ##AT##-##AT## b ##AT##-##AT## c - d-"
    assert tokenised_bleu(HYPOTHESES, REFERENCES, split_hyphens=True).score > expected
    own = bleu(HYPOTHESES, REFERENCES)
    assert own.score == sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]).score
    assert "tok:13a" in own.signature
    assert "version:" in own.signature


def test_a_metric_adds_up_whatever_is_with_whom() -> None:
    log_probabilities = -torch.rand(12, dtype=torch.float64)
    whole = TranslationMetric(REFERENCES)
    whole.update(log_probabilities, HYPOTHESES, [0, 1, 2])
    parts = TranslationMetric(REFERENCES)
    parts.update(log_probabilities[5:], HYPOTHESES[2:], [2])
    parts.update(log_probabilities[:5], HYPOTHESES[:2], [0, 1])
    parts.merge(Processes())
    assert parts.compute() == pytest.approx(whole.compute(), rel=1e-12)
    numbers = whole.compute()
    assert list(numbers) == ["bleu", "chrf", "loss", "perplexity"]
    assert numbers["loss"] == pytest.approx(-log_probabilities.mean().item())
    assert numbers["perplexity"] == pytest.approx(math.exp(numbers["loss"]))
    assert numbers["bleu"] == bleu(HYPOTHESES, REFERENCES).score
    assert parts.pairs() == (HYPOTHESES, REFERENCES)


@pytest.mark.parametrize(
    ("given", "steps", "epochs"),
    [({}, 1000, 0), ({"warmup_epochs": 2.0}, None, 2), ({"warmup_steps": 7}, 7, 0), ({"warmup_steps": 0}, 0, 0)],
)
def test_warm_up_is_that_which_is_given(given: dict, steps: int | None, epochs: float, tmp_path: Path) -> None:
    config = TranslateConfig(model="resmlp_seq2seq_test", data="x", output=tmp_path, schedule="constant", **given)
    assert (config.warmup_steps, config.warmup_epochs) == (steps, epochs)
    assert (
        TranslateConfig(**{field.name: getattr(config, field.name) for field in dataclasses.fields(config)}) == config
    )
