"""What the words of a command line say before the parser is built: wrong names are refused without importing it."""

import argparse
import dataclasses
import types
import typing
from collections.abc import Collection, Sequence
from typing import Any

from visionmlp.cli.usage import unexpected


def scan(
    words: Sequence[str], *options: type, positional: Collection[str] = ()
) -> tuple[argparse.Namespace, list[str]]:
    """Values of options as text, None where they are not given; and all other words.

    Args:
        words: those behind the command. What cannot be understood is left to the parser, which says it better.
        options: dataclasses; their positional fields are among the other words.
        positional: fields that are given without ``--``, beside those that say so themselves.
    """
    words, behind = list(words), []
    if "--" in words:
        words, behind = words[: words.index("--")], words[words.index("--") + 1 :]
    scanner = argparse.ArgumentParser(
        add_help=False, allow_abbrev=False, exit_on_error=False, conflict_handler="resolve"
    )
    for name, hint in _options(options, positional).items():
        dest = name.replace("-", "_")
        if hint is bool:
            scanner.add_argument(f"--{name}", action="store_true", dest=dest, default=None)
            scanner.add_argument(f"--no-{name}", action="store_false", dest=dest, default=None)
        else:
            scanner.add_argument(f"--{name}", nargs=value_count(hint) or "?", dest=dest)
    try:
        given, others = scanner.parse_known_args(words)
    except argparse.ArgumentError:
        given, others = scanner.parse_known_args([])
    return given, [*others, *behind]


def check_options(words: Sequence[str], command: str, *options: type, positional: Collection[str] = ()) -> list[str]:
    """The words that are neither options nor their values.

    Args:
        words: those behind the command.
        command: its name.
        options: dataclasses with all options of the command.
        positional: as in `scan`.

    Raises:
        UsageError: for an option that it does not have, with the nearest.
    """
    before = words[: words.index("--")] if "--" in words else words
    _, others = scan(words, *options, positional=positional)
    for word in others:
        # --model-args.depth 3 sets one entry of --model-args
        if word.startswith("--") and word in before and "." not in word.partition("=")[0]:
            known = ["--help", *(f"--{name}" for name in _options(options, positional))]
            raise unexpected(word, known, f"visionmlp {command}")
    return [word for word in others if not word.startswith("-") or word not in before]


def positional_first(words: Sequence[str], *options: type) -> list[str]:
    """The words with those in front that are neither options nor their values, since a parser takes an optional
    positional argument where it sees the first one and never again; unchanged where ``--`` separates them.

    Args:
        words: those behind the command.
        options: dataclasses with all options of the command.
    """
    if "--" in words:
        return list(words)
    # numbers in place of the words tell where those are that remain
    places = {str(place): word for place, word in enumerate(words) if word == "-" or not word.startswith("-")}
    _, others = scan([str(place) if str(place) in places else word for place, word in enumerate(words)], *options)
    front = [place for place in others if place in places]
    return [places[place] for place in front] + [word for place, word in enumerate(words) if str(place) not in front]


def _options(options: Sequence[type], positional: Collection[str]) -> dict[str, Any]:
    """Type by name, as it is typed but for the leading ``--``."""
    found = {}
    for fields in options:
        hints = typing.get_type_hints(fields)
        for field in dataclasses.fields(fields):
            if field.name not in positional and not field.metadata.get("positional", False):
                found[field.name.replace("_", "-")] = hints[field.name]
    return found


def value_count(hint: Any) -> int | str | None:
    """How many words an option of this type takes: a number, ``"*"``, or None for one value."""
    return items(hint)[1]


def items(hint: Any) -> tuple[Any, int | str | None]:
    """Type and number of a tuple's values: ``X, "*"`` of ``tuple[X, ...]``, ``X, 2`` of ``tuple[X, X]``; else None."""
    (member, *others) = members(hint)
    parts = typing.get_args(member)
    if others or typing.get_origin(member) is not tuple:
        return hint, None
    return parts[0], "*" if parts[1:] == (...,) else len(parts)


def members(hint: Any) -> list[Any]:
    """The types that a value may have, without None."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [member for member in typing.get_args(hint) if member is not types.NoneType]
    return [hint]
