"""Lines to translations, line for line: as many come out as go in, in their order.

Lines are read in chunks and sorted by length within one, so that sentences of a batch are about as long. How they are
batched changes a translation by nothing but rounding.
"""

import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from visionmlp.data.seeding import derive_seed
from visionmlp.errors import DataError, InvalidConfig, SentenceTooLong
from visionmlp.models.translator import EOS, PAD, UNK
from visionmlp.tasks.translate.decoding import Hypothesis, Network, Search, beam_search, check_temperature, sample
from visionmlp.tasks.translate.lines import is_blank, one_line
from visionmlp.tasks.translate.options import TooLong
from visionmlp.tasks.translate.tokenizer import Tokenizer

State = Literal["translated", "cut", "skipped", "empty"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Translation:
    """One of a line's."""

    text: str
    """Of one line, see `one_line`."""
    score: float
    """See `visionmlp.tasks.translate.decoding`."""
    log_probability: float
    tokens: list[str]
    """As the vocabulary has them, without the end symbol."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TranslatedLine:
    """What became of a line."""

    number: int
    """From 1."""
    place: str
    """Where it was read, for messages."""
    source: str
    state: State
    """``cut`` and ``skipped``: it was longer than the model's length. ``empty``: there was nothing to translate."""
    translations: list[Translation]
    """The best first; none where the state is ``skipped`` or ``empty``."""

    @property
    def text(self) -> str:
        """The best translation; nothing where there is none."""
        return self.translations[0].text if self.translations else ""

    def record(self) -> dict[str, Any]:
        """For programs, JSON values by name."""
        return {
            "line": self.number,
            "source": self.source,
            "state": self.state,
            "translations": [dataclasses.asdict(translation) for translation in self.translations],
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a random translation is drawn; a line's draws follow from the seed and the line's number."""

    seed: int = 0
    temperature: float = 1.0
    """Logits are divided by it."""
    top_k: int | None = None
    """So many most probable tokens only."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise InvalidConfig(f"seed must be at least 0, got {self.seed}")
        check_temperature(self.temperature)
        if self.top_k is not None and self.top_k < 1:
            raise InvalidConfig(f"top_k must be at least 1, got {self.top_k}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LineTranslator:
    """A network that translates lines.

    Args:
        network: in evaluation mode.
        tokenizer: that the network was trained with.
        search: options; of those for beams nothing is used where translations are drawn.
        sampling: draw translations instead of searching for the best.
        too_long: what happens to lines with more tokens, the end symbol among them, than the network's length.
        batch_size: sentences that are translated together.
        chunk: lines that are held at a time.
        device: of the network.

    Raises:
        InvalidConfig: for numbers that cannot be.
    """

    network: Network
    tokenizer: Tokenizer
    search: Search = dataclasses.field(default_factory=Search)
    sampling: Sampling | None = None
    too_long: TooLong = "stop"
    batch_size: int = 32
    chunk: int = 1000
    device: torch.device = torch.device("cpu")  # noqa: RUF009 (immutable)

    def __post_init__(self) -> None:
        for name in ("batch_size", "chunk"):
            if not 1 <= getattr(self, name) <= sys.maxsize:
                raise InvalidConfig(f"{name} must be at least 1 and at most {sys.maxsize}, got {getattr(self, name)}")
        size = self.network.config.vocab_size
        if self.tokenizer.size != size:
            raise DataError(f"the tokenizer has {self.tokenizer.size} symbols, but the network {size}; it is another's")

    def __call__(
        self,
        lines: Iterable[str],
        *,
        prefixes: Iterable[str] | None = None,
        place: Callable[[int], str] = "line {}".format,
    ) -> Iterator[TranslatedLine]:
        """Each line's translations, as soon as its chunk is done.

        Args:
            lines: without their ends; taken a chunk at a time.
            prefixes: what the translation of each line begins with; a blank one forces nothing. Not for drawn ones.
            place: where the line of a number is, for messages.

        Raises:
            SentenceTooLong: for a line beyond the network's length, if ``too_long`` says so.
            DataError: for prefixes that are more or fewer than the lines, too long, or not in the vocabulary.
            InvalidConfig: for prefixes of drawn translations.
        """
        prepared = self.check(lines, prefixes=prefixes, place=place)
        while part := list(itertools.islice(prepared, self.chunk)):
            yield from self._translated(part)

    def check(
        self,
        lines: Iterable[str],
        *,
        prefixes: Iterable[str] | None = None,
        place: Callable[[int], str] = "line {}".format,
    ) -> Iterator["_Line"]:
        """Each line as tokens; arguments and errors as those of the call."""
        if prefixes is not None and self.sampling is not None:
            raise InvalidConfig("a drawn translation cannot have a prefix; leave out one of the two")
        for number, (text, prefix) in enumerate(_pairs(lines, prefixes), 1):
            yield self._line(number, place(number), text, prefix)

    def _line(self, number: int, place: str, text: str, prefix: str) -> "_Line":
        tokens = [] if is_blank(text) else self.tokenizer.encode(text)
        if not tokens:
            return _Line(number, place, text, "empty", [], [])
        positions, state = self.network.config.max_length, "translated"
        if len(tokens) + 1 > positions:
            if self.too_long == "stop":
                raise SentenceTooLong(
                    f"{place} has {len(tokens) + 1} tokens, its end symbol among them, more than the {positions} of "
                    "this model; split it, let --too-long cut or skip such lines, or give the model more positions "
                    "with visionmlp.extend_positions"
                )
            if self.too_long == "skip":
                return _Line(number, place, text, "skipped", [], [])
            tokens, state = tokens[: positions - 1], "cut"
        source = [*tokens, EOS]
        return _Line(number, place, text, state, source, self._prefix(place, prefix, len(source)))

    def _prefix(self, place: str, text: str, source: int) -> list[int]:
        tokens = [] if is_blank(text) else self.tokenizer.encode(text)
        longest = self.search.longest(source, self.network.config.max_length)
        if len(tokens) > longest:
            raise DataError(f"{place}: its prefix has {len(tokens)} tokens, a translation of it at most {longest}")
        if any(token <= UNK for token in tokens):
            raise DataError(f"{place}: its prefix {text!r} has characters that the vocabulary lacks")
        return tokens

    def _translated(self, lines: Sequence["_Line"]) -> Iterator[TranslatedLine]:
        found: dict[int, list[Hypothesis]] = {}
        waiting = sorted((line for line in lines if line.tokens), key=lambda line: len(line.tokens))
        for start in range(0, len(waiting), self.batch_size):
            batch = waiting[start : start + self.batch_size]
            found.update(zip((line.number for line in batch), self._searched(batch), strict=True))
        for line in lines:
            yield TranslatedLine(
                number=line.number,
                place=line.place,
                source=line.text,
                state=line.state,
                translations=[self._translation(hypothesis) for hypothesis in found.get(line.number, ())],
            )

    def _searched(self, batch: Sequence["_Line"]) -> list[list[Hypothesis]]:
        source = _padded([line.tokens for line in batch]).to(self.device)
        if self.sampling is None:
            return beam_search(self.network, source, self.search, prefix=[line.prefix for line in batch])
        drawn = sample(
            self.network,
            source,
            self.search,
            seeds=[derive_seed(self.sampling.seed, line.number) for line in batch],
            temperature=self.sampling.temperature,
            top_k=self.sampling.top_k,
        )
        return [[hypothesis] for hypothesis in drawn]

    def _translation(self, hypothesis: Hypothesis) -> Translation:
        return Translation(
            text=one_line(self.tokenizer.decode(hypothesis.tokens)),
            score=hypothesis.score,
            log_probability=hypothesis.log_probability,
            tokens=self.tokenizer.pieces(hypothesis.tokens),
        )


@dataclasses.dataclass(frozen=True)
class _Line:
    """Ready for the network."""

    number: int
    place: str
    text: str
    state: State
    tokens: list[int]
    """Of the source, ended; none where there is nothing to translate."""
    prefix: list[int]


def _pairs(lines: Iterable[str], prefixes: Iterable[str] | None) -> Iterator[tuple[str, str]]:
    if prefixes is None:
        yield from ((line, "") for line in lines)
        return
    for number, (line, prefix) in enumerate(itertools.zip_longest(lines, prefixes), 1):
        if line is None or prefix is None:
            more, fewer = ("lines", "prefixes") if prefix is None else ("prefixes", "lines")
            raise DataError(f"there must be a prefix for each line, but there are {number - 1} {fewer} and more {more}")
        yield line, prefix


def _padded(sentences: Sequence[Sequence[int]]) -> Tensor:
    longest = max(map(len, sentences))
    return torch.tensor([[*sentence, *[PAD] * (longest - len(sentence))] for sentence in sentences])
