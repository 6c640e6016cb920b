"""``visionmlp bench MODEL --data FOLDER``: the input pipeline, by the options of ``train`` that it depends on."""

import contextlib
import copy
import dataclasses
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from visionmlp.cli.command import Command
from visionmlp.cli.options import BenchOptions, InputBenchSwitches, TaskSwitch
from visionmlp.cli.output import console, print_json
from visionmlp.cli.words import check_options, scan
from visionmlp.errors import InvalidConfig
from visionmlp.files import beside
from visionmlp.tasks.definition import TaskDefinition
from visionmlp.tasks.register import DEFAULT, load_task, task_of

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

# of the task's configuration; the others, such as the learning rate, change no speed, or are measured here
_GROUPS = ("model", "head", "data", "images", "augmentation", "loss", "distillation", "hardware")
_FIELDS = ("seed", "batch_size", "accumulate", "optimizer", "optimizer_args", "clip_grad", "ema_decay", "loss")
_WITHOUT = ("num_workers", "devices")


def is_about_input(words: Sequence[str]) -> bool:
    """Whether a command line of ``bench`` names a dataset."""
    given, _ = scan(words, BenchOptions)
    return given.data is not None


def _task_name(words: Sequence[str]) -> str:
    """What is trained: as said, or else what the model was trained for."""
    given, others = scan(words, TaskSwitch, InputBenchSwitches)
    if given.task is not None:
        return given.task
    return next((task for word in others if (task := task_of(word)) is not None), DEFAULT)


def _task(name: str) -> TaskDefinition:
    task = load_task(name)
    if task.measure_input is None:
        raise InvalidConfig(f"bench --data does not measure task {name}; see visionmlp bench --help")
    return task


def _training_options(task: TaskDefinition) -> type:
    config = task.config
    hints = typing.get_type_hints(config)
    fields = []
    for field in dataclasses.fields(config):
        wanted = field.metadata.get("group") in _GROUPS or field.name in _FIELDS
        if wanted and field.name not in _WITHOUT:
            fields.append((field.name, hints[field.name], copy.copy(field)))
    return dataclasses.make_dataclass("InputBenchOptions", fields, frozen=True, kw_only=True)


def _check(words: Sequence[str]) -> None:
    task = _task(_task_name(words))
    others = check_options(
        words, "bench", _training_options(task), InputBenchSwitches, TaskSwitch, positional=("model",)
    )
    if others:
        task.check_model(others[0])


def _add_options(parser: "ArgumentParser", words: Sequence[str]) -> None:
    from visionmlp.cli.parser import add_fields

    name = _task_name(words)
    add_fields(parser, TaskSwitch, {"task": name})
    add_fields(parser, InputBenchSwitches)
    add_fields(parser, _training_options(_task(name)), positional=("model",))


def _run(namespace: "Namespace") -> int:
    from visionmlp.cli.parser import options_from

    task = _task(namespace.task)
    assert task.measure_input is not None
    switches, training = options_from(namespace, InputBenchSwitches), _training_options(task)
    if not switches.num_workers or min(switches.num_workers) < 0:
        raise InvalidConfig("num-workers needs one or more numbers, none of them negative")
    values = {field.name: namespace[field.name] for field in dataclasses.fields(training)}
    config = task.config.from_plain({**values, "output": Path()})
    with beside(switches.csv, force=switches.force) if switches.csv else contextlib.nullcontext() as table:
        result = task.measure_input(config, num_workers=switches.num_workers, steps=switches.steps)
        if table:
            result.write_csv(table)
        if switches.json:
            print_json(result.rows())
        else:
            from visionmlp.bench.input_pipeline import input_table

            console().print(input_table(result))
    if switches.csv:
        sys.stderr.write(f"wrote {switches.csv}\n")
    return 0


BENCH_INPUT = Command(
    summary="",
    description=(
        "Measure how fast the images of a dataset come, how fast a model trains on images that are there already, and\n"
        "how fast training is that needs both, in the training loop itself. Each number is a median of five parts.\n"
        "  waiting %   share of training's time in which it waits for its next batch\n"
        "docs/bench.md has more."
    ),
    examples=[
        "bench resmlp_s12 --data imagenette160 --img-size 128 --batch-size 32 --num-workers 0 1 2",
        "bench cyclemlp_b1 --task segment --data camvid --num-workers 1 2",
        "bench resmlp_s12 --data shards --auto-augment rand-m9-mstd0.5-inc1 --csv input.csv",
    ],
    check=_check,
    add_options=_add_options,
    run=_run,
)
