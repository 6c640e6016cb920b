"""Several runs on one page: their curves together, their best numbers, and the options in which they differ."""

import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from visionmlp.engine.run_folder import RunFolder, best_row
from visionmlp.errors import InvalidConfig, RunFolderError
from visionmlp.files import beside
from visionmlp.report.page import embedded, page, table_of
from visionmlp.report.plots import run_curves

_MOST = 12
"""Runs on a page; more lines cannot be told apart."""
_UNSHOWN = {"output"}


class ComparedRun(NamedTuple):
    """What a comparison shows of a run."""

    name: str
    config: Mapping[str, Any]
    training: list[dict[str, float]]
    evaluations: list[dict[str, float]]


def read_run(folder: Path) -> ComparedRun:
    """A run from its folder.

    Raises:
        RunFolderError: if it holds no run, or one without an evaluation.
    """
    run = RunFolder(folder)
    if not (folder / "config.yaml").is_file():
        hint = f"; give {folder / 'eval.json'} to compare scores" if (folder / "eval.json").is_file() else ""
        raise RunFolderError(f"{folder} is no run folder: it has no config.yaml{hint}")
    evaluations = run.metrics.rows()
    if not evaluations:
        raise RunFolderError(f"{folder} has no evaluation yet, so there is nothing to compare")
    return ComparedRun(str(folder), run.read_config(), run.train.rows(), evaluations)


def write_comparison(folders: Sequence[Path], output: Path, *, metric: str | None = None, force: bool = False) -> str:
    """Write the page; returns the metric that it compares.

    Args:
        folders: two to twelve run folders.
        output: HTML file.
        metric: column of ``metrics.csv``, of which the largest is the best, or of loss the least; default: the
            first that all runs have.
        force: replace ``output`` if it exists.

    Raises:
        RunFolderError: for a folder without a run.
        InvalidConfig: for runs that have no such metric in common, or too few or many of them.
        OutputError: if the page cannot be written.
        MissingExtra: if matplotlib is not installed.
    """
    if not 2 <= len(folders) <= _MOST:
        raise InvalidConfig(f"a comparison has 2 to {_MOST} runs, got {len(folders)}")
    if twice := [str(folder) for folder in folders if list(folders).count(folder) > 1]:
        raise InvalidConfig(f"{twice[0]} is given twice")
    with beside(output, force=force, suffix=".html") as partial:
        runs = _short_names([read_run(folder) for folder in folders])
        chosen = _metric(runs, metric)
        curves = run_curves(
            {run.name: (run.training, run.evaluations) for run in runs},
            partial.with_suffix(".png"),
            metric=chosen,
        )
        try:
            figure = embedded(curves)
        finally:
            curves.unlink()
        text = page(
            title=f"{len(runs)} runs",
            numbers={},
            sections=[
                ("Curves", figure),
                ("Best evaluations", table_of([_row(run, chosen) for run in runs])),
                ("Options that differ", _differences(runs)),
            ],
        )
        partial.write_bytes(text.encode(errors="backslashreplace"))
    return chosen


def _short_names(runs: Sequence[ComparedRun]) -> list[ComparedRun]:
    """Names without the folders that all have in common."""
    common = os.path.commonpath([str(Path(run.name).absolute().parent) for run in runs])
    return [run._replace(name=os.path.relpath(Path(run.name).absolute(), common)) for run in runs]


def _metric(runs: Sequence[ComparedRun], metric: str | None) -> str:
    shared = [name for name in runs[0].evaluations[0] if all(name in run.evaluations[0] for run in runs)]
    shared = [name for name in shared if name not in ("step", "epoch")]
    if metric is None:
        if not shared:
            raise InvalidConfig("these runs have no metric in common; compare runs of one task")
        return shared[0]
    if metric not in shared:
        raise InvalidConfig(f"these runs have no metric {metric!r} in common; there are {', '.join(shared) or 'none'}")
    return metric


def _row(run: ComparedRun, metric: str) -> dict[str, str]:
    best = best_row(run.evaluations, metric, lower_is_better=metric == "loss")
    return {
        "run": run.name,
        "model": str(run.config.get("model")),
        f"best {metric}": f"{best[metric]:.6g}",
        "at step": f"{best['step']:.0f}",
        f"last {metric}": f"{run.evaluations[-1][metric]:.6g}",
        "steps": f"{run.evaluations[-1]['step']:.0f}",
        "training loss, last": f"{run.training[-1]['loss']:.4g}" if run.training else "-",
    }


def _differences(runs: Sequence[ComparedRun]) -> str:
    names = dict.fromkeys(name for run in runs for name in run.config if name not in _UNSHOWN)
    rows = [
        {"option": name, **{run.name: str(run.config.get(name, "-")) for run in runs}}
        for name in names
        if len({str(run.config.get(name, "-")) for run in runs}) > 1
    ]
    return table_of(rows) if rows else f"<p>{html.escape('none but the output folder')}</p>"
