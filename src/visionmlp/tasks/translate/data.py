"""Parallel text: files of lines, one language each or both with tabs between, and what of it is trained on."""

import dataclasses
import gzip
import hashlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from visionmlp.errors import DataError
from visionmlp.models.translator import EOS
from visionmlp.tasks.translate.hugging_face import PREFIX, read_pairs
from visionmlp.tasks.translate.tokenizer import Tokenizer

_SUFFIXES = ("", ".gz")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus:
    """Sentences and their translations, as the files have them but for the ends of lines."""

    name: str
    """What to call it in a message."""
    source: list[str]
    target: list[str]

    def __len__(self) -> int:
        return len(self.source)

    def first(self, count: int | None) -> "Corpus":
        """The first ones; None is all."""
        return dataclasses.replace(self, source=self.source[:count], target=self.target[:count])

    def summary(self) -> dict[str, Any]:
        """Number and digest of the pairs, plain JSON."""
        digest = hashlib.sha256()
        for pair in zip(self.source, self.target, strict=True):
            digest.update("\0".join(pair).encode() + b"\n")
        return {"pairs": len(self), "digest": digest.hexdigest()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunCorpora:
    """What a run is trained and evaluated on: `visionmlp.engine.run_folder.DataRecord`."""

    training: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    tokenizer: str
    """Its digest."""

    def to_plain(self) -> dict[str, Any]:
        """Plain JSON."""
        return dataclasses.asdict(self)

    def change_since(self, before: Mapping[str, Any]) -> str | None:
        """What is different from an earlier `to_plain`, in one clause; None if nothing is."""
        for part in ("training", "evaluation"):
            old, new = before[part], getattr(self, part)
            if old["pairs"] != new["pairs"]:
                return f"{part} data: there were {old['pairs']} pairs and are {new['pairs']}"
            if old["digest"] != new["digest"]:
                return f"{part} data: the {new['pairs']} pairs are other ones"
        return None if before["tokenizer"] == self.tokenizer else "the tokenizer is another one"


def open_corpus(
    data: str | Path, split: str, source: str, target: str, *, root: Path | None = None, download: bool = False
) -> Corpus:
    """The sentences of a split.

    Args:
        data: ``hfds/NAME``, see `visionmlp.tasks.translate.hugging_face`; or a folder with ``SPLIT.en`` and
            ``SPLIT.de``, or ``SPLIT.en-de.en`` and ``SPLIT.en-de.de``, or ``SPLIT.en-de.tsv`` whose
            first column is the first language of the name, or ``SPLIT.tsv`` whose first column is the source; each
            perhaps with ``.gz``, and tables with another name and a dot in front.
        split: its name in the files.
        source: language, as in the names.
        target: language.
        root: where datasets lie; a relative folder starts here.
        download: whether ``hfds/NAME`` may be fetched.

    Raises:
        MissingExtra: for ``hfds/NAME`` without datasets.
        DataError: for files that are not there, of different lengths, or no UTF-8; naming file and line.
    """
    if str(data).startswith(PREFIX):
        sides = read_pairs(str(data), split, source, target, root=root, download=download)
        return _corpus(f"{data} ({split})", *sides)
    folder = (root or Path()) / data
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; --data takes one with {split}.{source} and {split}.{target}")
    pairs = [split, f"{split}.{source}-{target}", f"{split}.{target}-{source}"]
    for stem in pairs:
        files = [_there(folder, f"{stem}.{language}") for language in (source, target)]
        if files[0] is not None and files[1] is not None:
            sides = [list(read_lines(path)) for path in files if path is not None]
            if len(sides[0]) != len(sides[1]):
                raise DataError(
                    f"{files[0]} has {len(sides[0])} lines, but {files[1]} has {len(sides[1])}; they must be parallel"
                )
            return _corpus(f"{folder}/{split}", *sides)
    for stem, swapped in ((pairs[1], False), (pairs[2], True), (split, False)):
        path = _table(folder, f"{stem}.tsv")
        if path is not None:
            columns = list(_columns(path))
            sides = [[row[place] for row in columns] for place in ((1, 0) if swapped else (0, 1))]
            return _corpus(str(path), *sides)
    raise DataError(
        f"{folder} has no {split}.{source} with {split}.{target}, nor {split}.{source}-{target}.tsv (each perhaps with "
        f".gz); other names of languages and splits: --source, --target, --valid, --split"
    )


def read_lines(path: Path) -> Iterator[str]:
    """Lines without their ends, ``\\n`` or ``\\r\\n``; a byte order mark is left out.

    Raises:
        DataError: naming file and line.
    """
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                text = line.decode()
                yield (text.removeprefix("\ufeff") if number == 1 else text).rstrip("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, line {number}, is no UTF-8: {error.reason}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"cannot read {path} behind line {number}: {getattr(error, 'strerror', None) or error}"
        ) from error


def _there(folder: Path, name: str) -> Path | None:
    return next((folder / f"{name}{end}" for end in _SUFFIXES if (folder / f"{name}{end}").is_file()), None)


def _table(folder: Path, name: str) -> Path | None:
    """The file of a name, or the one that has it behind another and a dot."""
    if (path := _there(folder, name)) is not None:
        return path
    ends = tuple(f".{name}{end}" for end in _SUFFIXES)
    found = sorted(path for path in folder.iterdir() if path.name.endswith(ends) and not path.name.startswith("."))
    if len(found) > 1:
        raise DataError(f"{folder} has {found[0].name} and {found[1].name}; leave one of them there, or call it {name}")
    return found[0] if found else None


def _columns(path: Path) -> Iterator[list[str]]:
    for number, line in enumerate(read_lines(path), start=1):
        columns = line.split("\t")
        if len(columns) != 2:
            raise DataError(f"{path}, line {number}, has {len(columns)} columns with tabs between, not 2")
        yield columns


def _corpus(name: str, source: list[str], target: list[str]) -> Corpus:
    if not source:
        raise DataError(f"{name} has no sentences")
    return Corpus(name=name, source=source, target=target)


class Encoded:
    """Sentences as ids with their end symbol, in one array."""

    def __init__(self, sentences: Sequence[str], tokenizer: Tokenizer) -> None:
        # arrays at once: lists of millions of sentences would take ten times the memory
        parts = [np.array([*tokenizer.encode(sentence), EOS], np.int32) for sentence in sentences]
        self.lengths = np.array([len(part) for part in parts], np.int64)
        self._ends = np.cumsum(self.lengths)
        self._ids = np.concatenate(parts)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, number: int) -> np.ndarray:
        """(T,), int32."""
        return self._ids[self._ends[number] - self.lengths[number] : self._ends[number]]


@dataclasses.dataclass(frozen=True)
class Left:
    """Pairs that are not trained on, by the reason."""

    empty: int
    long: int
    uneven: int

    def text(self) -> str:
        """One clause; empty for none."""
        parts = {"empty": self.empty, "too long": self.long, "of too different lengths": self.uneven}
        return ", ".join(f"{count} {reason}" for reason, count in parts.items() if count)


def usable(source: Encoded, target: Encoded, *, max_tokens: int, max_ratio: float | None) -> tuple[np.ndarray, Left]:
    """Numbers of the pairs to train on.

    Args:
        source: sentences.
        target: their translations.
        max_tokens: of either, end symbol not counted.
        max_ratio: of the longer one's tokens to the other's; None for any.
    """
    lengths = np.stack([source.lengths, target.lengths]) - 1
    empty = lengths.min(0) == 0
    long = ~empty & (lengths.max(0) > max_tokens)
    uneven = np.zeros_like(empty)
    if max_ratio is not None:
        uneven = ~empty & ~long & (lengths.max(0) > max_ratio * lengths.min(0))
    left = Left(int(empty.sum()), int(long.sum()), int(uneven.sum()))
    return np.flatnonzero(~(empty | long | uneven)), left
