"""From dataclass fields to a jsonargparse parser, and from parser errors to one line with the nearest option."""

import argparse
import dataclasses
import re
import typing
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ActionYesNo, ArgumentParser, Namespace

from visionmlp.cli.usage import HelpFormatter, UsageError, nearest, unexpected
from visionmlp.cli.words import items, members

_METAVARS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


def build_parser(prog: str, *, description: str, epilog: str | None = None) -> ArgumentParser:
    """A parser that raises instead of exiting, and takes full option names only."""
    return ArgumentParser(
        prog=prog,
        description=description,
        epilog=epilog,
        exit_on_error=False,
        allow_abbrev=False,
        formatter_class=HelpFormatter,
        print_config=None,
        default_env=False,
    )


def parse(parser: ArgumentParser, words: Sequence[str]) -> Namespace | None:
    """The parsed arguments, or None when the parser has printed its help."""
    try:
        return parser.parse_args(list(words))
    except argparse.ArgumentError as error:
        raise usage_error(error, parser) from error
    except SystemExit:
        return None


def add_fields(
    parser: ArgumentParser,
    options: type,
    defaults: Mapping[str, Any] | None = None,
    positional: Collection[str] = (),
) -> None:
    """One option for each field of a dataclass: ``batch_size`` becomes ``--batch-size``.

    Booleans are switches (``--ema``, ``--no-ema``); tuples take several values; everything else is
    parsed by jsonargparse from its type.

    Args:
        parser: receives the options.
        options: a dataclass whose fields carry ``metadata["help"]``, and optionally ``metavar``, ``positional`` and
            ``group``, the heading in the help.
        defaults: values that replace the fields' own defaults.
        positional: fields that are given without ``--``, beside those that say so themselves.
    """
    hints = typing.get_type_hints(options)
    groups: dict[str, Any] = {}
    for field in dataclasses.fields(options):
        title = field.metadata.get("group")
        if title is not None and title not in groups:
            groups[title] = parser.add_argument_group(title)
        target = parser if title is None else groups[title]
        hint, metadata = hints[field.name], field.metadata
        bare = field.name in positional or metadata.get("positional", False)
        default = (defaults or {}).get(field.name, _default(field))
        required = default is dataclasses.MISSING
        settings: dict[str, Any] = {"help": metadata["help"].replace("%", "%%")}
        if not required:
            settings["default"] = default
            settings["help"] += _default_text(default).replace("%", "%%")
        name = field.name if bare else "--" + field.name.replace("_", "-")
        if hint is bool:
            target.add_argument(name, action=ActionYesNo(no_prefix="no-"), **settings)
            continue
        item, count = items(hint)
        settings["type"] = item
        settings["metavar"] = metadata.get("metavar") or (field.name.upper() if bare else _metavar(item))
        if count is not None:
            settings["nargs"] = "+" if required else count
            if default is not None:
                settings["default"] = [] if required else list(default)
        elif bare and not required:
            settings["nargs"] = "?"
        if not bare:
            settings["required"] = required
        elif required and count is not None:
            del settings["default"]
        target.add_argument(name, **settings)


def options_from(namespace: Namespace, options: type) -> Any:
    """The dataclass instance of parsed arguments; lists become tuples, as the fields say."""
    hints = typing.get_type_hints(options)
    values = {}
    for field in dataclasses.fields(options):
        value = namespace[field.name]
        values[field.name] = (
            tuple(value) if isinstance(value, list) and items(hints[field.name])[1] is not None else value
        )
    return options(**values)


def usage_error(error: Exception, parser: ArgumentParser) -> UsageError:
    """jsonargparse's message as one line, with the nearest option for an unknown one."""
    text = " ".join(str(error).split())
    spelled = {action.dest: _spelling(action) for action in parser._actions}
    if match := re.search(r"unrecognized arguments: (\S+)", text):
        return unexpected(match[1], spelled.values(), parser.prog)
    if match := re.search(r"Option '(\S+)' is not accepted", text):
        key = match[1]
        return UsageError(
            f"unknown key {key!r} in the config file; {nearest(key, spelled) or f'see {parser.prog} --help'}"
        )
    if match := re.match(r"the following arguments are required: (.+)", text):
        return UsageError(f"{', '.join(spelled.get(key, key) for key in match[1].split(', '))} must be given")
    if match := re.match(r'Parser key "(\w+)"(?: element \d+)?: (.*)', text):
        key, reason = match.groups()
        if "surrogates not allowed" in reason:
            reason = "the path is not UTF-8, which run folders and checkpoints need; rename the folder or file"
        action = next(action for action in parser._actions if action.dest == key)
        value = re.search(r"(?:Got value|Given value|given value): ?(.*)$", reason)
        return UsageError(
            f"{_spelling(action)} takes {_describe(action)}, got {value[1]!r}"
            if value
            else f"{_spelling(action)}: {reason}"
        )
    return UsageError(text.removeprefix("argument "))


def config_first(words: Sequence[str]) -> list[str]:
    """The words with ``--config FILE`` moved to the front, since of two settings a parser takes the later."""
    front, rest = [], list(words)
    for index in reversed(range(len(words))):
        if words[index].startswith("--config="):
            front = [rest.pop(index), *front]
        elif words[index] == "--config" and index + 1 < len(words):
            front = [rest.pop(index), rest.pop(index), *front]
    return front + rest


def _spelling(action: argparse.Action) -> str:
    return (
        action.option_strings[-1 if isinstance(action, argparse._HelpAction) else 0]
        if action.option_strings
        else str(action.metavar or action.dest)
    )


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default


def _default_text(default: Any) -> str:
    """What to type for the default; nothing where there is no value or the help says it."""
    if default is None or default is False or default in ("", (), {}, []):
        return ""
    if default is True:
        return " (default: on)"
    return f" (default: {' '.join(map(str, default)) if isinstance(default, tuple | list) else default})"


def _metavar(hint: Any) -> str:
    return "|".join(_metavar_of_member(member) for member in members(hint))


def _metavar_of_member(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return "|".join(map(str, typing.get_args(hint)))
    return _METAVARS.get(hint, "JSON")


def _describe(action: argparse.Action) -> str:
    words = {"N": "an integer", "X": "a number", "JSON": "a JSON or YAML value"}
    metavar = str(action.metavar)
    return words.get(metavar, metavar.replace("|", " or "))
