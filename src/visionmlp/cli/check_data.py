"""``visionmlp check-data``."""

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from visionmlp.cli.command import plain_command
from visionmlp.cli.options import CheckDataOptions
from visionmlp.cli.output import bars, console, print_json
from visionmlp.errors import InvalidConfig

if TYPE_CHECKING:
    from visionmlp.data.check import DataReport, SplitReport

_SHOWN = 10
"""Names of each kind in the report for people."""


def check_data(options: CheckDataOptions) -> int:
    """Decode every image and print what was found."""
    from visionmlp.data.check import check_data as check
    from visionmlp.data.sources import open_splits

    if options.num_workers < 0:
        raise InvalidConfig(f"num-workers must not be negative, got {options.num_workers}")
    sources = open_splits(options.data, root=options.data_root)
    with bars() as progress:
        report = check(sources, num_workers=options.num_workers, progress=progress)
    if options.json:
        print_json(report.to_plain())
    else:
        _print(report)
    return 0


def _print(report: "DataReport") -> None:
    from rich.table import Table

    table = Table()
    for heading in ("split", "images", "classes", "least and most of a class", "smallest", "median", "largest"):
        table.add_column(heading)
    for name, split in report.splits.items():
        sides = [f"{width} x {height}" for width, height in split.sides.values()] or ["-"] * 3
        counts = split.per_class.values()
        table.add_row(name, str(split.images), str(len(counts)), f"{min(counts)} to {max(counts)}", *sides)
    console().print(table)
    for name, split in report.splits.items():
        _list(f"{name}: cannot be read", _lines(split.broken))
        _list(f"{name}: read, but odd", _lines(split.notes))
        _list(f"{name}: classes without an image", _empty(split))
    _list("the same pixels in training and evaluation", [", ".join(names) for names in report.leaks])
    _list("the same pixels in different classes", [", ".join(names) for names in report.contradictions])
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
    examples=["check-data photos", "check-data torch/cifar100 --data-root data", "check-data photos --json"],
)
