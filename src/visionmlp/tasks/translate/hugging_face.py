"""Parallel text of Hugging Face ``datasets``: ``hfds/NAME``, or ``hfds/NAME:CONFIGURATION``."""

from pathlib import Path
from typing import Any

from visionmlp.data.hugging_face import open_split
from visionmlp.errors import DataError, require

PREFIX = "hfds/"


def read_pairs(
    data: str, split: str, source: str, target: str, *, root: Path | None, download: bool
) -> tuple[list[str], list[str]]:
    """Sentences of both languages, a column each, or both in the column ``translation``.

    Args:
        data: with its prefix.
        split: as the dataset calls it; ``val`` may also be its ``validation``.
        source: language.
        target: language.
        root: where datasets lie, if not where that library keeps them.
        download: whether it may be fetched.

    Raises:
        DataError: for what cannot be opened, or has no such split or columns.
        MissingExtra: without ``datasets``.
    """
    library: Any = require("datasets", extra="hfds")
    name, _, configuration = data.removeprefix(PREFIX).partition(":")
    cache = None if root is None else str(root)
    table, found = open_split(
        data,
        (split, "validation") if split == "val" else (split,),
        lambda wanted: library.load_dataset(name, configuration or None, split=wanted, cache_dir=cache),
        download=download,
        hint="--download fetches it",
    )
    names = table.column_names
    if "translation" in names:
        rows = [row or {} for row in table["translation"]]
        columns = [[row.get(language) for row in rows] for language in (source, target)]
    elif source in names and target in names:
        columns = [list(table[language]) for language in (source, target)]
    else:
        raise DataError(f"{data} has the columns {', '.join(names)}, not {source} and {target}, nor translation")
    sides: list[list[str]] = [[], []]
    for language, column, side in zip((source, target), columns, sides, strict=True):
        for number, text in enumerate(column):
            if not isinstance(text, str):
                raise DataError(f"{data}, {found}, pair {number + 1}, has no text in {language}")
            side.append(text.replace("\n", " "))
    return sides[0], sides[1]
