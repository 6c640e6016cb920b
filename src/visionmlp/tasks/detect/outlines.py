"""Outlines of objects, polygons or run lengths, as compact as files have them; and the masks that they draw.

Masks are drawn by faster-coco-eval, to the pixel as pycocotools draws them.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionmlp.errors import require


def mask_module() -> Any:
    """faster-coco-eval's ``mask``, with the functions of ``pycocotools.mask``.

    Raises:
        MissingExtra: if it is not installed.
    """
    return require("faster_coco_eval.core.mask", extra="detection")


@dataclasses.dataclass(frozen=True, slots=True)
class Outline:
    """What an object covers of its image."""

    size: tuple[int, int]
    """Width and height of the image."""
    polygons: tuple[NDArray[np.float64], ...] = ()
    """Of each part x, y, x, y, ... in pixels; at least three points."""
    counts: bytes = b""
    """Run lengths in COCO's compressed form, where there are no polygons."""

    def encoded(self) -> dict[str, Any]:
        """As ``{"size": [h, w], "counts": bytes}``.

        Raises:
            MissingExtra: if polygons are to be drawn and nothing is installed that can.
        """
        width, height = self.size
        if not self.polygons:
            return {"size": [height, width], "counts": self.counts}
        module = mask_module()
        return module.merge(module.frPyObjects([polygon.tolist() for polygon in self.polygons], height, width))

    def mask(self) -> NDArray[np.uint8]:
        """(H, W), 1 on the object.

        Raises:
            MissingExtra: if polygons are to be drawn and nothing is installed that can.
        """
        return decode(self.encoded())

    def area(self) -> float:
        """Of the mask, in pixels."""
        return float(sum(decode_counts(self.encoded()["counts"])[1::2]))


def decode(encoded: dict[str, Any]) -> NDArray[np.uint8]:
    """The mask (H, W) of run lengths, which go down the columns."""
    height, width = encoded["size"]
    counts = decode_counts(encoded["counts"])
    values = np.arange(len(counts), dtype=np.uint8) % 2
    return np.repeat(values, counts).reshape(width, height).T


def encode(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Run lengths of a mask (H, W)."""
    flat = mask.T.reshape(-1)
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    if flat.size and flat[0]:
        counts = [0, *counts]
    return {"size": list(mask.shape), "counts": encode_counts(counts)}


def encode_counts(counts: Sequence[int]) -> bytes:
    """COCO's compressed form: from the fourth on differences to the one before the last, 5 bits a letter."""
    letters = bytearray()
    for place, count in enumerate(counts):
        value = count - counts[place - 2] if place > 2 else count
        more = True
        while more:
            bits = value & 0x1F
            value >>= 5
            more = value != -1 if bits & 0x10 else value != 0
            letters.append((bits | 0x20 if more else bits) + 48)
    return bytes(letters)


def decode_counts(letters: bytes) -> list[int]:
    """The inverse of `encode_counts`.

    Raises:
        ValueError: for letters that are no run lengths.
    """
    counts: list[int] = []
    value = shift = 0
    for letter in letters:
        bits = letter - 48
        if not 0 <= bits < 64:
            raise ValueError("a letter that does not belong there")
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            value -= 1 << shift
        if len(counts) > 2:
            value += counts[-2]
        if value < 0:
            raise ValueError("a negative run length")
        counts.append(value)
        value = shift = 0
    if shift:
        raise ValueError("it is cut off")
    return counts


def read_outline(segmentation: Any, size: tuple[int, int]) -> tuple[Outline | None, str | None]:
    """What a COCO file says in ``segmentation``, and what of it cannot be used.

    A part of a polygon needs three points; four numbers, which pycocotools would read as a box, are none.

    Args:
        segmentation: polygons, or run lengths in either form.
        size: width and height of the image.
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
    problem = f"{bad} of {len(segmentation)} polygons with under three points or odd numbers" if bad else None
    return (Outline(size, polygons=tuple(good)) if good else None), problem


def _is_polygon(part: Any) -> bool:
    return (
        isinstance(part, list)
        and len(part) >= 6
        and len(part) % 2 == 0
        and all(isinstance(value, int | float) and math.isfinite(value) for value in part)
    )


def _run_lengths(segmentation: dict[str, Any], size: tuple[int, int]) -> tuple[Outline | None, str | None]:
    width, height = size
    if segmentation.get("size") != [height, width]:
        return None, f"a mask of size {segmentation.get('size')}, not of the image's {[height, width]}"
    given = segmentation.get("counts")
    try:
        if isinstance(given, list):
            counts = given
            if not all(type(count) is int and count >= 0 for count in counts):
                raise ValueError("run lengths that are no numbers")
            letters = encode_counts(counts)
        else:
            letters = given.encode("ascii") if isinstance(given, str) else b""
            counts = decode_counts(letters)
    except ValueError as error:
        return None, f"run lengths that cannot be read: {error}"
    if sum(counts) != width * height:
        return None, f"run lengths of {sum(counts)} pixels, not the image's {width * height}"
    return Outline(size, counts=letters), None
