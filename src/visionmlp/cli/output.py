"""What commands print: tables and JSON on standard output, lines on standard error."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from torch import nn

_PIPE_WIDTH = 200
"""Columns of a table that goes to a file or another program."""


def console() -> "Console":
    """Standard output for tables."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=_PIPE_WIDTH)


def print_json(value: Any) -> None:
    """A JSON value over several lines."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def say(line: str) -> None:
    """One line on standard error."""
    sys.stderr.write(" ".join(line.split()) + "\n")


@contextlib.contextmanager
def bars() -> Iterator[Callable[[str, int], Callable[[], None]]]:
    """Bars on standard error while a command works, in a terminal only.

    Called with what is done and how many of it there are; what that returns is called behind each.
    """
    from rich.console import Console
    from rich.progress import Progress

    shown = Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True)

    def progress(what: str, count: int) -> Callable[[], None]:
        bar = shown.add_task(what, total=count)
        return lambda: shown.advance(bar)

    # older versions of rich print an empty line at the end of bars that they do not show
    with contextlib.nullcontext() if shown.disable else shown:
        yield progress


@contextlib.contextmanager
def counting(what: str) -> Iterator[Callable[[], None]]:
    """Counts on standard error while a command works, in a terminal only; what it gives is called behind each."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    with Progress(
        SpinnerColumn(),
        TextColumn(f"{{task.completed}} {what}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        redirect_stdout=sys.stdout.isatty(),  # answers on the same terminal go above the counter
        transient=True,
    ) as progress:
        counter = progress.add_task("", total=None)
        yield lambda: progress.advance(counter)


def note_precision(model: "nn.Module") -> None:
    """Point out that a file was not written in the precision of its checkpoint."""
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    if dtype != "float32":
        say(f"note: the checkpoint is in {dtype}; what was written is in float32")
