"""Options of translation runs. Defaults suit corpora of tens of thousands of sentences; recipes have the papers'."""

# ruff: noqa: RUF009 (option() is a dataclass field)

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Literal

from visionmlp.engine.config import TrainingConfig, about, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class TranslateConfig(TrainingConfig):
    """Options of a run."""

    task: ClassVar[str] = "translate"

    model: str = dataclasses.field(
        metadata=about(
            "resmlp_seq2seq_6, _12 or _small, or the same of transformer_seq2seq; or a run folder or checkpoint to "
            "start from",
            "model",
        )
    )
    model_args: dict[str, Any] = dataclasses.field(
        default_factory=dict,
        metadata=about("fields of its configuration, such as {'max_length': 128, 'dropout': 0.2}", "model"),
    )
    label_smoothing: float = option(0.1, "share of the target that is spread over the vocabulary", group="model")

    data: str = dataclasses.field(
        metadata=about(
            "folder with train.en and train.de, val.en and so on, or one file of both with tabs between; also .gz; or "
            "hfds/NAME, hfds/NAME:CONFIGURATION",
            "data",
        )
    )
    data_root: Path | None = option(
        None, "where a relative data folder starts, or hfds datasets lie", group="data", may_change=True
    )
    download: bool = option(
        False,
        "fetch a dataset hfds/NAME that is not there; otherwise nothing is fetched",
        group="data",
        may_change=True,
    )
    source: str = option("en", "language that is translated, as files are called", group="data")
    target: str = option("de", "language that it is translated to", group="data")
    valid: str = option("val", "name of the files to evaluate on, such as newstest2013", group="data")
    tokenizer: Path | None = option(
        None, "model of sentencepiece, see visionmlp train-tokenizer; by default one is trained here", group="data"
    )
    vocab_size: int = option(8000, "symbols of a tokenizer that is trained here, of both languages", group="data")
    max_tokens: int = option(250, "longer sentences, end symbol not counted, are not trained on", group="data")
    max_ratio: float | None = option(
        None, "nor pairs of which one has so many times the tokens of the other, such as 1.5", group="data"
    )
    max_pairs: int | None = option(None, "take at most so many pairs to train, the first ones", group="data")

    batch_size: int = option(
        4096,
        "tokens of one step, over all devices and accumulated parts: sentences x the longest of them, of source or "
        "target, whichever is more",
        group="optimisation",
    )
    epochs: int = option(30, "passes over the training pairs", group="optimisation")
    weight_decay: float = option(0.0, "of matrices; biases and vectors have none", group="optimisation")
    schedule: Literal["cosine", "linear", "poly", "step", "constant", "inverse_sqrt"] = option(
        "inverse_sqrt",
        "how the learning rate falls, at every step; inverse_sqrt as lr * sqrt(warm-up / step)",
        group="optimisation",
    )
    warmup_steps: int | None = option(
        None,
        "of linear rise to lr, in place of warmup_epochs; 1000 where neither is given",
        group="optimisation",
    )
    warmup_lr: float = option(1e-7, "learning rate that warm-up starts from", group="optimisation")
    optimizer_args: dict[str, Any] = dataclasses.field(
        default_factory=dict,
        metadata=about("further arguments of the optimizer, such as {'betas': [0.9, 0.98]}", "optimisation"),
    )

    eval_beam: int = option(1, "beam of the translations that evaluation scores; 1 is greedy", group="evaluation")
    eval_tokens: int = option(4096, "tokens of the batches of evaluation", group="evaluation", may_change=True)
    shown: int = option(5, "translations that each evaluation writes down", group="evaluation", may_change=True)

    def __post_init__(self) -> None:
        if self.warmup_steps is None and not self.warmup_epochs:
            object.__setattr__(self, "warmup_steps", 1000)
        super().__post_init__()
        for name in ("vocab_size", "max_tokens", "eval_beam", "eval_tokens"):
            self.require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        self.require(
            self.max_pairs is None or self.max_pairs >= 1,
            f"max_pairs must be at least 1, or left out, got {self.max_pairs}",
        )
        self.require(self.shown >= 0, f"shown must not be negative, got {self.shown}")
        self.require(
            self.max_ratio is None or self.max_ratio >= 1, f"max_ratio must be at least 1, got {self.max_ratio}"
        )
        self.require(0 <= self.label_smoothing < 1, f"label_smoothing must be in [0, 1), got {self.label_smoothing}")
        self.require(self.source != self.target, f"source and target are both {self.source}")
