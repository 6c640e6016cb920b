"""What ``visionmlp eval --output`` leaves: scores for programs, tables, and figures."""

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from visionmlp.errors import require
from visionmlp.files import OutputError, write_beside, writing
from visionmlp.tasks.classify.evaluation import Evaluation
from visionmlp.tasks.classify.figures import confusion_matrix, reliability_diagram, write_confusion

SCORES = "eval.json"
FILES = (SCORES, "confusion.csv", "confusion.png", "calibration.csv", "reliability.png")


def make_folder(folder: Path, *, force: bool) -> None:
    """Make sure, before the work, that `write_evaluation` can write.

    Raises:
        OutputError: if one of the files exists and must not be replaced, or it is no folder.
        MissingExtra: if matplotlib is not installed.
        RunFolderError: if the folder cannot be made.
    """
    require("matplotlib", extra="plots")
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; --output takes a folder")
    there = [name for name in FILES if (folder / name).exists()]
    if there and not force:
        raise OutputError(f"{folder / there[0]} exists; give another --output, or --force to replace it")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


def write_evaluation(folder: Path, record: Mapping[str, Any], result: Evaluation) -> None:
    """Write the scores; where the images have classes, also the confusion matrix and the calibration.

    Args:
        folder: from `make_folder`.
        record: what ``eval --json`` prints.
        result: the evaluation.

    Raises:
        RunFolderError: if a file cannot be written.
    """
    if result["confusion"].any():
        write_confusion(folder / "confusion.csv", result["confusion"], result["class_names"])
        confusion_matrix(result["confusion"], result["class_names"], folder / "confusion.png")
        write_calibration(folder / "calibration.csv", result["calibration"])
        reliability_diagram(result["calibration"], folder / "reliability.png", ece=result["ece"])
    else:
        # of an earlier evaluation, which must not stand beside these scores
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
    write_beside(folder / SCORES, (json.dumps(record, indent=2) + "\n").encode())


def write_calibration(path: Path, bins: Tensor) -> None:
    """Write a bin a row: its ends, images, mean confidence and accuracy (empty where there are no images).

    Args:
        path: CSV file.
        bins: (bins, 3): images, sum of their confidences, and how many are right.

    Raises:
        RunFolderError: if the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["above", "to", "images", "confidence", "accuracy"])
    for number, (images, confidence, correct) in enumerate(bins.tolist()):
        ends = [f"{(number + step) / len(bins):.6f}" for step in (0, 1)]
        means = [f"{total / images:.6f}" for total in (confidence, correct)] if images else ["", ""]
        writer.writerow([*ends, int(images), *means])
    write_beside(path, text.getvalue().encode())
