"""Outlines of objects, polygons or run lengths, as compact as files have them; and the masks that they draw.

Masks are drawn by faster-coco-eval, to the pixel as pycocotools draws them. What it is given is checked first, since
its compiled code trusts run lengths.
"""

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionmlp.errors import require

_FARTHEST = 1e5
"""Pixels. The compiled code walks along a polygon's edges outside of the image too, in whole numbers of 32 bits."""

RunLengths = dict[str, Any]
"""COCO's: ``size`` [h, w] and ``counts``, compressed bytes."""


def mask_module() -> Any:
    """faster-coco-eval's ``mask``, with the functions of ``pycocotools.mask``.

    Raises:
        MissingExtra: if it is not installed.
    """
    return require("faster_coco_eval.core.mask", extra="detection")


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Outline:
    """What an object covers of its image."""

    size: tuple[int, int]
    """Width and height of the image."""
    polygons: tuple[NDArray[np.float64], ...] = ()
    """Of each part x, y, x, y, ... in pixels; at least three points."""
    counts: bytes = b""
    """Compressed run lengths, where there are no polygons."""

    def encoded(self) -> RunLengths:
        """As run lengths."""
        width, height = self.size
        if not self.polygons:
            return {"size": [height, width], "counts": self.counts}
        module = mask_module()
        return module.merge(module.frPyObjects([polygon.tolist() for polygon in self.polygons], height, width))

    def mask(self) -> NDArray[np.uint8]:
        """(H, W), 1 on the object."""
        return mask_module().decode(self.encoded())

    def area(self) -> float:
        """Of the mask, in pixels."""
        return float(mask_module().area(self.encoded()))


def encode(mask: NDArray[np.bool_]) -> RunLengths:
    """Run lengths of a mask (H, W)."""
    return mask_module().encode(np.asfortranarray(mask, dtype=np.uint8))


def read_outline(segmentation: Any, size: tuple[int, int]) -> tuple[Outline | None, str | None]:
    """What a COCO file says in ``segmentation``, and what of it cannot be used.

    A part of a polygon needs three points; four numbers, which pycocotools would read as a box, are none.

    Args:
        segmentation: polygons, or run lengths in either form.
        size: width and height of the image.

    Raises:
        MissingExtra: if it has run lengths and faster-coco-eval is not installed.
    """
    if segmentation is None or segmentation in ([], {}):
        return None, None
    if isinstance(segmentation, dict):
        return _run_lengths(segmentation, size)
    if not isinstance(segmentation, list):
        return None, "neither polygons nor run lengths"
    if all(isinstance(value, int | float) for value in segmentation):
        segmentation = [segmentation]  # one part without the list of parts
    good = [np.asarray(part, dtype=np.float64) for part in segmentation if _is_polygon(part)]
    bad = len(segmentation) - len(good)
    problem = (
        f"{bad} of {len(segmentation)} polygons with under three points, or odd or too large numbers" if bad else None
    )
    return (Outline(size, polygons=tuple(good)) if good else None), problem


def _is_polygon(part: Any) -> bool:
    return (
        isinstance(part, list)
        and len(part) >= 6
        and len(part) % 2 == 0
        and all(isinstance(value, int | float) and abs(value) <= _FARTHEST for value in part)
    )


def _run_lengths(segmentation: dict[str, Any], size: tuple[int, int]) -> tuple[Outline | None, str | None]:
    width, height = size
    if segmentation.get("size") != [height, width]:
        return None, f"a mask of size {segmentation.get('size')}, not of the image's {[height, width]}"
    counts = segmentation.get("counts")
    letters = counts.encode(errors="replace") if isinstance(counts, str) else b""
    try:
        lengths = counts if isinstance(counts, list) else _decompressed(letters)
    except ValueError as error:
        return None, f"run lengths that cannot be read: {error}"
    if not all(type(length) is int and length >= 0 for length in lengths):
        return None, "run lengths that are no numbers from 0 on"
    if sum(lengths) != width * height:
        return None, f"run lengths of {sum(lengths)} pixels, not the image's {width * height}"
    if isinstance(counts, list):
        letters = mask_module().frPyObjects(segmentation, height, width)["counts"]
    return Outline(size, counts=letters), None


def _decompressed(letters: bytes) -> list[int]:
    """The lengths of COCO's compressed form: 5 bits a letter, from the fourth on added to the one before the last.

    Raises:
        ValueError: for letters that are none.
    """
    lengths: list[int] = []
    value = shift = 0
    for letter in letters:
        bits = letter - 48
        if not 0 <= bits < 64:
            raise ValueError("they have a letter that is none of theirs")
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            value -= 1 << shift
        lengths.append(value + lengths[-2] if len(lengths) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("they are cut off")
    return lengths
