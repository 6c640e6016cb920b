"""``visionmlp eval`` for detectors: COCO's scores, by class, and a results file."""

import contextlib
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visionmlp.data import BadImageLog
from visionmlp.data.loading import EvaluationLoader
from visionmlp.engine import evaluate as evaluate_task
from visionmlp.errors import InvalidConfig, require
from visionmlp.files import beside
from visionmlp.models.dense_network import DenseInfo
from visionmlp.models.detector import Detector
from visionmlp.tasks.definition import Scores
from visionmlp.tasks.detect.annotations import AnnotatedSet
from visionmlp.tasks.detect.dataset import open_set
from visionmlp.tasks.detect.definition import DetectEvalOptions
from visionmlp.tasks.detect.loading import categories_of, exif_orientation_of, load_detector
from visionmlp.tasks.detect.metrics import CocoMetric, shown
from visionmlp.tasks.detect.run import read_config
from visionmlp.tasks.detect.samples import AnnotatedImages, DetectionBatch, collate, for_evaluation, mode_of
from visionmlp.tasks.detect.task import Detection

_HEADINGS = {
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "ap_small": "small",
    "ap_medium": "medium",
    "ap_large": "large",
    "mask_ap": "mask AP",
    "mask_ap50": "mask AP50",
}


def scores(options: DetectEvalOptions) -> Scores:
    """Average precision of a detector; with ``output`` also its detections as COCO's results file.

    Without ``data`` the dataset is that of the run that the model lies in.

    Raises:
        InvalidConfig: if there is no such run, or a number breaks its rule.
        OutputError: for a file that exists.
        VisionMLPError: if the model, the data or the device cannot be used.
    """
    require("faster_coco_eval", extra="detection")
    if options.num_workers < 0:
        raise InvalidConfig(f"num-workers must not be negative, got {options.num_workers}")
    if options.force and options.output is None:
        raise InvalidConfig("--force is about the file of --output; give it, or leave this out")
    detector, info = load_detector(options)
    images, name = _images(options, info)
    with contextlib.ExitStack() as stack:
        output = None
        if options.output is not None:
            output = stack.enter_context(beside(options.output, force=options.force, suffix=".json"))
        start = time.perf_counter()
        metric = evaluate(detector, info, images, options)
        numbers = metric.compute()
        seconds = time.perf_counter() - start
        if output is not None:
            output.write_text(json.dumps(metric.results()), encoding="utf-8")
    count = len(metric.found.items)
    record = {
        "model": info.model,
        "head": info.options["head"],
        "form": info.form,
        "weights": info.source,
        "data": name,
        "annotations": str(images.source),
        **{key: _plain(value) for key, value in numbers.items()},
        "images": count,
        "skipped": len(images.images) - count,
        "images_per_second": count / seconds,
        "classes": metric.class_rows(),
    }
    columns = {heading: shown(numbers[key]) for key, heading in _HEADINGS.items() if key in numbers}
    return Scores(
        title=f"{info.options['head']} of {info.model} on {images.source}",
        columns={**columns, "images": str(count), "images/s": f"{count / seconds:.1f}"},
        record=record,
        parts=[_strings(row) for row in metric.class_rows()],
    )


def evaluate(detector: Detector, info: DenseInfo, images: AnnotatedSet, options: DetectEvalOptions) -> CocoMetric:
    """What a detector, on its device, finds on the images; the metric is not computed yet.

    Raises:
        DataError: for an image that cannot be read, if these are not to be skipped.
    """
    batches = EvaluationLoader(
        AnnotatedImages(
            images,
            mode=mode_of(detector.backbone.in_chans),
            masks=False,
            exif_orientation=exif_orientation_of(info, options),
        ),
        for_evaluation,
        batch_size=options.batch_size,
        collate=collate,
        bad_images=BadImageLog(options.on_bad_image),
        num_workers=options.num_workers,
    )
    like = next(detector.parameters())
    task = Detection(
        images,
        masks=detector.has_masks,
        max_detections=detector.settings.detections_per_img,
    )

    def prepare(batch: DetectionBatch) -> DetectionBatch:
        return batch._replace(images=[image.to(like) for image in batch.images])

    with contextlib.closing(batches):
        metric = evaluate_task(task, detector, batches, prepare=prepare)
    assert isinstance(metric, CocoMetric)
    return metric


def _images(options: DetectEvalOptions, info: DenseInfo) -> tuple[AnnotatedSet, str]:
    known = (categories_of(info), info.source)
    data, root, annotations = options.data, options.data_root, options.annotations
    if data is None:
        path = Path(options.model)
        folder = path if path.is_dir() else path.parent
        if not (folder / "config.yaml").is_file():
            raise InvalidConfig(f"--data must be given, since {options.model} is not in a run folder")
        config = read_config(folder)
        data, root = config.data, root or config.data_root
        own = {"validation": config.val_annotations, "train": config.train_annotations}
        annotations = annotations or own.get(options.split)
    return open_set(data, options.split, root=root, annotations=annotations, known=known), data


def _plain(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value


def _strings(row: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in row.items()}
