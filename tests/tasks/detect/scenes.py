"""Small images of bright rectangles, annotated."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CATEGORIES = [{"id": 90, "name": "kite"}, {"id": 3, "name": "car"}, {"id": 7, "name": "cup"}]
"""Out of order and with gaps; labels are car 1, cup 2, kite 3."""
COLOURS = {3: (250, 60, 60), 7: (60, 250, 60), 90: (60, 60, 250)}


def rectangle(x: float, y: float, width: float, height: float) -> list[float]:
    """A polygon."""
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def write_coco(
    path: Path,
    images: Sequence[dict[str, Any]],
    annotations: Sequence[dict[str, Any]],
    categories: Sequence[dict[str, Any]] = CATEGORIES,
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def make_scenes(folder: Path, split: str, count: int, *, seed: int, masks: bool = True) -> Path:
    """A JSON file and its images, two or three objects on each; the last image has none."""
    generator = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for number in range(count):
        name = f"images/{split}{number}.png"
        pixels = generator.integers(0, 40, (48, 64, 3), dtype=np.uint8)
        for _ in range(0 if number == count - 1 else int(generator.integers(2, 4))):
            x, y = (int(value) for value in generator.integers(0, 30, 2))
            width, height = (int(value) for value in generator.integers(12, 18, 2))
            category = int(generator.choice(list(COLOURS)))
            pixels[y : y + height, x : x + width] = COLOURS[category]
            one = {
                "id": len(annotations),
                "image_id": 100 + number,
                "category_id": category,
                "bbox": [x, y, width, height],
                "area": width * height,
                "iscrowd": 0,
            }
            annotations.append({**one, "segmentation": [rectangle(x, y, width, height)]} if masks else one)
        Image.fromarray(pixels).save(folder / name)
        images.append({"id": 100 + number, "file_name": name, "width": 64, "height": 48})
    return write_coco(folder / f"{split}.json", images, annotations)
