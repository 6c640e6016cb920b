"""Which task a command line is about, and the options that follow from it."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from visionmlp.cli.options import TaskSwitch
from visionmlp.cli.usage import UsageError
from visionmlp.cli.words import check_options, scan
from visionmlp.tasks.definition import TaskDefinition
from visionmlp.tasks.register import DEFAULT, load_task, task_of

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

OptionsOf = Callable[[TaskDefinition], type]


def check_task_words(words: Sequence[str], command: str, options_of: OptionsOf) -> None:
    """Refuse unknown options and models of ``eval`` or ``predict``.

    Raises:
        UsageError: for an option that the task does not have, or a task that is not the model's.
        UnknownModel: with the nearest names.
    """
    task = load_task(task_name(words, options_of))
    others = check_options(words, command, options_of(task), TaskSwitch)
    if others:
        task.check_model(others[0])


def add_task_options(parser: "ArgumentParser", words: Sequence[str], options_of: OptionsOf) -> None:
    """Options of ``eval`` or ``predict`` for the task that the model was trained for."""
    from visionmlp.cli.parser import add_fields

    name = task_name(words, options_of)
    add_fields(parser, options_of(load_task(name)))
    add_fields(parser, TaskSwitch, {"task": name})


def task_and_options(namespace: "Namespace", options_of: OptionsOf) -> tuple[TaskDefinition, Any]:
    """The task of a parsed command line, and the instance of its options."""
    from visionmlp.cli.parser import options_from

    task = load_task(namespace.task)
    return task, options_from(namespace, options_of(task))


def task_name(words: Sequence[str], options_of: OptionsOf) -> str:
    """The task that the model was trained for.

    Raises:
        UsageError: if ``--task`` says another.
    """
    given, others = scan(words, TaskSwitch, options_of(load_task(DEFAULT)))
    said = {"--task": given.task} if given.task else {}
    for word in others:
        # options of another task than the default one are not known yet, so their values may be among the words
        if not word.startswith("-") and (task := task_of(word)) is not None:
            said[word] = task
            break
    return agreed(said)


def agreed(said: Mapping[str, str]) -> str:
    """The one task that all of these say, by who says it; the default if there are none.

    Raises:
        UsageError: naming two that differ.
    """
    (first, name), *others = said.items() or {"": DEFAULT}.items()
    for other, its_name in others:
        if its_name != name:
            raise UsageError(f"{first} says task {name}, but {other} says {its_name}")
    return name
