"""``visionmlp eval`` for translation: BLEU with its signature, chrF and loss of a network on parallel text."""

import contextlib
import time
from pathlib import Path
from typing import cast

import torch

from visionmlp.deploy.runtimes import check_threads
from visionmlp.engine import evaluate as evaluate_task
from visionmlp.errors import InvalidConfig
from visionmlp.files import beside
from visionmlp.measure.timing import open_device
from visionmlp.models.translator_files import load_translator
from visionmlp.tasks.definition import Scores
from visionmlp.tasks.translate.batching import Batch
from visionmlp.tasks.translate.data import Corpus, open_corpus
from visionmlp.tasks.translate.decoding import Search
from visionmlp.tasks.translate.definition import TranslateEvalOptions
from visionmlp.tasks.translate.metrics import TranslationMetric, bleu, chrf, tokenised_bleu
from visionmlp.tasks.translate.run import evaluation_batches, read_config
from visionmlp.tasks.translate.task import Translation
from visionmlp.tasks.translate.tokenizer import Tokenizer


def scores(options: TranslateEvalOptions) -> Scores:
    """Scores and speed of a translator; with ``output`` also its translations.

    Without ``data`` the pairs are those of the run that the network lies in.

    Raises:
        InvalidConfig: if there is no such run, or a number breaks its rule.
        OutputError: for a file that exists.
        VisionMLPError: if the network, the data or the device cannot be used.
    """
    if options.batch_tokens < 1:
        raise InvalidConfig(f"batch-tokens must be at least 1, got {options.batch_tokens}")
    check_threads(options.threads)
    if options.split_hyphens and not options.tokenised:
        raise InvalidConfig("--split-hyphens is about the score of --tokenised; give it, or leave this out")
    if options.force and options.output is None:
        raise InvalidConfig("--force is about the file of --output; give it, or leave this out")
    search = Search(beam=options.beam, length_penalty=options.length_penalty, stopping=options.stopping)
    device = open_device(options.device)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    network, info = load_translator(options.model)
    corpus = _corpus(options, info.languages)
    tokenizer = Tokenizer.fitting(info.tokenizer, network.config.vocab_size, info.source)
    batches = evaluation_batches(corpus, tokenizer, network.config.max_length, tokens=options.batch_tokens)
    # as `translate`: half precision cannot tell sums of log-probabilities apart
    network = network.to(device, torch.promote_types(network.embedding.weight.dtype, torch.float32))

    def prepare(batch: Batch) -> Batch:
        return batch._replace(source=batch.source.to(device), target=batch.target.to(device))

    with contextlib.ExitStack() as stack:
        target = None
        if options.output is not None:
            target = stack.enter_context(beside(options.output, force=options.force))
        start = time.perf_counter()
        task = Translation(tokenizer, corpus.target, search=search)
        metric = cast("TranslationMetric", evaluate_task(task, network, batches, prepare=prepare))
        seconds = time.perf_counter() - start
        hypotheses, references = metric.pairs()
        if target is not None:
            target.write_text("".join(f"{line}\n" for line in hypotheses), encoding="utf-8")
    numbers = metric.compute()
    own, characters = bleu(hypotheses, references), chrf(hypotheses, references)
    record = {
        "model": info.model,
        "weights": info.source,
        "data": corpus.name,
        "languages": info.languages,
        "beam": options.beam,
        "length_penalty": options.length_penalty,
        "stopping": options.stopping,
        **numbers,
        "signature": own.signature,
        "chrf_signature": characters.signature,
        "sentences": len(hypotheses),
        "sentences_per_second": len(hypotheses) / seconds,
    }
    columns = {
        "BLEU": f"{own.score:.2f}",
        "chrF": f"{characters.score:.2f}",
        "perplexity": f"{numbers['perplexity']:.3f}",
        "sentences": str(len(hypotheses)),
        "sentences/s": f"{len(hypotheses) / seconds:.1f}",
    }
    parts = [{"score": "BLEU", "value": f"{own.score:.2f}", "signature": own.signature}]
    parts.append({"score": "chrF", "value": f"{characters.score:.2f}", "signature": characters.signature})
    if options.tokenised:
        words = tokenised_bleu(hypotheses, references, split_hyphens=options.split_hyphens)
        record |= {"bleu_tokenised": words.score, "tokenised_signature": words.signature}
        signature = words.signature + "|hyphens:split" * options.split_hyphens
        parts.append({"score": "BLEU, tokenised", "value": f"{words.score:.2f}", "signature": signature})
    return Scores(
        title=f"{info.model}, {corpus.name}, beam {options.beam}", columns=columns, record=record, parts=parts
    )


def _corpus(options: TranslateEvalOptions, languages: tuple[str, str] | None) -> Corpus:
    reference = Path(options.model)
    folder = reference if reference.is_dir() else reference.parent
    config = read_config(folder) if (folder / "config.yaml").is_file() else None
    data, root, split = options.data, options.data_root, options.split
    if data is None:
        if config is None:
            raise InvalidConfig(f"--data must be given, since {options.model} is not in a run folder")
        data, root = config.data, root or config.data_root
    if not split:
        split = "val" if config is None else config.valid
    if languages is None:
        raise InvalidConfig(f"{options.model} does not say its languages, so its files cannot be found")
    return open_corpus(data, split, *languages, root=root, download=options.download)
