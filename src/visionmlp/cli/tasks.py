"""Which task a command line is about, and the options that follow from it."""

import argparse
import dataclasses
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from visionmlp.cli.options import TaskSwitch
from visionmlp.cli.parser import add_fields, options_from, value_count
from visionmlp.cli.usage import UsageError
from visionmlp.tasks.definition import TaskDefinition
from visionmlp.tasks.register import DEFAULT, load_task, task_of

OptionsOf = Callable[[TaskDefinition], type]


def add_task_options(parser: ArgumentParser, words: Sequence[str], options_of: OptionsOf) -> None:
    """Options of ``eval`` or ``predict`` for the task that the model was trained for.

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
    name = agreed(said)
    add_fields(parser, options_of(load_task(name)))
    add_fields(parser, TaskSwitch, {"task": name})


def task_and_options(namespace: Namespace, options_of: OptionsOf) -> tuple[TaskDefinition, Any]:
    """The task of a parsed command line, and the instance of its options; the model's name is checked.

    Raises:
        UnknownModel: with the nearest names.
    """
    task = load_task(namespace.task)
    options = options_from(namespace, options_of(task))
    task.check_model(options.model)
    return task, options


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


def scan(words: Sequence[str], *options: type) -> tuple[argparse.Namespace, list[str]]:
    """Values of some options, as text, before the parser can be built; and all other words."""
    scanner = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for fields in options:
        hints = typing.get_type_hints(fields)
        for field in dataclasses.fields(fields):
            name = "--" + field.name.replace("_", "-")
            if field.metadata.get("positional"):
                continue
            if hints[field.name] is bool:
                scanner.add_argument(name, action="store_true")
            else:
                scanner.add_argument(name, nargs=value_count(hints[field.name]) or "?")
    return scanner.parse_known_args(list(words))
