"""Sub-words by sentencepiece: a joint vocabulary of both languages, trained here or brought along.

What we train can be undone: no character is changed or lost. Those outside the vocabulary become bytes, spaces are kept
as they are.
"""

import hashlib
import io
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from visionmlp.errors import DataError, require
from visionmlp.models.translator import BOS, EOS, PAD, UNK

_SPECIAL = {"bos_id": BOS, "pad_id": PAD, "eos_id": EOS, "unk_id": UNK}
_LEAST = 4 + 256
"""Symbols of every vocabulary of ours: the special ones and all bytes."""


class Tokenizer:
    """A model of sentencepiece.

    Args:
        model: the file's content.
        source: where it comes from, for messages.

    Raises:
        DataError: if it is none, or has other ids for begin, padding, end and unknown than 0, 1, 2, 3.
        MissingExtra: without sentencepiece.
    """

    def __init__(self, model: bytes, source: str = "the tokenizer") -> None:
        pieces = require("sentencepiece", extra="translation")
        self.model = model
        self._processor: Any = pieces.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
            ids = {name: getattr(self._processor, name)() for name in _SPECIAL}
        except (RuntimeError, TypeError) as error:
            raise DataError(f"{source} is no model of sentencepiece") from error
        if ids != _SPECIAL:
            raise DataError(
                f"{source} has the ids {_ids(ids)}, but the networks have {_ids(_SPECIAL)}; train one with visionmlp "
                "train-tokenizer, or with these options of spm_train"
            )

    @classmethod
    def read(cls, path: Path) -> "Tokenizer":
        """From a file.

        Raises:
            DataError: if it cannot be read, and as the class.
        """
        try:
            return cls(path.read_bytes(), str(path))
        except OSError as error:
            raise DataError(f"cannot read the tokenizer {path}: {error.strerror}") from error

    @classmethod
    def fitting(cls, model: bytes, vocab_size: int, source: str) -> "Tokenizer":
        """That of a network.

        Raises:
            DataError: if it has another number of symbols, and as the class.
        """
        tokenizer = cls(model, source)
        if tokenizer.size != vocab_size:
            raise DataError(
                f"the tokenizer of {source} has {tokenizer.size} symbols, but the network {vocab_size}; it is another's"
            )
        return tokenizer

    @property
    def size(self) -> int:
        """Symbols, the special ones among them."""
        return self._processor.GetPieceSize()

    @property
    def sha256(self) -> str:
        """Of the model."""
        return hashlib.sha256(self.model).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of a sentence, without its end symbol."""
        return self._processor.EncodeAsIds(text)

    def decode(self, ids: list[int]) -> str:
        """The sentence of ids; special symbols say nothing."""
        return self._processor.DecodeIds([number for number in ids if number > UNK])

    def pieces(self, ids: list[int]) -> list[str]:
        """The symbols of ids, as they stand in plots."""
        return [self._processor.IdToPiece(number) for number in ids]


def train_tokenizer(sentences: Iterable[str], vocab_size: int) -> Tokenizer:
    """A joint vocabulary by byte-pair encoding (Sennrich et al., arXiv 1508.07909).

    Args:
        sentences: of both languages; without any sampling, so that the same sentences give the same vocabulary.
        vocab_size: symbols, the special ones and 256 bytes among them.

    Raises:
        DataError: for a vocabulary that these sentences cannot have.
        MissingExtra: without sentencepiece.
    """
    pieces = require("sentencepiece", extra="translation")
    if vocab_size <= _LEAST:
        raise DataError(f"vocab_size must be above {_LEAST}, as many are special symbols and bytes; got {vocab_size}")
    model = io.BytesIO()
    usable = _non_empty(sentences)
    if (first := next(usable, None)) is None:
        raise DataError("there are no sentences to make a vocabulary of, or all are blank")
    try:
        pieces.SentencePieceTrainer.train(
            sentence_iterator=itertools.chain([first], usable),
            model_writer=model,
            vocab_size=vocab_size,
            model_type="bpe",
            character_coverage=1.0,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            input_sentence_size=0,
            max_sentence_length=1 << 20,
            num_threads=1,
            minloglevel=2,
            **_SPECIAL,
        )
    except (RuntimeError, ValueError) as error:
        raise DataError(
            f"sentencepiece cannot make a vocabulary of {vocab_size} from these sentences: {_last(error)}"
        ) from error
    return Tokenizer(model.getvalue())


def _non_empty(sentences: Iterable[str]) -> Iterator[str]:
    for sentence in sentences:
        if sentence.strip():
            # it reads lines; NUL ends its strings
            yield sentence.replace("\n", " ").replace("\0", " ")


def _ids(ids: dict[str, int]) -> str:
    return ", ".join(f"{name.removesuffix('_id')} {number}" for name, number in ids.items())


def _last(error: Exception) -> str:
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
