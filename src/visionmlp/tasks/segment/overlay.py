"""Pictures of masks: colours laid over an image, indices as a palette PNG, and several images with their masks."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from visionmlp.tasks.segment.classes import IGNORE, Colour

_SHARE = 0.55
"""Of the class's colour in a pixel."""
_HEIGHT, _GAP, _LINE = 240, 6, 16
_BACKGROUND = "white"


def overlay(image: Image.Image, labels: np.ndarray, palette: Sequence[Colour]) -> Image.Image:
    """An image with each pixel mixed with the colour of its class; ignored pixels stay as they are.

    Args:
        image: RGB.
        labels: (H, W) class numbers, with `IGNORE`.
        palette: colours of the classes.
    """
    pixels = np.asarray(image.convert("RGB"), np.float32)
    mixed = (1 - _SHARE) * pixels + _SHARE * _table(palette)[labels].astype(np.float32)
    return Image.fromarray(np.where((labels == IGNORE)[..., None], pixels, mixed).round().astype(np.uint8))


def indexed(labels: np.ndarray, palette: Sequence[Colour]) -> Image.Image:
    """Class numbers (H, W) as a palette image: numbers for programs, colours for people; 255 is black."""
    image = Image.fromarray(labels.astype(np.uint8)).convert("L")
    image.putpalette(_table(palette).ravel().tolist())
    return image


class Shown(NamedTuple):
    """An image with its true and its predicted classes (H, W)."""

    image: Image.Image
    labels: np.ndarray
    predicted: np.ndarray


def sheet(rows: Sequence[Shown], names: Sequence[str], palette: Sequence[Colour]) -> Image.Image:
    """Images below each other: as they are, with their labels, with what is predicted; and which colour is which class.

    Args:
        rows: at least one.
        names: of the classes.
        palette: their colours.
    """
    lines = [
        [
            _fitted(shown.image.convert("RGB")),
            _fitted(overlay(shown.image, shown.labels, palette)),
            _fitted(overlay(shown.image, shown.predicted, palette)),
        ]
        for shown in rows
    ]
    width = max(sum(part.width for part in line) + 2 * _GAP for line in lines)
    seen = sorted({int(number) for shown in rows for part in shown[1:] for number in np.unique(part)} - {IGNORE})
    legend = _legend([names[number] for number in seen], [palette[number] for number in seen], width)
    height = sum(line[0].height + _GAP for line in lines) + _LINE + legend.height
    page = Image.new("RGB", (width, height), _BACKGROUND)
    left = 0
    for part, title in zip(lines[0], ("image", "labels", "prediction"), strict=True):
        ImageDraw.Draw(page).text((left + 2, 2), title, fill="black")
        left += part.width + _GAP
    top = _LINE
    for line in lines:
        left = 0
        for part in line:
            page.paste(part, (left, top))
            left += part.width + _GAP
        top += line[0].height + _GAP
    page.paste(legend, (0, top))
    return page


def _legend(names: Sequence[str], palette: Sequence[Colour], width: int) -> Image.Image:
    places: list[tuple[int, int]] = []
    left = top = 0
    # Pillow's own font has Latin letters only
    printed = [name.encode("latin-1", "replace").decode("latin-1") for name in names]
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    for name in printed:
        needed = int(measure.textlength(name)) + 2 * _LINE
        if left and left + needed > width:
            left, top = 0, top + _LINE
        places.append((left, top))
        left += needed
    legend = Image.new("RGB", (width, top + _LINE), _BACKGROUND)
    draw = ImageDraw.Draw(legend)
    for (x, y), name, colour in zip(places, printed, palette, strict=True):
        draw.rectangle((x + 2, y + 3, x + 12, y + 12), fill=colour)
        draw.text((x + _LINE, y + 2), name, fill="black")
    return legend


def _fitted(image: Image.Image) -> Image.Image:
    width = max(1, round(image.width * _HEIGHT / image.height))
    return image.resize((width, _HEIGHT), Image.Resampling.BILINEAR)


def _table(palette: Sequence[Colour]) -> np.ndarray:
    """(256, 3), uint8."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = np.array(palette, np.uint8).reshape(-1, 3)
    return table
