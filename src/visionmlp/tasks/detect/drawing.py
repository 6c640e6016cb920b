"""Pictures of images with boxes, masks, names and scores, by Pillow."""

import colorsys
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from visionmlp.errors import RunFolderError
from visionmlp.files import whole_file
from visionmlp.tasks.detect.annotations import AnnotatedImage, Categories
from visionmlp.tasks.detect.metrics import Detections
from visionmlp.tasks.detect.outlines import RunLengths, mask_module

_OPACITY = 0.45
"""Of masks."""
_GAP = 6
"""Between the pictures of a sheet, in pixels."""
_GOLDEN = (math.sqrt(5) - 1) / 2


class Shown(NamedTuple):
    """An object to draw."""

    box: tuple[float, float, float, float]
    """x and y of two corners, in pixels of the image."""
    label: int
    text: str
    mask: RunLengths | None = None


def found_objects(detections: Detections, categories: Categories) -> list[Shown]:
    """Detections, the best last, so that it lies on top."""
    shown = []
    for place, label in enumerate(detections.labels.tolist()):
        x, y, right, bottom = detections.boxes[place].tolist()
        mask = None if detections.masks is None else detections.masks[place]
        text = f"{categories.names[label - 1]} {detections.scores[place]:.2f}"
        shown.append(Shown((x, y, right, bottom), label, text, mask))
    return shown[::-1]


def true_objects(image: AnnotatedImage, categories: Categories, *, masks: bool) -> list[Shown]:
    """What the annotations say."""
    shown = []
    for one in image.objects:
        x, y, width, height = one.box
        mask = one.outline.encoded() if masks and one.outline is not None else None
        shown.append(Shown((x, y, x + width, y + height), one.label, categories.names[one.label - 1], mask))
    return shown


def colour_of(label: int) -> tuple[int, int, int]:
    """One of a class; neighbouring labels differ much."""
    hue = label * _GOLDEN % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85 if label % 2 else 0.6, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def drawn(image: Image.Image, objects: Sequence[Shown], *, largest: int | None = None) -> Image.Image:
    """A copy with the objects on it.

    Args:
        image: decoded; its pixels are those that boxes and masks refer to.
        objects: the last one lies on top.
        largest: side that the copy is shrunk to before lines and text are drawn, so that these stay readable.
    """
    pixels = np.asarray(image.convert("RGB")).copy()
    for shown in objects:
        if shown.mask is not None:
            inside = mask_module().decode(shown.mask).astype(bool)
            colour = np.array(colour_of(shown.label))
            pixels[inside] = ((1 - _OPACITY) * pixels[inside] + _OPACITY * colour).astype(np.uint8)
    copy = Image.fromarray(pixels)
    scale = min(1.0, (largest or max(copy.size)) / max(copy.size))
    if scale < 1:
        copy = copy.resize((max(1, round(copy.width * scale)), max(1, round(copy.height * scale))))
    draw = ImageDraw.Draw(copy)
    line = max(1, round(max(copy.size) / 320))
    font = ImageFont.load_default(size=max(10, round(max(copy.size) / 45)))
    for shown in objects:
        left, top, right, bottom = (scale * value for value in shown.box)
        colour = colour_of(shown.label)
        draw.rectangle((left, top, max(left, right), max(top, bottom)), outline=colour, width=line)
        text = shown.text.encode("latin-1", errors="replace").decode("latin-1")  # what Pillow's own font has
        _, _, wide, high = draw.textbbox((0, 0), text, font=font)
        x = min(max(0.0, left), max(0.0, copy.width - wide - 2))
        y = top - high - 2 if top >= high + 2 else max(0.0, top)
        draw.rectangle((x, y, x + wide + 2, y + high + 2), fill=colour)
        draw.text((x + 1, y), text, fill="black", font=font)
    return copy


def sheet(pictures: Sequence[Image.Image], *, columns: int) -> Image.Image:
    """Pictures in rows, side by side, on white; a row is as high as its highest."""
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    wide = max(picture.width for picture in pictures)
    heights = [max(picture.height for picture in row) for row in rows]
    size = columns * (wide + _GAP) - _GAP, sum(heights) + _GAP * (len(rows) - 1)
    whole = Image.new("RGB", size, "white")
    top = 0
    for row, height in zip(rows, heights, strict=True):
        for place, picture in enumerate(row):
            whole.paste(picture, (place * (wide + _GAP), top))
        top += height + _GAP
    return whole


def save_picture(image: Image.Image, path: Path) -> Path:
    """Write a picture as PNG, whole or not at all.

    Raises:
        RunFolderError: if it cannot be written.
    """
    with whole_file(path, RunFolderError) as partial:
        image.save(partial, format="PNG")
    return path
