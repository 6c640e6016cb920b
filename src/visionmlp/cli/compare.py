"""``visionmlp compare``."""

import sys
from pathlib import Path

from visionmlp.cli.command import plain_command
from visionmlp.cli.options import CompareOptions


def compare(options: CompareOptions) -> int:
    """Write the page of several runs."""
    from visionmlp.report.comparison import write_comparison

    folders = [Path(run) for run in options.runs]
    metric = write_comparison(folders, options.output, metric=options.metric, force=options.force)
    sys.stdout.write(f"wrote {options.output}: {len(folders)} runs by {metric}\n")
    return 0


COMPARE = plain_command(
    "compare",
    CompareOptions,
    compare,
    summary="several runs on one page: curves, best numbers, options that differ",
    description="Draw the curves of several runs together, with their best evaluations and the options that differ.",
    examples=["compare runs/a runs/b --output ab.html", "compare runs/* --metric loss --output all.html --force"],
)
