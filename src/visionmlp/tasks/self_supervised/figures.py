"""The report of a run that learned without classes."""

from pathlib import Path

from visionmlp.engine.run_folder import RunFolder, best_row
from visionmlp.report.page import write_page
from visionmlp.report.plots import column_curves, learning_curves

_COLUMNS = {
    "entropy": "Target entropy (nats)",
    "kl": "KL to the targets (nats)",
    "spread": "Spread of the features",
    "agreement": "Own key is the nearest (%)",
}
"""Columns of train.csv that a method may have, and their titles."""


def write_report(folder: Path) -> Path:
    """Write the figures and ``report.html`` into the folder of a run, from what lies in it.

    Raises:
        RunFolderError: if something cannot be written.
        MissingExtra: if matplotlib is not installed.
    """
    run = RunFolder(folder)
    config, training, evaluations = run.read_config(), run.train.rows(), run.metrics.rows()
    curves = learning_curves(
        training, evaluations, folder / "curves.png", metric="knn", title="Nearest neighbours, held out (%)"
    )
    columns = {name: title for name, title in _COLUMNS.items() if training and name in training[0]}
    figures = {"Learning curves": curves}
    if columns:
        figures["Signs of collapse"] = column_curves(training, columns, folder / "collapse.png")
    best = best_row(evaluations, "knn")
    return write_page(
        folder,
        title=f"{config['task']}: {config['model']} on {config['data']}",
        numbers={
            "k-NN": f"{best['knn']:.2f} %",
            "k-NN, five classes": f"{best['knn5']:.2f} %",
            "best step": f"{best['step']:.0f} of {evaluations[-1]['step']:.0f}",
        },
        figures=figures,
    )
