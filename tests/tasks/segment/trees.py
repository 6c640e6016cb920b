"""Tiny datasets in real layouts."""

import json
from pathlib import Path

import numpy as np
from PIL import Image


def save_pair(image: Path, mask: Path, labels: np.ndarray, *, seed: int = 0) -> None:
    """A random picture and a grey mask of indices."""
    for path in (image, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*labels.shape, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(image)
    Image.fromarray(labels.astype(np.uint8)).save(mask)


def painted(labels: np.ndarray, noise: int = 0) -> np.ndarray:
    """(H, W, 3): a picture that shows its own labels, so that a network can learn them."""
    colours = np.array([[40, 60, 200], [200, 60, 40], [60, 200, 40], [230, 230, 60]], np.uint8)
    pixels = colours[np.where(labels == 255, 3, labels) % 4].astype(int)
    return (pixels + np.random.default_rng(noise).integers(-20, 20, pixels.shape)).clip(0, 255).astype(np.uint8)


def squares(seed: int, height: int = 40, width: int = 48, ignored: int | None = None) -> np.ndarray:
    """(H, W) of class 0 with rectangles of classes 1 and 2, and an ignored one."""
    random = np.random.default_rng(seed)
    labels = np.zeros((height, width), np.uint8)
    for value in (1, 2, *([] if ignored is None else [ignored])):
        top, left = random.integers(0, height // 2), random.integers(0, width // 2)
        labels[top : top + height // 3, left : left + width // 3] = value
    return labels


def camvid_tree(root: Path, *, train: int = 8, val: int = 4, ignore: int = 3) -> Path:
    """train/, train_labels/, ... with meta.json, as shared/data unpacks CamVid; classes can be seen."""
    for split, count in (("train", train), ("val", val)):
        for number in range(count):
            labels = squares(number if split == "train" else 100 + number, ignored=ignore)
            for folder in (split, f"{split}_labels"):
                (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(painted(labels, number)).save(root / split / f"{number:03d}.png")
            Image.fromarray(labels).save(root / f"{split}_labels" / f"{number:03d}.png")
    names = ["sky", "road", "car", "void"]
    (root / "meta.json").write_text(json.dumps({"class_names": names, "ignore_index": ignore, "splits": {}}))
    return root
