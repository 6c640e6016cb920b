"""A tiny translator with its tokenizer, for tests of what is built around them."""

import functools
from pathlib import Path

import torch

from tests.randomise import randomise
from visionmlp.models.translator import EOS, Translator, create_translator
from visionmlp.models.translator_files import save_translator
from visionmlp.tasks.translate.tokenizer import Tokenizer, train_tokenizer

LENGTH = 32


@functools.cache
def tokenizer() -> Tokenizer:
    """With a few words, all bytes, and most numbers as digits."""
    return train_tokenizer((f"ein Hund und {i} Katzen laufen {7 * i} mal um das Haus" for i in range(200)), 320)


SEEDS = {"resmlp_seq2seq_test": (5, 3.0, 2), "transformer_seq2seq_test": (6, 6.0, 1)}
"""Of the weights, how loud the end symbol is, and layers: with these they say many things, of several lengths."""


def network(name: str = "resmlp_seq2seq_test") -> Translator:
    """With random weights, in float32."""
    seed, loudness, depth = SEEDS[name]
    made = create_translator(name, vocab_size=320, max_length=LENGTH, depth=depth).eval()
    randomise(made, seed=seed)
    with torch.no_grad():
        made.embedding.weight.mul_(0.5)
        made.embedding.weight[EOS].mul_(loudness)
    return made


def checkpoint(folder: Path, name: str = "resmlp_seq2seq_test") -> Path:
    """A file of it."""
    path = folder / f"{name}.safetensors"
    save_translator(path, network(name), tokenizer=tokenizer().model, languages=("de", "en"))
    return path


def words(count: int) -> str:
    """A sentence of so many tokens, its end symbol among them."""
    text = "Hund"
    while (have := len(tokenizer().encode(text)) + 1) < count:
        text += " Hund" if have + 1 < count or len(tokenizer().encode(text + " Hund")) + 1 == count else "!"
    assert have == count
    return text
