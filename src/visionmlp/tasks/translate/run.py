"""Train translators."""

import dataclasses
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import nn

from visionmlp.engine import RunFolder
from visionmlp.engine.launch import agree, on_rank_zero
from visionmlp.engine.run_folder import TOKENIZER
from visionmlp.errors import DataError, InvalidConfig, Note, first_line
from visionmlp.files import write_beside
from visionmlp.models.checkpoint import path_of
from visionmlp.models.resmlp_seq2seq import ResMLPSeq2Seq, extend_positions
from visionmlp.models.translator import TRANSLATORS, Translator, create_translator
from visionmlp.models.translator_files import load_translator, save_translator
from visionmlp.tasks.definition import TrainResult
from visionmlp.tasks.running import Prepared, config_of_run, launched_config, run_training, write_state
from visionmlp.tasks.translate.batching import Batches, EvaluationBatches, TrainingBatches, batches_of
from visionmlp.tasks.translate.config import TranslateConfig
from visionmlp.tasks.translate.data import Corpus, Encoded, RunCorpora, open_corpus, usable
from visionmlp.tasks.translate.decoding import Search
from visionmlp.tasks.translate.figures import write_report, write_samples
from visionmlp.tasks.translate.metrics import TranslationMetric
from visionmlp.tasks.translate.task import Translation
from visionmlp.tasks.translate.tokenizer import Tokenizer, train_tokenizer

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def train(config: TranslateConfig, *, resume: bool = False) -> TrainResult:
    """Train a translator into a run folder.

    Args:
        config: all options.
        resume: continue the run in ``config.output`` from its newest checkpoint.

    Raises:
        VisionMLPError: for everything that a user can act on.
        KeyboardInterrupt: at SIGINT or SIGTERM, when all is saved.
    """
    config = launched_config(config)
    return run_training(
        config, lambda fabric, run: _prepared(fabric, config, run, resume=resume), write_report, resume=resume
    )


def read_config(folder: Path) -> TranslateConfig:
    """See `config_of_run`."""
    return config_of_run(folder, TranslateConfig)


class _Text(NamedTuple):
    training: Corpus
    evaluation: Corpus


def open_data(config: TranslateConfig) -> _Text:
    """The pairs of a run, to train and to evaluate on.

    Raises:
        DataError: if they are not there or cannot be read.
    """
    training, evaluation = (
        open_corpus(config.data, split, config.source, config.target, root=config.data_root, download=config.download)
        for split in ("train", config.valid)
    )
    return _Text(training.first(config.max_pairs), evaluation)


def tokenizer_of(config: TranslateConfig, training: Corpus, made: Path | None = None) -> bytes:
    """What makes symbols of sentences: that of the model to start from, the one that is given, that of the run, or a
    new one.

    Args:
        config: options.
        training: pairs to train one on.
        made: file of the run that is resumed, where there is one; it need not exist.

    Raises:
        InvalidConfig: for one beside a model that has its own.
        DataError: for one that cannot be used.
    """
    if (path := _begun_from(config)) is not None:
        if config.tokenizer is not None:
            raise InvalidConfig(f"{path} has its tokenizer; leave --tokenizer out")
        network, info = load_translator(path)
        return Tokenizer.fitting(info.tokenizer, network.config.vocab_size, str(path)).model
    if config.tokenizer is not None:
        return Tokenizer.read(config.tokenizer).model
    if made is not None and made.is_file():
        return Tokenizer.read(made).model
    return train_tokenizer([*training.source, *training.target], config.vocab_size).model


def _begun_from(config: TranslateConfig) -> Path | None:
    """The checkpoint that a run goes on from; a translator's name means a fresh one, whatever lies beside it."""
    return None if config.model in TRANSLATORS else path_of(config.model)


def build_network(config: TranslateConfig, vocab_size: int) -> Translator:
    """The network of a run before training, a function of the configuration.

    Raises:
        VisionMLPError: for a network that cannot be built or loaded.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        path = _begun_from(config)
        if path is None:
            if "vocab_size" in config.model_args:
                raise InvalidConfig("vocab_size is the tokenizer's; remove it from model_args")
            try:
                return create_translator(config.model, vocab_size=vocab_size, **config.model_args)
            except (RuntimeError, MemoryError) as error:
                raise InvalidConfig(
                    f"{config.model} with these model_args cannot be built: {first_line(error)}"
                ) from error
        network, info = load_translator(path)
        fields = dict(config.model_args)
        if (length := fields.pop("max_length", None)) is not None and isinstance(network, ResMLPSeq2Seq):
            network = extend_positions(network, length)
        if fields.keys() - {"dropout"}:
            raise InvalidConfig(f"{path} is {info.model} already; model_args may have dropout and max_length only")
        fresh = create_translator(info.model, **{**dataclasses.asdict(network.config), **fields})
        fresh.load_state_dict(network.state_dict())
        return fresh


def _prepared(fabric: "Fabric", config: TranslateConfig, run: RunFolder, *, resume: bool) -> Prepared:
    text = agree(fabric, lambda: open_data(config))
    made = run.path / TOKENIZER
    model = on_rank_zero(fabric, lambda: tokenizer_of(config, text.training, made if resume else None))
    tokenizer = Tokenizer(model)
    network = agree(fabric, lambda: build_network(config, tokenizer.size))
    longest = network.config.max_length
    source, target = (Encoded(side, tokenizer) for side in (text.training.source, text.training.target))
    limit = min(config.max_tokens, longest - 1)
    numbers, left = usable(source, target, max_tokens=limit, max_ratio=config.max_ratio)
    if fabric.is_global_zero and (said := left.text()):
        warnings.warn(Note(f"{text.training.name}: {said} of {len(text.training)} pairs are left out"), stacklevel=2)
    if not len(numbers):
        raise DataError(f"no pair of {text.training.name} can be trained on: {left.text()}")
    lengths = np.stack([source.lengths, target.lengths])
    training = TrainingBatches(
        Batches(source, target),
        batches_of(lengths, numbers, config.batch_size, seed=config.seed),
        seed=config.seed,
        rank=fabric.global_rank,
        ranks=fabric.world_size,
        accumulate=config.accumulate,
    )
    evaluation = evaluation_batches(
        text.evaluation,
        tokenizer,
        longest,
        tokens=config.eval_tokens,
        rank=fabric.global_rank,
        ranks=fabric.world_size,
    )
    languages = (config.source, config.target)

    def write_weights(path: Path, weights: nn.Module) -> None:
        # one that is there may be of a run that was killed before it began
        if not made.is_file() or made.read_bytes() != tokenizer.model:
            write_beside(made, tokenizer.model)
        write_state(path, weights)

    def keep_best(weights: nn.Module, metric: TranslationMetric) -> None:
        save_translator(run.model, weights, tokenizer=tokenizer.model, languages=languages)
        hypotheses, _ = metric.pairs()
        write_beside(run.path / "translations.txt", "".join(f"{line}\n" for line in hypotheses).encode())

    def show(step: int, metric: TranslationMetric) -> None:
        write_samples(run.path, step, text.evaluation, metric, config.shown)

    return Prepared(
        model=network,
        task=Translation(
            tokenizer,
            text.evaluation.target,
            label_smoothing=config.label_smoothing,
            search=Search(beam=config.eval_beam),
        ),
        training=training,
        evaluation=evaluation,
        data=RunCorpora(
            training=text.training.summary(), evaluation=text.evaluation.summary(), tokenizer=tokenizer.sha256
        ),
        write_weights=write_weights,
        keep_best=keep_best,
        show=show if config.shown else None,
        opened=(),
    )


def evaluation_batches(
    corpus: Corpus, tokenizer: Tokenizer, longest: int, *, tokens: int, rank: int = 0, ranks: int = 1
) -> EvaluationBatches:
    """All pairs of a corpus.

    Raises:
        DataError: for a sentence that is longer than the network's, naming its line: none is left out.
    """
    source, target = (Encoded(side, tokenizer) for side in (corpus.source, corpus.target))
    lengths = np.stack([source.lengths, target.lengths])
    if (long := np.flatnonzero(lengths.max(0) > longest)).size:
        line = int(long[0])
        raise DataError(
            f"{corpus.name}, line {line + 1}, has {lengths[:, line].max()} tokens, its end symbol among them, but the "
            f"model's longest sentence has {longest}, and evaluation leaves no line out; give "
            f"--model-args.max_length {lengths.max()}"
        )
    numbers = np.arange(len(corpus))
    return EvaluationBatches(Batches(source, target), batches_of(lengths, numbers, tokens), rank=rank, ranks=ranks)
