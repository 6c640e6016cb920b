"""``visionmlp check-data``."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from visionmlp.cli.command import plain_command
from visionmlp.cli.options import CheckDataOptions
from visionmlp.cli.output import bars, console, print_json
from visionmlp.errors import DataError, InvalidConfig
from visionmlp.tasks.register import DEFAULT, TASKS, load_task

if TYPE_CHECKING:
    from visionmlp.data.check import DataReport, SplitReport
    from visionmlp.tasks.definition import DataCheck

_SHOWN = 10
"""Names of each kind in the report for people."""


def check_data(options: CheckDataOptions) -> int:
    """Decode every image and print what was found."""
    from visionmlp.data.check import check_data as check

    if options.num_workers < 0:
        raise InvalidConfig(f"num-workers must not be negative, got {options.num_workers}")
    checks = {name: checked for name in TASKS if (checked := load_task(name).data_check) is not None}
    folder = (options.data_root or Path()) / options.data
    task = options.task or _task_of(folder, checks)
    if task not in checks:
        raise InvalidConfig(f"no data of task {task!r} to check; --task takes {', '.join(checks)}")
    try:
        splits = checks[task].splits(options.data, options.data_root)
    except DataError as error:
        if options.task or task == DEFAULT:
            raise
        raise DataError(
            f"{error}; it is looked at as data of task {task} for its layout, --task says otherwise"
        ) from error
    if not splits:
        raise DataError(f"{folder} has no data in a layout of task {task}; 'train --task {task}' says what it needs")
    with bars() as progress:
        report = check(splits, num_workers=options.num_workers, progress=progress)
    if options.json:
        print_json({"task": task, **report.to_plain()})
    else:
        _print(task, report)
    return 0


def _task_of(folder: Path, checks: "Mapping[str, DataCheck]") -> str:
    """By the layout: one that is for no other task, or else that of classification."""
    found = [name for name, checked in checks.items() if folder.is_dir() and checked.recognises(folder)]
    if len(found) > 1:
        raise InvalidConfig(f"{folder} is laid out for {' and for '.join(found)}; say which with --task")
    return found[0] if found else DEFAULT


_ONE = {"images": "an image", "objects": "an object", "pixels": "a pixel"}
_OTHERWISE = {"images": "in different classes", "objects": "with other objects", "pixels": "with other masks"}


def _print(task: str, report: "DataReport") -> None:
    from rich.table import Table

    counted = next(iter(report.splits.values())).counted
    table = Table(title=f"as {task} takes it")
    for heading in ("split", "images", "classes", f"{counted} of a class", "smallest", "median", "largest"):
        table.add_column(heading)
    for name, split in report.splits.items():
        sides = [f"{width} x {height}" for width, height in split.sides.values()] or ["-"] * 3
        counts = split.per_class.values()
        spread = f"{min(counts)} to {max(counts)}" if counts else "-"
        table.add_row(name, str(split.images), str(len(counts)), spread, *sides)
    console().print(table)
    for name, split in report.splits.items():
        _list(f"{name}: cannot be read", _lines(split.broken))
        _list(f"{name}: read, but odd", _lines(split.notes))
        _list(f"{name}: classes without {_ONE[counted]}", _empty(split))
        _list(f"{name}: images with nothing of any class", split.without_classes)
        if not split.class_names_known:
            _list(f"{name}: values of masks", [f"{value}: {count} pixels" for value, count in split.per_class.items()])
    _list("the same pixels in several splits", [", ".join(names) for names in report.leaks])
    _list(f"the same pixels {_OTHERWISE[counted]}", [", ".join(names) for names in report.contradictions])
    _list("the same pixels within a split", [", ".join(names) for names in report.duplicates])


def _lines(reasons: Mapping[str, str]) -> list[str]:
    return [f"{name}: {reason}" for name, reason in reasons.items()]


def _empty(split: "SplitReport") -> list[str]:
    return [name for name, count in split.per_class.items() if count == 0]


def _list(heading: str, lines: Sequence[str]) -> None:
    if not lines:
        return
    sys.stdout.write(f"{heading}: {len(lines)}\n")
    for line in lines[:_SHOWN]:
        sys.stdout.write(f"  {line}\n")
    if len(lines) > _SHOWN:
        sys.stdout.write(f"  and {len(lines) - _SHOWN} more; --json names all\n")


CHECK_DATA = plain_command(
    "check-data",
    CheckDataOptions,
    check_data,
    summary="scan a dataset: broken files, sizes, the same image in training and evaluation",
    description="Decode every image of a dataset, and report counts, sizes, broken and odd files, and duplicates.",
    examples=[
        "check-data photos",
        "check-data torch/cifar100 --data-root data",
        "check-data coco",
        "check-data ADEChallengeData2016 --task segment --json",
    ],
)
