"""Translation on WMT14 as ResMLP's paper has it, and the Transformer it is compared with.

A quoted result is the source's; none of these was trained to its end here. The papers' data is tokenised text
(docs/translation.md says how it is made), so their BLEU is that of ``eval --tokenised --split-hyphens``.
"""

from pathlib import Path
from typing import Any

from visionmlp.tasks.translate.config import TranslateConfig

_TOKENS = 3584 * 8
"""Of a step: Ott et al.'s base model, on 8 GPUs."""
_WMT14: dict[str, Any] = {
    "source": "en",
    "valid": "newstest2013",
    "max_tokens": 250,
    "max_ratio": 1.5,
    "max_steps": 100_000,
    "eval_steps": 5_000,
    "batch_size": _TOKENS,
    "label_smoothing": 0.1,
}


def resmlp_wmt14_ende(*, data: str, output: Path, model: str = "resmlp_seq2seq_12") -> TranslateConfig:
    """ResMLP on WMT14, English to German.

    Command: ``visionmlp train --recipe resmlp_wmt14_ende --data wmt14/ --output runs/ende``
    Expected: tokenised BLEU 26.8 (12 layers), 26.4 (6) on newstest2014: paper.
    Cost: not stated.
    Source: arXiv 2105.03404, section 3.5: Adagrad 0.2, 32,000 steps of linear warm-up, label smoothing 0.1, dropout
    0.15, LayerScale 0.2, beam of 4, the rest "following Ott et al." (arXiv 1806.00187): joint vocabulary of 32,000.
    Not published: what the rate does behind the warm-up (here constant, as in other works of the authors with Adagrad),
    steps (here the Transformer's 100,000), batch (Ott's base model's), length penalty.
    """
    return _resmlp(model, data, output, target="de", dropout=0.15, vocab_size=32_000)


def resmlp_wmt14_enfr(*, data: str, output: Path, model: str = "resmlp_seq2seq_12") -> TranslateConfig:
    """ResMLP on WMT14, English to French.

    Command: ``visionmlp train --recipe resmlp_wmt14_enfr --data wmt14/ --output runs/enfr``
    Expected: tokenised BLEU 40.6 (12 layers), 40.3 (6) on newstest2014: paper.
    Cost: not stated.
    Source: as `resmlp_wmt14_ende`, with dropout 0.1 and Ott et al.'s joint vocabulary of 40,000.
    """
    return _resmlp(model, data, output, target="fr", dropout=0.1, vocab_size=40_000)


def transformer_wmt14_ende(*, data: str, output: Path, model: str = "transformer_seq2seq_6") -> TranslateConfig:
    """The base Transformer on WMT14, English to German.

    Command: ``visionmlp train --recipe transformer_wmt14_ende --data wmt14/ --output runs/transformer``
    Expected: tokenised BLEU 27.3 on newstest2014, of averaged checkpoints: arXiv 1706.03762, Table 2.
    Cost: 100,000 steps of 25,000 tokens; 12 hours on 8 P100: paper.
    Source: arXiv 1706.03762 in fairseq's form: Adam (0.9, 0.98), rate 5e-4 behind 4,000 steps and falling with the
    square root, label smoothing 0.1, dropout 0.1, joint vocabulary (the paper's has 37,000; here 32,000, as ResMLP's).
    """
    return TranslateConfig(
        model=model,
        model_args={"dropout": 0.1},
        data=data,
        output=output,
        target="de",
        vocab_size=32_000,
        optimizer="adamw",
        optimizer_args={"betas": (0.9, 0.98)},
        lr=5e-4,
        schedule="inverse_sqrt",
        warmup_steps=4_000,
        warmup_lr=1e-7,
        **_WMT14,
    )


def _resmlp(model: str, data: str, output: Path, *, target: str, dropout: float, vocab_size: int) -> TranslateConfig:
    return TranslateConfig(
        model=model,
        model_args={"dropout": dropout},
        data=data,
        output=output,
        target=target,
        vocab_size=vocab_size,
        optimizer="adagrad",
        lr=0.2,
        schedule="constant",
        warmup_steps=32_000,
        warmup_lr=0.0,
        **_WMT14,
    )
