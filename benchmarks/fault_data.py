"""The small data of faults.py: classes of images, scenes with objects and masks, and pairs of sentences."""

import json
from pathlib import Path

import numpy as np
from PIL import Image


def write_classes(root: Path) -> None:
    """Two classes that differ in brightness: 48 images to train on, 16 held out."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 8)):
        for level, name in enumerate(("dark", "light")):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(100 * level, 100 * level + 150, (36, 36, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")


def write_scenes(root: Path) -> None:
    """Two rectangles on each of 48 images and of 8 held out: masks in CamVid's layout and boxes in COCO's."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 48), ("val", 8)):
        images, annotations = [], []
        for folder in (split, f"{split}_labels"):
            (root / folder).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 60, (48, 64, 3), dtype=np.uint8)
            labels = np.zeros((48, 64), np.uint8)
            for kind in (1, 2):
                x, y = (int(value) for value in generator.integers(0, 28, 2))
                pixels[y : y + 18, x : x + 18, kind] = 250
                labels[y : y + 18, x : x + 18] = kind
                corners = [[x, y, x + 18, y, x + 18, y + 18, x, y + 18]]
                box = {"bbox": [x, y, 18, 18], "area": 324, "iscrowd": 0, "segmentation": corners}
                annotations.append({"id": len(annotations), "image_id": number, "category_id": kind, **box})
            name = f"{number:02d}.png"
            Image.fromarray(pixels).save(root / split / name)
            Image.fromarray(labels).save(root / f"{split}_labels" / name)
            images.append({"id": number, "file_name": f"{split}/{name}", "width": 64, "height": 48})
        categories = [{"id": 1, "name": "green"}, {"id": 2, "name": "blue"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / f"{split}.json").write_text(json.dumps(content))
    (root / "meta.json").write_text(
        json.dumps({"class_names": ["ground", "green", "blue"], "ignore_index": 255, "splits": {}})
    )


def write_sentences(root: Path) -> None:
    """Letters and the same letters backwards: 192 pairs to train on, 24 held out."""
    generator = np.random.default_rng(0)
    root.mkdir()
    for split, count in (("train", 192), ("val", 24)):
        lines = [generator.choice([*"abcdefgh"], generator.integers(1, 7)).tolist() for _ in range(count)]
        for suffix, step in (("in", 1), ("out", -1)):
            (root / f"{split}.{suffix}").write_text("".join(" ".join(line[::step]) + "\n" for line in lines))
