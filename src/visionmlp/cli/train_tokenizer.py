"""``visionmlp train-tokenizer``."""

import sys

from visionmlp.cli.command import plain_command
from visionmlp.cli.options import TrainTokenizerOptions
from visionmlp.cli.usage import UsageError


def train_tokenizer(options: TrainTokenizerOptions) -> int:
    """Write a joint vocabulary of both languages."""
    if options.max_pairs is not None and options.max_pairs < 1:
        raise UsageError(f"--max-pairs must be at least 1, got {options.max_pairs}")

    from visionmlp.files import beside
    from visionmlp.tasks.translate.data import open_corpus
    from visionmlp.tasks.translate.tokenizer import train_tokenizer

    with beside(options.output, force=options.force, suffix=".model") as partial:
        whole = open_corpus(
            options.data,
            options.split,
            options.source,
            options.target,
            root=options.data_root,
            download=options.download,
        )
        corpus = whole.first(options.max_pairs)
        tokenizer = train_tokenizer([*corpus.source, *corpus.target], options.vocab_size)
        partial.write_bytes(tokenizer.model)
    count, tokens = len(corpus), sum(len(tokenizer.encode(text)) for text in (*corpus.source, *corpus.target))
    sys.stdout.write(
        f"wrote {options.output}: {tokenizer.size} symbols from {count} pairs, {tokens / 2 / count:.1f} tokens a "
        "sentence\n"
    )
    return 0


TRAIN_TOKENIZER = plain_command(
    "train-tokenizer",
    TrainTokenizerOptions,
    train_tokenizer,
    summary="a vocabulary of two languages, for translation",
    description=(
        "Learn a joint vocabulary of both languages of parallel text, by byte-pair encoding (sentencepiece).\n"
        "train --task translate makes one itself; this is for several runs that share one."
    ),
    examples=[
        "train-tokenizer multi30k --output multi30k.model",
        "train-tokenizer wmt14 --target fr --vocab-size 40000 --output wmt14.model",
    ],
)
