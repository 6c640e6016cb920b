"""``visionmlp predict``: each answer is printed as it comes, so that a folder of any size needs no memory."""

import contextlib
import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from visionmlp.cli.command import Command
from visionmlp.cli.output import counting, say
from visionmlp.cli.tasks import add_task_options, check_task_words, task_and_options
from visionmlp.files import beside

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from visionmlp.tasks.definition import Answer

Writer = Callable[["Answer"], None]

_LEAST_WIDTH = 24
"""Columns for the names of images; a longer name widens them from there on."""


def check(words: Sequence[str]) -> None:
    """Refuse unknown options and models."""
    check_task_words(words, "predict", lambda task: task.predict_options)


def add_options(parser: "ArgumentParser", words: Sequence[str]) -> None:
    """Options of the task."""
    add_task_options(parser, words, lambda task: task.predict_options)


def run(namespace: "Namespace") -> int:
    """Print answers for images; an image without one is named on standard error."""
    task, options = task_and_options(namespace, lambda task: task.predict_options)
    failures = 0
    with contextlib.ExitStack() as stack:
        writers: list[Writer] = []
        table = options.output if task.answer_columns else None
        if table is not None:
            writers.append(stack.enter_context(_table(table, task.answer_columns, force=options.force)))
        if options.json:
            writers.append(_write_json)
        elif table is None:
            writers.append(_Text())
        advance = stack.enter_context(counting("images"))
        for answer in task.predict(options):
            if answer.error is not None:
                failures += 1
                say(f"error: {answer.image}: {answer.error}")
            for write in writers:
                write(answer)
            advance()
    if options.output is not None and not options.json:
        sys.stdout.write(f"wrote {options.output}\n")
    return 2 if failures else 0


class _Text:
    """Aligned lines for people, on standard output."""

    def __init__(self) -> None:
        self.width = _LEAST_WIDTH

    def __call__(self, answer: "Answer") -> None:
        name = _printable(answer.image)
        if answer.error is None:
            self.width = max(self.width, len(name))
        for line in answer.lines():
            sys.stdout.write(f"{name:<{self.width}}  {_printable(line)}\n")
            name = ""
        sys.stdout.flush()


def _write_json(answer: "Answer") -> None:
    sys.stdout.write(json.dumps(answer.record()) + "\n")
    sys.stdout.flush()


@contextlib.contextmanager
def _table(path: Path, columns: Sequence[str], *, force: bool) -> Iterator[Writer]:
    """A CSV file that appears whole or not at all."""
    # names of files need not be UTF-8, and come out as they are on the disk
    with (
        beside(path, force=force, suffix=".csv") as partial,
        partial.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        yield lambda answer: writer.writerows(answer.rows())


def _printable(text: str) -> str:
    """Text that stays on its line, whatever the names of files and classes hold."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )


PREDICT = Command(
    summary="classes of images, or what else a model says about them",
    description=(
        "Print what a model says about images, each as soon as it is known.\n"
        "An image that cannot be read, or a folder without images, is named on standard error; the others are\n"
        "still predicted, and the exit code is 2. docs/predict.md has the formats of --json and --output."
    ),
    examples=[
        "predict runs/digits image.png folder/",
        "predict model.safetensors - --json < image.jpg",
        "predict runs/digits folder/ --output classes.csv",
        "predict model.xml folder/ --threads 2",
        "predict runs/digits folder/ --runtime onnxruntime",
    ],
    check=check,
    add_options=add_options,
    run=run,
)
