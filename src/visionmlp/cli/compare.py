"""``visionmlp compare``."""

import sys
from pathlib import Path

from visionmlp.cli.command import plain_command
from visionmlp.cli.options import CompareOptions
from visionmlp.errors import InvalidConfig


def compare(options: CompareOptions) -> int:
    """Write the page of several runs, or the figure of several models on two datasets."""
    paths = [Path(run) for run in options.runs]
    of_scores = [path for path in paths if path.suffix == ".json"]
    if of_scores and len(of_scores) < len(paths):
        raise InvalidConfig(f"{of_scores[0]} is a file of scores; give only run folders, or only such files")
    return _draw_scores(paths, options) if of_scores else _compare_runs(paths, options)


def _compare_runs(folders: list[Path], options: CompareOptions) -> int:
    from visionmlp.report.comparison import write_comparison

    if options.x_data is not None:
        raise InvalidConfig("--x-data is about eval.json of two datasets; leave it out for run folders")
    output = options.output or Path("comparison.html")
    metric = write_comparison(folders, output, metric=options.metric, force=options.force)
    sys.stdout.write(f"wrote {output}: {len(folders)} runs by {metric}\n")
    return 0


def _draw_scores(files: list[Path], options: CompareOptions) -> int:
    from visionmlp.report.dataset_scores import write_dataset_scatter

    output = options.output or Path("comparison.png")
    scatter = write_dataset_scatter(files, output, metric=options.metric, x_data=options.x_data, force=options.force)
    for name, line in scatter.lines.items():
        sys.stdout.write(f"{name}: {line}\n")
    where = f"{scatter.metric} on {scatter.y_name} against {scatter.x_name}"
    sys.stdout.write(f"wrote {output}: {where}, {len(scatter.points)} models\n")
    return 0


COMPARE = plain_command(
    "compare",
    CompareOptions,
    compare,
    summary="several runs on one page, or several models on two datasets",
    description=(
        "Draw the curves of several runs together, with their best evaluations and the options that differ.\n\n"
        "From the eval.json of eval --output: draw accuracy on one dataset against another, such as ImageNet-V2."
    ),
    examples=[
        "compare runs/a runs/b --output ab.html",
        "compare runs/* --metric loss --output all.html --force",
        "compare val/*/eval.json v2/*/eval.json --output v2.png",
    ],
)
