"""Images with their masks, read by position, and in batches."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from visionmlp.data.decode import turn_of
from visionmlp.data.loading import Reading, Sample, read_image
from visionmlp.data.policy import BadImage, ImageNote
from visionmlp.errors import DataError, UnreadableImage
from visionmlp.tasks.segment.classes import IGNORE, Classes
from visionmlp.tasks.segment.layouts import Pairs
from visionmlp.tasks.segment.masks import read_mask, read_stored

_CHECKED = 16
"""Masks that are looked at before a run."""


class Masked(NamedTuple):
    """A decoded image with its mask."""

    image: Image.Image
    labels: np.ndarray
    """(H, W), uint8; `IGNORE` where a pixel does not count."""


class Prepared(NamedTuple):
    """The same behind the transform of training."""

    image: Tensor
    """(C, H, W)."""
    labels: Tensor
    """(H, W), uint8."""


class Viewed(NamedTuple):
    """The same behind that of evaluation."""

    views: tuple[Tensor, ...]
    """The whole image in each of the sizes that the network sees, each (1, C, H, W)."""
    labels: Tensor
    """(H0, W0), uint8, of the image as it was before it was resized."""


class Batch(NamedTuple):
    """Training images (B, C, H, W) and labels (B, H, W), uint8."""

    images: Tensor
    labels: Tensor


class EvaluationBatch(NamedTuple):
    """Images, each of its own size, with their numbers in the split."""

    items: tuple[Viewed, ...]
    numbers: tuple[int, ...]


class MaskedImages:
    """Reads an image with its mask. What is wrong with either is a bad image, by the name of the file.

    Args:
        pairs: where they are.
        exif_orientation: whether images are turned as their EXIF says. A mask belongs to the image as it is then seen.
    """

    def __init__(self, pairs: Pairs, *, exif_orientation: bool = True) -> None:
        self.pairs, self.exif_orientation = pairs, exif_orientation

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, index: int) -> Reading:
        """A `Masked`."""
        path, mask = self.pairs.images[index], self.pairs.masks[index]
        reading = read_image(lambda: path, str(path), "RGB", exif_orientation=self.exif_orientation)
        if isinstance(reading.item, BadImage):
            return reading
        try:
            labels = read_mask(mask, self.pairs.classes, exif_orientation=self.exif_orientation)
        except UnreadableImage as error:
            return Reading(BadImage(str(mask), str(error)))
        image: Image.Image = reading.item
        turned = self.exif_orientation and _is_turned(path)
        if labels.shape != (image.height, image.width):
            text = f"{labels.shape[1]}x{labels.shape[0]} pixels, but its image {path} has {image.width}x{image.height}"
            if turned and labels.shape == (image.width, image.height):
                text += " behind its EXIF orientation; if masks were drawn without it, set exif_orientation to false"
            return Reading(BadImage(str(mask), text))
        notes = reading.notes
        if turned:
            notes = (*notes, ImageNote(str(path), "turned as its EXIF says; its mask must be of the turned image"))
        return Reading(Masked(image, labels), notes)


def _is_turned(path: Path) -> bool:
    with contextlib.suppress(Exception), Image.open(path) as image:
        return turn_of(image) is not None
    return False


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples of one size."""
    items: list[Prepared] = [sample.item for sample in samples]
    return Batch(torch.stack([item.image for item in items]), torch.stack([item.labels for item in items]))


def collate_evaluation(samples: Sequence[Sample]) -> EvaluationBatch:
    """Samples of any sizes."""
    return EvaluationBatch(tuple(sample.item for sample in samples), tuple(sample.key.image for sample in samples))


def check_masks(pairs: Pairs) -> None:
    """Look at some masks for what reads well and means something else.

    Raises:
        DataError: for masks drawn in 0 and 255, or ADE20K's already shifted by one.
    """
    classes = pairs.classes
    chosen = np.unique(np.linspace(0, len(pairs) - 1, _CHECKED).round().astype(int)).tolist()
    counts = np.zeros(256, np.int64)
    for index in chosen:
        try:
            stored = read_stored(pairs.masks[index])
        except UnreadableImage:  # the loader will say so, or skip it
            continue
        if stored.ndim == 2:
            counts += np.bincount(stored.ravel(), minlength=256)
    if not counts.any():
        return
    values = set(np.flatnonzero(counts).tolist())
    share = counts[IGNORE] / counts.sum()
    if IGNORE not in values or IGNORE in classes.values:
        return
    if values <= {0, IGNORE} and classes.count > 1:
        raise DataError(
            f"{pairs.title}: label 255 is the ignore label and covers {share:.0%} of the masks, which have no other "
            f"value{' but 0' * (0 in values)}; did you mean class 1? Then give mask_values 0 255, or write "
            '"values": [0, 255] into classes.json'
        )
    if classes.origin == "ADE20K" and 150 not in values and counts[0]:
        raise DataError(
            f"{pairs.title}: ADE20K's masks hold 0 to 150, but these hold 255, as if they were shifted by one already; "
            "take the original masks, or give mask_values for each of the 150 classes"
        )


def require_same_classes(one: Classes, other: Classes, title: str) -> None:
    """Refuse an evaluation on other classes than the network has.

    Raises:
        DataError: naming the first difference.
    """
    if one.names == other.names:
        return
    if one.count != other.count:
        raise DataError(f"{title} has {other.count} classes, but the network {one.count}")
    number, (own, theirs) = next(
        pair for pair in enumerate(zip(one.names, other.names, strict=True)) if pair[1][0] != pair[1][1]
    )
    raise DataError(f"{title} calls class {number} {theirs!r}, but the network {own!r}")
