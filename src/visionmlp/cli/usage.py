"""What a wrong command and the list of commands need: formatting and errors, from the standard library alone."""

import argparse
import difflib
from collections.abc import Iterable
from typing import Any


class UsageError(Exception):
    """The command line cannot be understood; the message is one line."""


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Every option on one short line of usage, with its default as one would type it."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=110)

    def _format_usage(self, usage: Any, actions: Any, groups: Any, prefix: Any) -> str:
        """Positional arguments only: the list below has the options."""
        if usage is None and not any(isinstance(action, argparse._SubParsersAction) for action in actions):
            positionals = [action for action in actions if not action.option_strings]
            required = [action for action in actions if action.option_strings and action.required]
            words = [
                self._format_args(action, self._get_default_metavar_for_positional(action)) for action in positionals
            ]
            words += [f"{action.option_strings[0]} {action.metavar}" for action in required]
            usage = " ".join([self._prog, *words, "[options]"])
        return super()._format_usage(usage, actions, groups, prefix)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        """A switch that is off shows only how to turn it on."""
        if action.default is False and action.option_strings:
            return action.option_strings[0]
        return super()._format_action_invocation(action)


def nearest(word: str, known: Iterable[str]) -> str:
    """``did you mean ...?`` with the nearest of the known words, or nothing."""
    near = difflib.get_close_matches(word, list(known), n=3)
    return f"did you mean {', '.join(near)}?" if near else ""


def unexpected(word: str, known: Iterable[str], program: str) -> UsageError:
    """The error for a word that is neither an option nor the value of one."""
    word = word.partition("=")[0]
    kind = "unknown option" if word.startswith("-") else "unexpected argument"
    hint = nearest(word.replace("_", "-"), [name for name in known if name.startswith("--")])
    return UsageError(f"{kind} {word}; {hint or f'see {program} --help'}")
