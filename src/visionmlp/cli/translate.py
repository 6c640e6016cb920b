"""``visionmlp translate``: lines are written as soon as their chunk is done, so a text of any size needs no memory."""

import contextlib
import dataclasses
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from visionmlp.cli.command import plain_command
from visionmlp.cli.output import counting, say
from visionmlp.cli.usage import UsageError
from visionmlp.cli.words import check_options, positional_first
from visionmlp.errors import InvalidConfig
from visionmlp.files import beside
from visionmlp.tasks.translate.options import TranslateOptions

if TYPE_CHECKING:
    from visionmlp.tasks.translate.translate import TranslatedLine

_NAMED = 5
"""Lines whose places are told."""


def translate(options: TranslateOptions) -> int:
    """Write translations; lines that were cut or skipped are counted on standard error."""
    from visionmlp.tasks.translate.serving import translate

    unusual: dict[str, list[str]] = {"cut": [], "skipped": []}
    counts = dict.fromkeys(unusual, 0)
    if options.output is None and options.force:
        raise InvalidConfig("--force is about the file of --output; give it, or leave this out")
    if str(options.output) == "-":
        raise InvalidConfig("--output takes a file; without it translations go to standard output")
    interactive = not options.files and sys.stdin is not None and sys.stdin.isatty()
    with contextlib.ExitStack() as stack:
        file: TextIO | None = None
        if options.output is not None:
            partial = stack.enter_context(beside(options.output, force=options.force))
            file = stack.enter_context(partial.open("w", encoding="utf-8", newline="\n"))
        elif isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8", newline="\n")
        advance = stack.enter_context(counting("lines"))
        for line in translate(options, interactive=interactive):
            out = file or sys.stdout  # which a terminal's counter has replaced
            out.write(_json(line) if options.json else line.text + "\n")
            if file is None:
                out.flush()
            if line.state in counts:
                counts[line.state] += 1
                unusual[line.state] += [line.place] * (len(unusual[line.state]) < _NAMED)
            advance()
    if options.output is not None:
        sys.stdout.write(f"wrote {options.output}\n")
    for state, places in unusual.items():
        if places:
            more = counts[state] - len(places)
            named = "; ".join(places) + (f" and {more} more" if more else "")
            lines = "1 line is" if counts[state] == 1 else f"{counts[state]} lines are"
            say(f"note: {lines} longer than the model takes and {_DONE[state]}: {named}")
    return 0


_DONE = {"cut": "lost the end", "skipped": "came out empty"}


def _json(line: "TranslatedLine") -> str:
    return json.dumps(line.record(), ensure_ascii=False) + "\n"


def check(words: Sequence[str]) -> None:
    """Refuse unknown options, and a model that is not there."""
    others = check_options(words, "translate", TranslateOptions)
    if others and not Path(others[0]).exists():
        raise UsageError(f"no run folder, checkpoint or exported model {others[0]}")


TRANSLATE = dataclasses.replace(
    plain_command(
        "translate",
        TranslateOptions,
        translate,
        summary="texts into another language, line for line",
        description=(
            "Translate texts, a sentence a line, each written as soon as its chunk is done. Line for line: an empty\n"
            "line stays one, and the output always has as many lines as the input.\n"
            "docs/translation.md has the format of --json, and what happens to unusual lines."
        ),
        examples=[
            "translate runs/multi30k test.en > test.de",
            "translate runs/multi30k < test.en --beam 1 --batch-size 64",
            "translate model.safetensors test.en --n-best 4 --json --output test.jsonl",
            "translate runs/multi30k --sample --temperature 0.8 --seed 3",
            "translate exported/ test.en --threads 2 --too-long cut",
        ],
    ),
    check=check,
    arrange=lambda words: positional_first(words, TranslateOptions),
)
