"""Average precision is pycocotools', on boxes and masks, over one and two processes."""

import contextlib
import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tests.tasks.detect.scenes import CATEGORIES, write_coco
from visionmlp.tasks.detect.annotations import AnnotatedSet
from visionmlp.tasks.detect.dataset import open_set
from visionmlp.tasks.detect.metrics import CocoMetric, Detections

IMAGES = 21
SIZE = (240, 200)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random objects of all sizes, crowds among them; the last category has none, and some images have none."""
    folder = tmp_path_factory.mktemp("coco")
    generator = np.random.default_rng(1)
    images, annotations = [], []
    for number in range(IMAGES):
        Image.new("RGB", SIZE).save(folder / f"{number}.png")
        images.append({"id": 1000 - number, "file_name": f"{number}.png", "width": SIZE[0], "height": SIZE[1]})
        for _ in range(int(generator.integers(0, 7))):
            x, y, width, height = random_box(generator)
            crowd = int(generator.random() < 0.15)
            annotations.append(
                {
                    "id": len(annotations),  # from 0 on
                    "image_id": 1000 - number,
                    "category_id": int(generator.choice([3, 7])),
                    "bbox": [x, y, width, height],
                    "area": 0.8 * width * height,
                    "iscrowd": crowd,
                    "segmentation": lengths(x, y, width, height) if crowd else [slanted(x, y, width, height)],
                }
            )
    write_coco(folder / "val.json", images, annotations)
    return folder


def random_box(generator: np.random.Generator) -> tuple[float, float, float, float]:
    width, height = (float(round(value, 2)) for value in np.exp(generator.uniform(1.5, 5.1, 2)))
    return (
        round(generator.uniform(0, SIZE[0] - width), 2),
        round(generator.uniform(0, SIZE[1] - height), 2),
        width,
        height,
    )


def slanted(x: float, y: float, width: float, height: float) -> list[float]:
    return [x + width / 8, y, x + width, y, x + width * 7 / 8, y + height, x, y + height]


def lengths(x: float, y: float, width: float, height: float) -> dict[str, Any]:
    mask = np.zeros(SIZE[::-1], np.uint8)
    mask[int(y) : math.ceil(y + height), int(x) : math.ceil(x + width)] = 1
    flat = np.concatenate([[0], mask.T.ravel(), [2]])
    places = np.flatnonzero(np.diff(flat)).tolist()
    counts = np.diff([0, *places]).tolist()
    return {"size": list(SIZE[::-1]), "counts": counts}


@pytest.fixture(scope="module")
def truth(folder: Path) -> AnnotatedSet:
    return open_set(str(folder), "validation")


@pytest.fixture(scope="module")
def found(truth: AnnotatedSet) -> list[Detections]:
    """Objects that are moved a little, more of them in crowds, and some that are not there."""
    generator = np.random.default_rng(2)
    results = []
    for image in truth.images:
        boxes, labels = [], []
        for one in image.instances:
            for _ in range(3 if one.crowd else 1):
                x, y, width, height = one.box
                moved = np.array([x, y, x + width, y + height]) + generator.normal(0, 0.05, 4) * np.tile(
                    [width, height], 2
                )
                boxes.append(np.sort(moved.reshape(2, 2), 0).ravel())
                labels.append(one.label if generator.random() < 0.9 else 3)
        for _ in range(int(generator.integers(0, 5))):
            x, y, width, height = random_box(generator)
            boxes.append(np.array([x, y, x + width, y + height]))
            labels.append(int(generator.integers(1, 4)))
        masks = torch.zeros(len(boxes), 1, SIZE[1], SIZE[0])
        for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
            mask[0, max(0, int(top)) : int(bottom), max(0, int(left)) : int(right)] = 0.5 + generator.random() / 2
        results.append(
            Detections.of(
                {
                    "boxes": torch.tensor(np.array(boxes).reshape(-1, 4), dtype=torch.float32),
                    "labels": torch.tensor(labels, dtype=torch.int64),
                    # ties too
                    "scores": torch.tensor(np.round(generator.random(len(boxes)), 1), dtype=torch.float32),
                    "masks": masks,
                }
            )
        )
    return results


def filled(truth: AnnotatedSet, found: list[Detections], **options: Any) -> CocoMetric:
    metric = CocoMetric(truth, masks=True, **options)
    for index, detections in enumerate(found):
        metric.add(index, detections)
    return metric


@pytest.mark.parametrize("most", [100, 2])
def test_equal_to_pycocotools_from_the_files(
    folder: Path, truth: AnnotatedSet, found: list[Detections], most: int
) -> None:
    metric = filled(truth, found, max_detections=most)
    numbers = metric.compute()
    # the results file, read by the reference beside the file that the truth was read from, with its own numbers
    content = json.loads((folder / "val.json").read_text())
    for one in content["annotations"]:
        one["id"] += 1  # the reference takes 0 for unmatched
    (folder / "shifted.json").write_text(json.dumps(content))
    (folder / "results.json").write_text(json.dumps(metric.results()))
    for kind, prefix in (("bbox", ""), ("segm", "mask_")):
        with contextlib.redirect_stdout(io.StringIO()):
            reference = COCO(str(folder / "shifted.json"))
            results = json.loads((folder / "results.json").read_text())
            for one in results:
                one.pop("segmentation" if kind == "bbox" else "bbox")
            evaluation = COCOeval(reference, reference.loadRes(results), kind)
            evaluation.params.maxDets = [most]
            evaluation.evaluate()
            evaluation.accumulate()
        precision = evaluation.eval["precision"][..., 0]
        for name, values in {
            "ap": precision[..., 0],
            "ap50": precision[:1, ..., 0],
            "ap75": precision[5:6, ..., 0],
            "ap_small": precision[..., 1],
            "ap_medium": precision[..., 2],
            "ap_large": precision[..., 3],
        }.items():
            assert numbers[prefix + name] == pytest.approx(100 * values[values > -1].mean(), abs=1e-9), name
            assert 1 < numbers[prefix + name] < 99
        for label, row in enumerate(metric.class_rows()):
            values = precision[:, :, label, 0]
            expected = f"{100 * values.mean():.2f}" if (values > -1).all() else "-"
            assert row[f"{prefix}ap"] == expected


def test_categories_without_objects(truth: AnnotatedSet, found: list[Detections], tmp_path: Path) -> None:
    metric = filled(truth, found)
    metric.compute()
    metric.write_classes(tmp_path / "classes.csv")
    header, *_, kite = (tmp_path / "classes.csv").read_text().splitlines()
    assert header == "id,class,objects,ap,ap50,mask_ap,mask_ap50"
    assert kite == "90,kite,0,-,-,-,-"


class _Process:
    """One of several, whose parts were gathered before."""

    def __init__(self, parts: list[Any]) -> None:
        self.parts = parts

    def gather(self, _item: Any) -> list[Any]:
        return self.parts


def test_any_number_of_processes_and_images_that_several_have(truth: AnnotatedSet, found: list[Detections]) -> None:
    whole = filled(truth, found).compute()
    for ranks in (1, 2, 4):
        parts = []
        for rank in range(ranks):
            # an image that two have, as padded samplers give it
            indices = {*range(rank, IMAGES, ranks), 0}
            parts.append({index: found[index] for index in indices})
        metric = CocoMetric(truth, masks=True)
        metric.merge(_Process(parts))  # type: ignore[arg-type]
        assert metric.compute() == whole


def test_nothing_found(truth: AnnotatedSet) -> None:
    empty = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32), [])
    numbers = filled(truth, [empty] * IMAGES).compute()
    assert numbers == dict.fromkeys(numbers, 0.0)
    assert filled(truth, [empty] * IMAGES).results() == []


def test_sizes_without_objects_are_no_number(truth: AnnotatedSet, found: list[Detections]) -> None:
    small = [
        dataclasses.replace(image, instances=tuple(one for one in image.instances if one.area < 32**2))
        for image in truth.images
    ]
    numbers = filled(dataclasses.replace(truth, images=tuple(small)), found).compute()
    assert math.isnan(numbers["ap_large"])
    assert numbers["ap"] > 0


def test_images_that_were_skipped_do_not_count(truth: AnnotatedSet, found: list[Detections]) -> None:
    metric = CocoMetric(truth, masks=False)
    for index in range(10):
        metric.add(index, found[index])
    first = CocoMetric(truth.first(10), masks=False)
    for index in range(10):
        first.add(index, found[index])
    assert metric.compute() == first.compute()
    assert metric.class_rows() == first.class_rows()


def test_every_category_is_mapped_back(truth: AnnotatedSet, found: list[Detections]) -> None:
    records = filled(truth, found).results()
    assert {record["category_id"] for record in records} == {one["id"] for one in CATEGORIES}
    assert {record["image_id"] for record in records} <= {image.id for image in truth.images}
