"""``visionmlp eval`` for segmentation: mIoU, IoU of each class and pixel accuracy of a network on a dataset."""

import contextlib
import dataclasses
import math
import time
from pathlib import Path
from typing import cast

from visionmlp.data import BadImageLog
from visionmlp.engine import evaluate as evaluate_task
from visionmlp.errors import InvalidConfig
from visionmlp.files import beside
from visionmlp.tasks.definition import Scores
from visionmlp.tasks.segment.building import evaluation_batches
from visionmlp.tasks.segment.data import EvaluationBatch, check_masks, require_same_classes
from visionmlp.tasks.segment.definition import SegmentEvalOptions
from visionmlp.tasks.segment.figures import class_rows, classes_table
from visionmlp.tasks.segment.layouts import Pairs, open_pairs
from visionmlp.tasks.segment.loss import SegmentationLoss
from visionmlp.tasks.segment.metrics import SegmentationMetric
from visionmlp.tasks.segment.run import read_config
from visionmlp.tasks.segment.served import Served, load_served
from visionmlp.tasks.segment.task import Segmentation


def scores(options: SegmentEvalOptions) -> Scores:
    """Scores and speed of a network; with ``output`` also those of each class as a file.

    Without ``data`` the dataset is that of the run that the network lies in.

    Raises:
        InvalidConfig: if there is no such run, or a number breaks its rule.
        OutputError: for a file that exists.
        VisionMLPError: if the network, the data or the device cannot be used.
    """
    for name in ("max_images", "num_workers"):
        value, least = getattr(options, name), int(name == "max_images")
        if value is not None and value < least:
            raise InvalidConfig(f"{name.replace('_', '-')} must be at least {least}, got {value}")
    if options.force and options.output is None:
        raise InvalidConfig("--force is about the file of --output; give it, or leave this out")
    served = load_served(options)
    data, pairs = _pairs(options, served)
    with contextlib.ExitStack() as stack:
        target = None
        if options.output is not None:
            target = stack.enter_context(beside(options.output, force=options.force, suffix=".csv"))
        start = time.perf_counter()
        metric = evaluate(
            served,
            pairs,
            scales=options.scales,
            num_workers=options.num_workers,
            log=BadImageLog(options.on_bad_image),
        )
        rate = metric.images / (time.perf_counter() - start)
        if target is not None:
            target.write_bytes(classes_table(metric, served.names))
    return _scores(options, served, data, pairs, metric, rate)


def evaluate(
    served: Served, pairs: Pairs, *, scales: tuple[float, ...] = (1.0,), num_workers: int = 0, log: BadImageLog
) -> SegmentationMetric:
    """The metric of a network over images.

    Raises:
        DataError: if the data cannot be used.
    """
    network, preparation = served.network, served.preparation
    batches = evaluation_batches(
        pairs,
        preparation.transform(scales),
        exif_orientation=preparation.exif_orientation,
        batch_size=1,
        num_workers=num_workers,
        log=log,
    )
    like = next(network.parameters())

    def prepare(batch: EvaluationBatch) -> EvaluationBatch:
        items = [item._replace(views=tuple(view.to(like) for view in item.views)) for item in batch.items]
        return batch._replace(items=tuple(items))

    task = Segmentation(network.num_classes, loss=SegmentationLoss(), inference=preparation.inference)
    with contextlib.closing(batches):
        return cast("SegmentationMetric", evaluate_task(task, network, batches, prepare=prepare))


def _pairs(options: SegmentEvalOptions, served: Served) -> tuple[str, Pairs]:
    """The dataset's name, and its images; their classes must be the network's."""
    data, root, values = options.data, options.data_root, options.mask_values
    if data is None:
        reference = Path(options.model)
        folder = reference if reference.is_dir() else reference.parent
        if not (folder / "config.yaml").is_file():
            raise InvalidConfig(f"--data must be given, since {options.model} is not in a run folder")
        config = read_config(folder)
        data, root, values = config.data, root or config.data_root, values or config.mask_values
    folder = data if root is None else str(root / data)
    pairs = open_pairs(
        folder,
        options.split,
        num_classes=served.network.num_classes,
        mask_values=values,
    ).first(options.max_images)
    check_masks(pairs)
    if pairs.classes.origin:  # others are known by number only
        names = tuple(served.names)
        require_same_classes(dataclasses.replace(pairs.classes, names=names), pairs.classes, pairs.title)
    return data, pairs


def _scores(
    options: SegmentEvalOptions, served: Served, data: str, pairs: Pairs, metric: SegmentationMetric, rate: float
) -> Scores:
    numbers, inference = metric.compute(), served.preparation.inference
    record = {
        **served.record,
        "data": data,
        "split": options.split,
        "inference": inference.mode,
        "window": list(inference.window) if inference.mode == "slide" else None,
        "stride": list(inference.stride) if inference.mode == "slide" else None,
        "scales": list(options.scales),
        "flip": options.flip,
        **{name: _finite(value) for name, value in numbers.items()},
        "iou": {name: _finite(value) for name, value in zip(served.names, metric.iou().tolist(), strict=True)},
        "images": metric.images,
        "skipped": len(pairs) - metric.images,
        "images_per_second": rate,
    }
    model, head = served.record["model"], served.record["head"]
    network = model if head is None else f"{head} on {model}"
    views = ", multi-scale" * (options.scales != (1.0,)) + ", flip" * options.flip
    return Scores(
        title=f"{network}, {data} ({options.split}), {inference.mode}{views}",
        columns={
            "mIoU %": _text(numbers["miou"], 2),
            "pixel accuracy %": _text(numbers["pixel_accuracy"], 2),
            "loss": _text(numbers["loss"], 4),
            "images": str(metric.images),
            "skipped": str(len(pairs) - metric.images),
            "images/s": f"{rate:.2f}",
        },
        record=record,
        parts=[
            {"class": row["class"], "IoU %": row["iou"], "accuracy %": row["accuracy"], "pixels": row["pixels"]}
            for row in class_rows(metric, served.names)
        ],
    )


def _text(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"


def _finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None
