"""A sub-command: its words in the help, its options, and the call it makes."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from visionmlp.cli.words import check_options
from visionmlp.measure.catalog import check_name

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """One sub-command. Its module imports what takes time when it runs, not before."""

    summary: str
    """Its line in ``visionmlp --help``."""
    description: str
    """The first paragraph of its own help."""
    examples: Sequence[str]
    """Command lines that work, for the end of its help."""
    check: Callable[[Sequence[str]], None]
    """Refuses unknown options and models at once, without importing the parser."""
    add_options: "Callable[[ArgumentParser, Sequence[str]], None]"
    """Adds the options to the parser; sees the words of the command line too."""
    run: "Callable[[Namespace], int]"
    """Does it; returns the exit code."""
    arrange: Callable[[Sequence[str]], Sequence[str]] = list
    """The words in an order that the parser takes."""

    @property
    def epilog(self) -> str:
        """The end of the help."""
        return "\n".join(["examples:", *(f"  visionmlp {example}" for example in self.examples)])


def plain_command(name: str, options: type, call: Callable[[Any], int], **texts: Any) -> Command:
    """A command whose options are the fields of one dataclass; a positional ``model`` or ``models`` names models."""
    positional = {field.name for field in dataclasses.fields(options) if field.metadata.get("positional")}

    def check(words: Sequence[str]) -> None:
        others = check_options(words, name, options)
        if "models" in positional:
            for model in others:
                check_name(model)
        elif "model" in positional and others:
            check_name(others[0])

    def add_options(parser: "ArgumentParser", _words: Sequence[str]) -> None:
        from visionmlp.cli.parser import add_fields

        add_fields(parser, options)

    def run(namespace: "Namespace") -> int:
        from visionmlp.cli.parser import options_from

        return call(options_from(namespace, options))

    return Command(check=check, add_options=add_options, run=run, **texts)
