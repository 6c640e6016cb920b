"""What a classification run shows beside its curves: the confusion matrix, as a file and as a figure."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from visionmlp.data.classes import described
from visionmlp.engine.run_folder import RunFolder, best_row
from visionmlp.files import write_beside
from visionmlp.report.page import write_page
from visionmlp.report.plots import BLUE, GREY, VERMILION, column_curves, learning_curves, new_figure, save, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NAMED_CLASSES, _COUNTED_CLASSES, _DRAWN_CLASSES = 40, 20, 100
_LISTED_MISTAKES, _LONGEST_NAME = 30, 30
# class names are those of folders, which are bytes and need not be UTF-8
_ERRORS = "surrogateescape"
_DISTILLATION = {
    "base_loss": "Loss on the labels",
    "distill_loss": "Loss on the teacher",
    "teacher_agreement": "Same class as the teacher (%)",
}
"""Columns of train.csv, and their titles."""


def write_confusion(path: Path, confusion: Tensor, class_names: Sequence[str]) -> None:
    """Write counts (K, K) as CSV: true classes in rows, predictions in columns, names at both.

    Raises:
        RunFolderError: if the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["true \\ predicted", *class_names])
    writer.writerows([name, *counts] for name, counts in zip(class_names, confusion.tolist(), strict=True))
    write_beside(path, text.getvalue().encode(errors=_ERRORS))


def read_confusion(path: Path) -> tuple[Tensor, list[str]]:
    """The inverse of `write_confusion`."""
    rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8", errors=_ERRORS))))
    return torch.tensor([[int(count) for count in row[1:]] for row in rows[1:]]), rows[0][1:]


def confusion_matrix(confusion: Tensor, class_names: Sequence[str], path: Path) -> Path:
    """True classes in rows, predictions in columns; shade is the share of the row.

    More than 100 classes are drawn as 100 groups of neighbours or fewer, beside a list of the most frequent mistakes.

    Args:
        confusion: counts (K, K).
        class_names: K names; left out of the matrix where there is no room.
        path: PNG file to write.

    Raises:
        MissingExtra: if matplotlib is not installed.
        RunFolderError: if the file cannot be written.
    """
    counts = confusion.double().numpy()
    classes = len(counts)
    of_group = -(-classes // _DRAWN_CLASSES)
    drawn = _grouped(counts, of_group)
    shares = drawn / drawn.sum(1, keepdims=True).clip(min=1)
    side = min(9.0, max(4.2, 0.38 * classes))
    with style(**{"axes.grid": False}):
        if of_group == 1:
            figure = new_figure(side + 1.5, side)
            axes: Axes = figure.subplots()
        else:
            figure = new_figure(12.8, 6.6)
            axes, beside = figure.subplots(1, 2, width_ratios=(1.35, 1))
            _list_mistakes(beside, counts, described(class_names))
        # the square root lifts rare mistakes out of the background
        last = len(drawn) * of_group - 0.5
        image = axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1, extent=(-0.5, last, last, -0.5))
        if classes <= _NAMED_CLASSES:
            names = [_printable(name) for name in class_names]
            tilted = max(map(len, names)) > 3
            turn, side_of_turn = (40, "right") if tilted else (0, "center")
            axes.set_xticks(range(classes), names, rotation=turn, ha=side_of_turn, parse_math=False)
            axes.set_yticks(range(classes), names, parse_math=False)
        if classes <= _COUNTED_CLASSES:
            for row, column in np.argwhere(counts > 0):
                colour = "white" if shares[row, column] > 0.4 else "black"
                axes.text(column, row, f"{counts[row, column]:.0f}", ha="center", va="center", color=colour, fontsize=8)
        correct = 100 * counts.trace() / max(counts.sum(), 1)
        groups = "" if of_group == 1 else f"; groups of {of_group} classes"
        axes.set(
            title=f"{correct:.2f} % of {counts.sum():.0f} held-out images are right{groups}",
            xlabel="predicted",
            ylabel="true",
        )
        axes.spines[:].set_visible(False)
        word = "class" if of_group == 1 else "group"
        bar = figure.colorbar(image, ax=axes, fraction=0.045, pad=0.03, label=f"share of the true {word}")
        ticks = (0, 0.01, 0.1, 0.25, 0.5, 1)
        bar.set_ticks([share**0.5 for share in ticks], labels=[f"{100 * share:g} %" for share in ticks])
        return save(figure, path)


def _grouped(counts: np.ndarray, size: int) -> np.ndarray:
    """Sums over groups of neighbouring classes, of which the last may have fewer."""
    starts = np.arange(0, len(counts), size)
    return np.add.reduceat(np.add.reduceat(counts, starts, 0), starts, 1)


def _list_mistakes(axes: "Axes", counts: np.ndarray, names: Sequence[str]) -> None:
    """The cells off the diagonal with the most images, as text."""
    mistakes = counts - np.diag(np.diag(counts))
    order = np.argsort(-mistakes, axis=None, kind="stable")[:_LISTED_MISTAKES]
    axes.set_axis_off()
    axes.set(
        title="Most frequent mistakes: true class \N{RIGHTWARDS ARROW} predicted",
        xlim=(0, 1),
        ylim=(_LISTED_MISTAKES, -0.5),
    )
    for line, cell in enumerate(order.tolist()):
        true, predicted = divmod(int(cell), len(counts))
        if not mistakes[true, predicted]:
            break
        share = f"{mistakes[true, predicted]:.0f} of {counts[true].sum():.0f}"
        pair = f"{_short(names[true])} \N{RIGHTWARDS ARROW} {_short(names[predicted])}"
        axes.text(0.15, line, share, ha="right", va="center", fontsize=8, color=GREY)
        axes.text(0.18, line, pair, va="center", fontsize=8, parse_math=False)


def _short(name: str) -> str:
    printed = _printable(name)
    return printed if len(printed) <= _LONGEST_NAME else printed[: _LONGEST_NAME - 3] + "..."


def _printable(name: str) -> str:
    # of folders, whose names need not be UTF-8, nor formulas for all their $
    return name.encode(errors="backslashreplace").decode()


def reliability_diagram(bins: Tensor, path: Path, *, ece: float) -> Path:
    """Accuracy against confidence, bin by bin, over the shares of the images; on the diagonal is a calibrated model.

    Args:
        bins: (bins, 3) of equal width: images, sum of their confidences, and how many are right.
        path: PNG file to write.
        ece: expected calibration error, in percent.

    Raises:
        MissingExtra: if matplotlib is not installed.
        RunFolderError: if the file cannot be written.
    """
    images, confidence, correct = bins.double().numpy().T
    there = images > 0
    width = 100 / len(bins)
    centres = width * (np.arange(len(bins)) + 0.5)
    accuracies, confidences = (100 * total[there] / images[there] for total in (correct, confidence))
    total = images.sum().clip(min=1)
    with style():
        figure = new_figure(4.8, 5.8)
        accuracy, share = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        accuracy.bar(centres[there], accuracies, width=0.92 * width, color=BLUE, alpha=0.75, label="accuracy")
        gap = {"color": VERMILION, "linewidth": 1.6}
        accuracy.vlines(confidences, accuracies, confidences, **gap, label="gap to mean confidence")
        accuracy.plot(confidences, confidences, "_", markersize=9, markeredgewidth=1.6, color=VERMILION)
        accuracy.plot([0, 100], [0, 100], color=GREY, linestyle="--", linewidth=1)
        accuracy.set(
            title=f"Expected calibration error {ece:.2f} %, {images.sum():.0f} images",
            ylabel="accuracy (%)",
            xlim=(0, 100),
            ylim=(0, 100),
        )
        share.bar(centres, 100 * images / total, width=0.92 * width, color=GREY)
        means = {"accuracy": (BLUE, "-", correct), "confidence": (VERMILION, "--", confidence)}
        for name, (colour, line, values) in means.items():
            mean = 100 * values.sum() / total
            share.axvline(mean, color=colour, linestyle=line, label=f"mean {name} {mean:.1f} %")
        share.set(xlabel="confidence (%)", ylabel="images (%)")
        for axes in (accuracy, share):
            axes.set_axisbelow(True)
        # outside, since bars may be anywhere within
        figure.legend(loc="outside lower center", ncols=2)
        return save(figure, path)


def write_report(folder: Path) -> Path:
    """Write the figures and ``report.html`` into the folder of a classification run, from what lies in it.

    Figures are ``curves.png``, ``confusion.png`` and, where they apply, ``distillation.png`` and ``router.png``.

    Args:
        folder: run folder with tables, confusion matrix, configuration and environment.

    Raises:
        RunFolderError: if something cannot be written.
        MissingExtra: if matplotlib is not installed.
    """
    run = RunFolder(folder)
    config, training, evaluations = run.read_config(), run.train.rows(), run.metrics.rows()
    curves = learning_curves(
        training, evaluations, folder / "curves.png", metric="top1", title="Top-1 accuracy, held out (%)"
    )
    matrix = confusion_matrix(*read_confusion(run.confusion), folder / "confusion.png")
    figures = {"Learning curves": curves, "Confusion matrix": matrix}
    if training and _DISTILLATION.keys() <= training[0].keys():
        figures["Distillation"] = column_curves(training, _DISTILLATION, folder / "distillation.png")
    best = best_row(evaluations, "top1")
    return write_page(
        folder,
        title=f"{config['model']} on {config['data']}",
        numbers={
            "top-1": f"{best['top1']:.2f} %",
            "top-5": f"{best['top5']:.2f} %",
            "loss": f"{best['loss']:.4f}",
            "best step": f"{best['step']:.0f} of {evaluations[-1]['step']:.0f}",
        },
        figures=figures,
    )
