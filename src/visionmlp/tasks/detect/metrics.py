"""COCO's average precision, by faster-coco-eval; and the detections that it is of."""

import csv
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from visionmlp.engine.metrics import Collected
from visionmlp.engine.processes import Processes
from visionmlp.errors import require
from visionmlp.files import write_beside
from visionmlp.tasks.detect.annotations import AnnotatedImage, AnnotatedSet, Categories, ImageId
from visionmlp.tasks.detect.outlines import RunLengths, encode

_RANGES = ("all", "small", "medium", "large")
"""COCO's sizes of objects, in the order of the evaluation."""
_THRESHOLD = 0.5
"""Above which a pixel belongs to a mask."""


@dataclasses.dataclass(frozen=True)
class Detections:
    """What a network finds on one image, best first."""

    boxes: NDArray[np.float32]
    """(N, 4), x and y of two corners, in pixels of the image."""
    labels: NDArray[np.int64]
    """(N,), 1 to K."""
    scores: NDArray[np.float32]
    """(N,), in [0, 1]."""
    masks: list[RunLengths] | None = None
    """N of the image's size; None from a network that finds none."""

    @classmethod
    def of(cls, result: Mapping[str, Tensor]) -> "Detections":
        """From a detector's ``boxes``, ``labels``, ``scores`` and ``masks`` (N, 1, H, W) of probabilities."""
        masks = None
        if "masks" in result:
            masks = [encode((mask[0] >= _THRESHOLD).cpu().numpy()) for mask in result["masks"]]
        boxes, scores = (result[name].float().cpu().numpy() for name in ("boxes", "scores"))
        return cls(boxes, result["labels"].cpu().numpy(), scores, masks)

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, score: float) -> "Detections":
        """Those of at least a score."""
        kept = np.flatnonzero(self.scores >= score)
        masks = None if self.masks is None else [self.masks[place] for place in kept]
        return Detections(self.boxes[kept], self.labels[kept], self.scores[kept], masks)

    def records(self, image: Any, categories: Sequence[int]) -> list[dict[str, Any]]:
        """Entries of COCO's results file, with masks where there are some.

        Args:
            image: id to name it by.
            categories: id of each label, from label 1 on.
        """
        records = []
        for place, (x, y, right, bottom) in enumerate(self.boxes.astype(np.float64).tolist()):
            record = {
                "image_id": image,
                "category_id": categories[int(self.labels[place]) - 1],
                "bbox": [x, y, right - x, bottom - y],
                "score": float(self.scores[place]),
            }
            if self.masks is not None:
                counts = self.masks[place]["counts"]
                text = counts.decode("ascii") if isinstance(counts, bytes) else counts
                record["segmentation"] = {"size": list(self.masks[place]["size"]), "counts": text}
            records.append(record)
        return records


@dataclasses.dataclass(frozen=True)
class ClassScores:
    """Average precision of each class, in percent; NaN for one without objects."""

    ap: list[float]
    """Mean over IoU 0.5, 0.55, ..., 0.95."""
    ap50: list[float]
    """At IoU 0.5."""


@dataclasses.dataclass(frozen=True)
class ApScores:
    """Average precision of one kind: boxes or masks."""

    numbers: dict[str, float]
    """``ap``, ``ap50``, ``ap75``, ``ap_small``, ``ap_medium``, ``ap_large``, in percent: means over classes; NaN
    without objects."""
    classes: ClassScores


class CocoMetric:
    """Average precision of boxes and, where the network finds them, masks.

    Args:
        truth: the images, in the order that detections are numbered by.
        masks: whether masks are scored too.
        max_detections: best ones of an image and class that count; COCO has 100.
    """

    def __init__(self, truth: AnnotatedSet, *, masks: bool, max_detections: int = 100) -> None:
        self.truth, self.masks, self.max_detections = truth, masks, max_detections
        self.found = Collected()
        self.scores: dict[str, ApScores] = {}
        """By kind, ``bbox`` and ``segm``, behind `compute`."""

    def add(self, index: int, detections: Detections) -> None:
        """Take in what was found on an image of the truth."""
        self.found.add(index, detections)

    def merge(self, processes: Processes) -> None:
        """See `visionmlp.engine.metrics.Metric.merge`."""
        self.found.merge(processes)

    def compute(self) -> dict[str, float]:
        """``ap``, ``ap50``, ``ap75``, ``ap_small``, ...; and ``mask_ap``, ``mask_ap50``, ... where there are masks."""
        self.scores = {"bbox": self._score("bbox")}
        numbers = dict(self.scores["bbox"].numbers)
        if self.masks:
            self.scores["segm"] = self._score("segm")
            numbers |= {f"mask_{name}": value for name, value in self.scores["segm"].numbers.items()}
        return numbers

    def results(self) -> list[dict[str, Any]]:
        """All detections as COCO's results file has them, with the dataset's own ids."""
        ids = self.truth.categories.ids
        return [
            record
            for index, detections in sorted(self.found.items.items())
            for record in detections.records(self.truth.images[index].id, ids)
        ]

    def write_classes(self, path: Path) -> None:
        """Write each class's scores as CSV, ``-`` for one without objects.

        Raises:
            RunFolderError: if the file cannot be written.
        """
        text = io.StringIO()
        rows = self.class_rows()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_beside(path, text.getvalue().encode())

    def class_rows(self) -> list[dict[str, Any]]:
        """Id, name, objects and scores of each class."""
        seen = dataclasses.replace(self.truth, images=tuple(self.truth.images[index] for index in self.found.items))
        rows: list[dict[str, Any]] = [
            {"id": one, "class": name, "objects": count}
            for one, name, count in zip(seen.categories.ids, seen.categories.names, seen.counts(), strict=True)
        ]
        for kind, prefix in (("bbox", ""), ("segm", "mask_")):
            if (scores := self.scores.get(kind)) is not None:
                for row, ap, ap50 in zip(rows, scores.classes.ap, scores.classes.ap50, strict=True):
                    row |= {f"{prefix}ap": shown(ap), f"{prefix}ap50": shown(ap50)}
        return rows

    def _score(self, kind: str) -> ApScores:
        module = require("faster_coco_eval", extra="detection")
        # ids in the dataset's order, as that decides between equal scores
        numbers = {index: number for number, index in enumerate(sorted(self.found.items, key=self._place), start=1)}
        images = [(number, self.truth.images[index]) for index, number in numbers.items()]
        truth = module.COCO(_truth(images, self.truth.categories, masks=kind == "segm"))
        labels = range(1, len(self.truth.categories.names) + 1)
        records = []
        for index, number in numbers.items():
            for record in self.found.items[index].records(number, labels):
                record.pop("bbox" if kind == "segm" else "segmentation", None)
                records.append(record)
        # its loader refuses an empty list
        found = truth.loadRes(records) if records else module.COCO({**truth.dataset, "annotations": []})
        evaluation = module.COCOeval_faster(truth, found, kind, print_function=lambda *_: None)
        evaluation.params.maxDets = [self.max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
        # (IoU thresholds, recalls, classes, sizes, numbers of detections)
        return _scores_of(np.asarray(evaluation.eval["precision"])[..., -1])

    def _place(self, index: int) -> tuple[bool, ImageId]:
        """Numbers before names."""
        image = self.truth.images[index].id
        return isinstance(image, str), image


def _scores_of(precision: NDArray[np.float64]) -> ApScores:
    """From precision (T, R, K, A) at IoU thresholds, recalls, classes and sizes; -1 where there is no object."""
    at50, at75 = precision[:1], precision[5:6]
    numbers = {"ap": _mean(precision[..., 0]), "ap50": _mean(at50[..., 0]), "ap75": _mean(at75[..., 0])}
    numbers |= {f"ap_{name}": _mean(precision[..., place]) for place, name in enumerate(_RANGES) if place}
    classes = range(precision.shape[2])
    return ApScores(
        numbers=numbers,
        classes=ClassScores(
            ap=[_mean(precision[:, :, k, 0]) for k in classes], ap50=[_mean(at50[:, :, k, 0]) for k in classes]
        ),
    )


def _mean(precision: NDArray[np.float64]) -> float:
    known = precision[precision > -1]
    return 100 * float(known.mean()) if known.size else math.nan


def shown(value: float) -> str:
    """As a table has it: ``-`` where there is no number."""
    return "-" if math.isnan(value) else f"{value:.2f}"


def _truth(images: Sequence[tuple[int, AnnotatedImage]], categories: Categories, *, masks: bool) -> dict[str, Any]:
    """COCO's dataset with our numbers: of images as given, of categories the labels, of annotations from 1 on.

    Ids of the files need not be numbers, and an annotation 0 would count as unmatched.
    """
    annotations: list[dict[str, Any]] = []
    for number, image in images:
        for one in image.instances:
            if masks and one.outline is None:
                continue
            annotation = {
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": one.label,
                "bbox": list(one.box),
                "area": one.area,
                "iscrowd": int(one.crowd),
            }
            if masks:
                assert one.outline is not None
                annotation["segmentation"] = one.outline.encoded()
            annotations.append(annotation)
    return {
        "images": [{"id": number, "width": image.size[0], "height": image.size[1]} for number, image in images],
        "categories": [{"id": label, "name": name} for label, name in enumerate(categories.names, start=1)],
        "annotations": annotations,
    }
