"""Texts as lines: one line in is one line out, whatever is in it."""

import codecs
import contextlib
import itertools
import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from visionmlp.errors import DataError
from visionmlp.tasks.translate.options import InvalidText

STANDARD_INPUT = "-"

_CONTROL = re.compile("[\0-\x08\n-\x1f\x7f-\x9f\u2028\u2029]")
"""All but the tab. Programs end lines or strings there, and a network with bytes in its vocabulary can write each."""


_LATIN = "convert the file, for example by iconv -f LATIN1 -t UTF-8, or give --invalid-utf8 replace"
_OTHERS = {
    b"\x1f\x8b": "the file is compressed: zcat FILE | visionmlp translate MODEL",
    codecs.BOM_UTF16_LE: "the file is UTF-16: convert it by iconv -f UTF-16 -t UTF-8",
    codecs.BOM_UTF16_BE: "the file is UTF-16: convert it by iconv -f UTF-16 -t UTF-8",
}
"""What to do with files that begin so."""


class Lines:
    """The lines of files, one behind the other.

    A line ends at LF or CRLF and nowhere else, as `wc -l` counts, whether or not the last one has its end. A byte order
    mark in front of a file is no text.

    Args:
        files: paths, ``-`` for standard input.
        invalid: what happens to bytes that are no UTF-8.
    """

    def __init__(self, files: Sequence[str], invalid: InvalidText = "stop") -> None:
        self.files, self.invalid = files, invalid
        self._starts: list[tuple[int, str]] = []
        """Number of the first line, and name, of each file that was begun."""

    def check(self) -> None:
        """Try to open each file, before the work.

        Raises:
            DataError: for one that cannot be read.
        """
        for file in self.files:
            if not Path(file).is_fifo():  # it can be opened once
                with _opened(file):
                    pass

    @property
    def again(self) -> bool:
        """Whether they can be read a second time."""
        return all(file != STANDARD_INPUT and Path(file).is_file() for file in self.files)

    def __iter__(self) -> Iterator[str]:
        """Each line without its end.

        Raises:
            DataError: for a file that cannot be read, or, with "stop", a line that is no UTF-8.
        """
        self._starts = []
        number = itertools.count(1)
        for file in self.files:
            first = True
            with _opened(file) as stream:
                for raw in _read(stream, file):
                    here = next(number)
                    if first:
                        self._starts.append((here, _name(file)))
                        raw, first = raw.removeprefix(codecs.BOM_UTF8), False
                    yield self._text(raw, here)

    def place(self, number: int) -> str:
        """Where a line is that was read, counted from 1 over all files: file and line in it."""
        start, name = next(entry for entry in reversed(self._starts) if entry[0] <= number)
        return f"{name}, line {number - start + 1}"

    def _text(self, raw: bytes, number: int) -> str:
        raw = raw.removesuffix(b"\n").removesuffix(b"\r")
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            if self.invalid == "replace":
                return raw.decode(errors="replace")
            other = next((advice for start, advice in _OTHERS.items() if raw.startswith(start)), _LATIN)
            raise DataError(f"{self.place(number)}: byte {error.start + 1} is no UTF-8; {other}") from error


def is_blank(text: str) -> bool:
    """Whether a line says nothing: blanks of any kind, characters that control or format."""
    return all(unicodedata.category(letter) in ("Zs", "Zl", "Zp", "Cc", "Cf") for letter in text)


def one_line(text: str) -> str:
    """Text in which nothing ends a line or controls a terminal, with a space in place of each such character."""
    return _CONTROL.sub(" ", text)


def _name(file: str) -> str:
    return "standard input" if file == STANDARD_INPUT else file


@contextlib.contextmanager
def _opened(file: str) -> Iterator[BinaryIO]:
    if file == STANDARD_INPUT:
        if sys.stdin is None:
            raise DataError("standard input is closed; give files, or lines on standard input")
        yield sys.stdin.buffer
        return
    try:
        stream = Path(file).open("rb")  # noqa: SIM115 (an error in the block is not one of opening)
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from error
    with stream:
        yield stream


def _read(stream: BinaryIO, file: str) -> Iterator[bytes]:
    try:
        yield from stream
    except OSError as error:
        raise DataError(f"cannot read {_name(file)}: {error.strerror}") from error
