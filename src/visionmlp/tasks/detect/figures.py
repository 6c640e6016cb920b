"""What a detection run shows: curves, and pictures of what is found on fixed images."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from visionmlp.data.policy import BadImage
from visionmlp.engine.run_folder import RunFolder, best_row
from visionmlp.errors import RunFolderError
from visionmlp.files import writing
from visionmlp.report.page import write_page
from visionmlp.report.plots import column_curves, learning_curves
from visionmlp.tasks.detect.annotations import AnnotatedImage
from visionmlp.tasks.detect.drawing import drawn, found_objects, save_picture, sheet, true_objects
from visionmlp.tasks.detect.metrics import CocoMetric, shown
from visionmlp.tasks.detect.samples import AnnotatedImages

PICTURE_SCORE = 0.3
"""Least score of what is drawn."""
_SIDE, _COLUMNS = 420, 4
_COMMON = ("step", "epoch", "loss", "lr", "images_per_second")
"""Columns of every train.csv."""
_LOSSES = 4
"""Curves side by side."""


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Draws an evaluation's detections on the first images, and once what is true there, into ``pictures/``.

    Args:
        folder: run folder.
        images: as evaluation reads them.
        count: how many; 0 draws nothing.
    """

    folder: Path
    images: AnnotatedImages
    count: int

    def __call__(self, step: int, metric: CocoMetric) -> None:
        """Write ``step_N.png``.

        Raises:
            RunFolderError: if it cannot be written.
        """
        indices = sorted(metric.found.items)[: self.count]
        if not indices:
            return
        pictures = self.folder / "pictures"
        with writing(pictures):
            pictures.mkdir(exist_ok=True)
        categories = metric.truth.categories
        if not (truth := pictures / "truth.png").exists():
            self._draw(truth, indices, lambda _, image: true_objects(image, categories, masks=metric.masks))
        self._draw(
            picture_of(self.folder, step),
            indices,
            lambda index, _: found_objects(metric.found.items[index].above(PICTURE_SCORE), categories),
        )

    def _draw(self, path: Path, indices: list[int], objects: Callable[[int, AnnotatedImage], Any]) -> None:
        parts = []
        for index in indices:
            image = self.images.images[index]
            pixels = self.images.pixels(image).item
            if not isinstance(pixels, BadImage):  # it was read a moment ago
                parts.append(drawn(pixels, objects(index, image), largest=_SIDE))
        if not parts:
            raise RunFolderError(f"cannot write {path}: no image can be read any more")
        save_picture(sheet(parts, columns=min(_COLUMNS, len(parts))), path)


def picture_of(folder: Path, step: int) -> Path:
    """The pictures of an evaluation."""
    return folder / "pictures" / f"step_{step:07d}.png"


def write_report(folder: Path) -> Path:
    """Write the figures and ``report.html`` into the folder of a detection run, from what lies in it.

    Raises:
        RunFolderError: if something cannot be written.
        MissingExtra: if matplotlib is not installed.
    """
    run = RunFolder(folder)
    config, training, evaluations = run.read_config(), run.train.rows(), run.metrics.rows()
    curves = learning_curves(training, evaluations, folder / "curves.png", metric="ap", title="Box AP, held out (%)")
    figures = {"Learning curves": curves}
    parts = [name for name in (training[0] if training else ()) if name not in _COMMON]
    for start in range(0, len(parts), _LOSSES):  # a cascade has many
        titles = {name: name.removeprefix("loss_").replace("_", " ") for name in parts[start : start + _LOSSES]}
        number = f" ({start // _LOSSES + 1})" if len(parts) > _LOSSES else ""
        path = folder / f"losses{start // _LOSSES or ''}.png"
        figures[f"Parts of the loss{number}"] = column_curves(training, titles, path)
    best = best_row(evaluations, "ap")
    for heading, path in {
        f"Found at step {best['step']:.0f}, the best": picture_of(folder, int(best["step"])),
        "Annotated": folder / "pictures" / "truth.png",
    }.items():
        if path.is_file():
            figures[heading] = path
    numbers = {"box AP": "ap", "AP50": "ap50", "AP75": "ap75", "mask AP": "mask_ap"}
    return write_page(
        folder,
        title=f"{config['head']} of {config['model']} on {config['data']}",
        numbers={
            **{heading: shown(best[name]) for heading, name in numbers.items() if name in best},
            "best step": f"{best['step']:.0f} of {evaluations[-1]['step']:.0f}",
        },
        figures=figures,
    )
