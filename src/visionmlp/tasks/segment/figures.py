"""What a segmentation run shows beside its curves: scores of each class, and images with their predictions."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from visionmlp.data.policy import BadImage
from visionmlp.engine.run_folder import RunFolder, best_row
from visionmlp.files import write_beside, writing
from visionmlp.report.page import write_page
from visionmlp.report.plots import learning_curves
from visionmlp.tasks.segment.data import MaskedImages
from visionmlp.tasks.segment.layouts import Pairs
from visionmlp.tasks.segment.metrics import SegmentationMetric
from visionmlp.tasks.segment.overlay import Shown, sheet

PICTURES = "predictions"
"""Folder of the pictures in a run."""
# class names are those of files, which need not be UTF-8
_ERRORS = "surrogateescape"


def class_rows(metric: SegmentationMetric, names: Sequence[str]) -> list[dict[str, str]]:
    """A class a row: ``class``, ``iou`` and ``accuracy`` in percent ("-" where there is none), and its ``pixels``."""
    columns = (metric.iou().tolist(), metric.accuracy().tolist(), metric.confusion.sum(1).tolist())
    return [
        {"class": name, "iou": _text(iou), "accuracy": _text(accuracy), "pixels": str(pixels)}
        for name, iou, accuracy, pixels in zip(names, *columns, strict=True)
    ]


def write_classes(path: Path, metric: SegmentationMetric, names: Sequence[str]) -> None:
    """Write `class_rows` as CSV.

    Raises:
        RunFolderError: if the file cannot be written.
    """
    write_beside(path, classes_table(metric, names))


def classes_table(metric: SegmentationMetric, names: Sequence[str]) -> bytes:
    """`class_rows` as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, ["class", "iou", "accuracy", "pixels"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(class_rows(metric, names))
    return text.getvalue().encode(errors=_ERRORS)


def write_pictures(
    folder: Path, step: int, metric: SegmentationMetric, pairs: Pairs, *, exif_orientation: bool
) -> None:
    """Write one PNG: images, their labels and what is predicted at this step.

    Args:
        folder: of the run.
        step: of the evaluation.
        metric: with the predictions.
        pairs: the evaluated images.
        exif_orientation: whether they are turned as their EXIF says.

    Raises:
        RunFolderError: if the file cannot be written.
    """
    reader = MaskedImages(pairs, exif_orientation=exif_orientation)
    rows: list[Shown] = []
    for number, predicted in metric.pictures.items.items():
        item = reader.read(number).item
        if not isinstance(item, BadImage):
            rows.append(Shown(item.image, item.labels, predicted))
    if not rows:
        return
    page = sheet(rows, pairs.classes.names, pairs.classes.palette)
    target = folder / PICTURES / f"step-{step:06d}.png"
    with writing(target):
        target.parent.mkdir(exist_ok=True)
    write_png(target, page)


def write_png(path: Path, image: Image.Image) -> None:
    """Write a picture so that it appears whole or not at all.

    Raises:
        RunFolderError: if it cannot be written.
    """
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=3)  # photographs hardly get smaller, and three times as slowly
    write_beside(path, buffer.getvalue())


def write_report(folder: Path) -> Path:
    """Write ``curves.png`` and ``report.html`` into the folder of a run, from what lies in it.

    Raises:
        RunFolderError: if something cannot be written.
        MissingExtra: if matplotlib is not installed.
    """
    run = RunFolder(folder)
    config, training, evaluations = run.read_config(), run.train.rows(), run.metrics.rows()
    curves = learning_curves(
        training, evaluations, folder / "curves.png", metric="miou", title="Mean IoU, held out (%)"
    )
    best = best_row(evaluations, "miou")
    figures = {"Learning curves": curves}
    # the last step may be the best
    for step, word in {int(evaluations[-1]["step"]): "last", int(best["step"]): "best"}.items():
        path = folder / PICTURES / f"step-{step:06d}.png"
        if path.is_file():
            figures[f"Predictions of the {word} step, {step}"] = path
    text = (folder / "classes.csv").read_text(encoding="utf-8", errors=_ERRORS)
    return write_page(
        folder,
        title=f"{config['task']}: {config['head']} on {config['model']}, {config['data']}",
        numbers={
            "mIoU": f"{best['miou']:.2f} %",
            "pixel accuracy": f"{best['pixel_accuracy']:.2f} %",
            "best step": f"{best['step']:.0f} of {evaluations[-1]['step']:.0f}",
        },
        figures=figures,
        tables={"Classes": list(csv.DictReader(io.StringIO(text)))},
    )


def _text(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "-"
