"""``visionmlp eval``: the task that the model was trained for decides the options and the scores."""

from typing import TYPE_CHECKING

from visionmlp.cli.command import Command
from visionmlp.cli.output import console, print_json
from visionmlp.cli.tasks import add_task_options, check_task_words, task_and_options

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jsonargparse import ArgumentParser, Namespace
    from rich.table import Table

    from visionmlp.tasks.definition import Scores


def check(words: "Sequence[str]") -> None:
    """Refuse unknown options and models."""
    check_task_words(words, "eval", lambda task: task.eval_options)


def add_options(parser: "ArgumentParser", words: "Sequence[str]") -> None:
    """Options of the task."""
    add_task_options(parser, words, lambda task: task.eval_options)


def run(namespace: "Namespace") -> int:
    """Print a model's scores on a dataset."""
    task, options = task_and_options(namespace, lambda task: task.eval_options)
    scores = task.evaluate(options)
    if options.json:
        print_json(dict(scores.record))
    else:
        console().print(scores_table(scores))
        if scores.parts:
            console().print(parts_table(scores.parts))
    return 0


def scores_table(scores: "Scores") -> "Table":
    """Scores in one row."""
    from rich.table import Table
    from rich.text import Text

    # as Text, since a name of a file may look like rich's markup
    table = Table(title=Text(scores.title, style="table.title"), title_justify="left")
    for heading in scores.columns:
        table.add_column(heading, justify="right")
    table.add_row(*scores.columns.values())
    return table


def parts_table(parts: "Sequence[Mapping[str, str]]") -> "Table":
    """Scores of each part, a row each."""
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for heading in parts[0]:
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for part in parts:
        table.add_row(*map(Text, part.values()))
    return table


EVAL = Command(
    summary="scores on a dataset, such as top-1, top-5 and loss",
    description=(
        "Measure a model on a dataset. The task is that of the run or checkpoint, which decides options and scores."
    ),
    examples=[
        "eval runs/digits",
        "eval resmlp_s12 --checkpoint resmlp_12.pth --data imagenet/val --split validation",
        "eval int8.xml --data imagenette/",
    ],
    check=check,
    add_options=add_options,
    run=run,
)
