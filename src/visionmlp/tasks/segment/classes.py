"""Classes of a segmentation dataset: their names, their colours, and how they stand in its masks.

They come from a small file in the dataset's folder, ``classes.json`` or ``meta.json`` (one object) or CamVid's
``class_dict.csv``, or are known for ADE20K, Cityscapes and CamVid. docs/segmentation.md has the format.
"""

import csv
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from visionmlp.errors import DataError

IGNORE = 255
"""Label of pixels that count neither in the loss nor in the scores."""

Colour = tuple[int, int, int]

CITYSCAPES = {
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "building": (70, 70, 70),
    "wall": (102, 102, 156),
    "fence": (190, 153, 153),
    "pole": (153, 153, 153),
    "traffic light": (250, 170, 30),
    "traffic sign": (220, 220, 0),
    "vegetation": (107, 142, 35),
    "terrain": (152, 251, 152),
    "sky": (70, 130, 180),
    "person": (220, 20, 60),
    "rider": (255, 0, 0),
    "car": (0, 0, 142),
    "truck": (0, 0, 70),
    "bus": (0, 60, 100),
    "train": (0, 80, 100),
    "motorcycle": (0, 0, 230),
    "bicycle": (119, 11, 32),
}
"""The 19 classes that are scored, with their colours, by train id."""
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""The same classes by label id; the others, of 0 to 33, are not scored."""
CAMVID = {
    "Sky": (128, 128, 128),
    "Building": (128, 0, 0),
    "Pole": (192, 192, 128),
    "Road": (128, 64, 128),
    "Pavement": (60, 40, 222),
    "Tree": (128, 128, 0),
    "SignSymbol": (192, 128, 128),
    "Fence": (64, 64, 128),
    "Car": (64, 0, 128),
    "Pedestrian": (64, 64, 0),
    "Bicyclist": (0, 128, 192),
}
"""The 11 classes of SegNet's version, whose label 11 is not scored."""
_FILES = ("classes.json", "meta.json")
_TABLE = "class_dict.csv"
_VOID = {"void", "unlabelled", "unlabeled", "ignore"}
_KEYS = {"class_names", "palette", "ignore_index", "values", "ignore_colors"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classes:
    """What the values or colours of a mask mean."""

    names: tuple[str, ...]
    """By class number."""
    palette: tuple[Colour, ...]
    """Colours (red, green, blue), by class number."""
    values: tuple[int, ...]
    """Value of each class in masks of indices."""
    ignored: frozenset[int] = frozenset()
    """Further values there, of pixels that do not count; 255 is one unless it is a class's."""
    coloured: bool = False
    """Whether the palette is the dataset's own, so that masks may be drawn in its colours."""
    ignored_colours: frozenset[Colour] = frozenset()
    """Further colours there, of pixels that do not count."""
    origin: str = ""
    """Who says all this, for messages."""

    def __post_init__(self) -> None:
        count = len(self.names)
        where = self.origin or "the classes"
        _require(count >= 1, f"{where}: there is no class")
        _require(count <= IGNORE, f"{where}: {count} classes, but masks of 8 bits have room for {IGNORE}")
        _require(len(self.palette) == count, f"{where}: {len(self.palette)} colours for {count} classes")
        _require(len(self.values) == count, f"{where}: {len(self.values)} values for {count} classes")
        _require(len(set(self.names)) == count, f"{where}: two classes have the same name")
        _require(len(set(self.values)) == count, f"{where}: two classes have the same value")
        _require(not self.ignored & set(self.values), f"{where}: a value is both a class's and ignored")
        for what, values in (("values", self.values), ("ignored values", self.ignored)):
            _require(all(0 <= value <= 255 for value in values), f"{where}: {what} must be in 0 to 255")
        if self.coloured:
            _require(len(set(self.palette)) == count, f"{where}: two classes have the same colour")

    @property
    def count(self) -> int:
        """K."""
        return len(self.names)

    def table(self) -> np.ndarray:
        """(256,), int64: class of each value, `IGNORE` for pixels that do not count, -1 for values of no class."""
        table = np.full(256, -1, np.int64)
        table[[*self.ignored, IGNORE]] = IGNORE
        table[list(self.values)] = np.arange(self.count)
        return table

    def admitted(self) -> str:
        """Which values a mask may have, for messages."""
        values = _ranges(self.values)
        ignored = _ranges(sorted({IGNORE, *self.ignored} - set(self.values)))
        return f"{values} for its {self.count} classes" + (
            f", or {ignored} for pixels that do not count" * bool(ignored)
        )


def numbered(count: int) -> Classes:
    """Classes without names: values 0 to ``count`` - 1."""
    names = tuple(f"class {number}" for number in range(count))
    return Classes(names=names, palette=colour_map(count), values=tuple(range(count)))


def cityscapes(*, train_ids: bool) -> Classes:
    """The 19 classes of Cityscapes, in masks of train ids or of label ids."""
    ignored = () if train_ids else set(range(34)) - set(CITYSCAPES_IDS)
    return Classes(
        names=tuple(CITYSCAPES),
        palette=tuple(CITYSCAPES.values()),
        values=tuple(range(19)) if train_ids else CITYSCAPES_IDS,
        ignored=frozenset(ignored),
        origin="Cityscapes",
    )


def camvid() -> Classes:
    """The 11 classes of CamVid as SegNet's authors number them."""
    return Classes(
        names=tuple(CAMVID),
        palette=tuple(CAMVID.values()),
        values=tuple(range(11)),
        ignored=frozenset({11}),
        coloured=True,
        ignored_colours=frozenset({(0, 0, 0)}),
        origin="CamVid",
    )


def ade20k(folder: Path) -> Classes:
    """The 150 classes of ADE20K: value 0 does not count, 1 to 150 are the classes; names from ``objectInfo150.txt``.

    Raises:
        DataError: for a file of other contents.
    """
    path = folder / "objectInfo150.txt"
    names = tuple(f"class {number}" for number in range(150))
    if path.is_file():
        rows = [line.split("\t") for line in _text(path).splitlines() if line.strip()]
        rows = rows if rows and rows[0][0].strip().isdigit() else rows[1:]
        _require(len(rows) == 150, f"{path}: {len(rows)} classes, not 150")
        # behind the first name come synonyms, and some first names are alike
        first = [row[-1].split(",")[0].strip() for row in rows]
        names = tuple(name if first.count(name) == 1 else f"{name} {number}" for number, name in enumerate(first))
    return Classes(
        names=names, palette=colour_map(150), values=tuple(range(1, 151)), ignored=frozenset({0}), origin="ADE20K"
    )


def read_classes(folder: Path) -> Classes | None:
    """The classes that a file in the dataset's folder describes; None if there is no such file.

    Raises:
        DataError: for a file that cannot be used.
    """
    for name in _FILES:
        if (folder / name).is_file():
            return _from_json(folder / name)
    if (folder / _TABLE).is_file():
        return _from_table(folder / _TABLE)
    return None


def with_values(classes: Classes, values: Sequence[int]) -> Classes:
    """The same classes, with other values in the masks.

    Raises:
        DataError: for another number of values, or values that cannot be.
    """
    _require(
        len(values) == classes.count, f"mask_values has {len(values)} values, but there are {classes.count} classes"
    )
    return dataclasses.replace(classes, values=tuple(values), ignored=classes.ignored - set(values))


def colour_map(count: int) -> tuple[Colour, ...]:
    """Colours that are told apart: PASCAL VOC's, whose bits are those of the class number, spread from the top.

    VOC's first, black, is left out, as nobody sees it on a picture.
    """
    colours: list[Colour] = []
    for number in range(1, count + 1):
        channels = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                channels[channel] |= ((number >> (3 * bit + channel)) & 1) << (7 - bit)
        colours.append((channels[0], channels[1], channels[2]))
    return tuple(colours)


def _from_json(path: Path) -> Classes:
    try:
        said = json.loads(_text(path))
    except ValueError as error:
        raise DataError(f"{path} is no JSON: {error}") from error
    _require(isinstance(said, dict) and _is_list(said.get("class_names"), str), f"{path} has no list class_names")
    names: list[str] = said["class_names"]
    ignored = said.get("ignore_index", [])
    ignored = [ignored] if isinstance(ignored, int) else ignored
    _require(_is_list(ignored, int), f"{path}: ignore_index is a value of the masks, or a list of such")
    values = said.get("values", list(range(len(names))))
    _require(
        _is_list(values, int) and len(values) == len(names), f"{path}: values is one number for each of class_names"
    )
    palette = said.get("palette")
    _require(
        palette is None or (isinstance(palette, list) and len(palette) == len(names)),
        f"{path}: palette is one colour for each of class_names",
    )
    others = said.get("ignore_colors", [])
    _require(isinstance(others, list), f"{path}: ignore_colors is a list of colours")
    unknown = sorted(key for key in said if path.name == "classes.json" and key not in _KEYS)
    _require(not unknown, f"{path} has an unknown {', '.join(unknown)}; known are {', '.join(sorted(_KEYS))}")
    colours = _usual_colours(names) if palette is None else tuple(_colour(item, path) for item in palette)
    # a name that belongs to an ignored value is of no class
    kept = [number for number, value in enumerate(values) if value not in ignored]
    left_out = [colours[number] for number in range(len(names)) if number not in kept] if palette is not None else []
    return Classes(
        names=tuple(names[number] for number in kept),
        palette=tuple(colours[number] for number in kept),
        values=tuple(values[number] for number in kept),
        ignored=frozenset(ignored),
        coloured=palette is not None,
        ignored_colours=frozenset([*left_out, *(_colour(item, path) for item in others)]),
        origin=str(path),
    )


def _usual_colours(names: Sequence[str]) -> tuple[Colour, ...]:
    """CamVid's or Cityscapes', where all classes but one that is not scored are theirs."""
    for known in (CAMVID, CITYSCAPES):
        if len(set(names) & known.keys()) >= max(2, len(names) - 1):
            return tuple(known.get(name, (0, 0, 0)) for name in names)
    return colour_map(len(names))


def _from_table(path: Path) -> Classes:
    """Columns name, r, g, b; rows named Void or Unlabelled are of no class."""
    rows: list[Mapping[str, Any]] = list(csv.DictReader(_text(path).splitlines()))
    try:
        listed = [(str(row["name"]).strip(), _colour([int(row[key]) for key in "rgb"], path)) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} must have the columns name, r, g, b with a class in each row") from error
    kept = [(number, name, colour) for number, (name, colour) in enumerate(listed) if name.lower() not in _VOID]
    void = [(number, colour) for number, (name, colour) in enumerate(listed) if name.lower() in _VOID]
    return Classes(
        names=tuple(name for _, name, _ in kept),
        palette=tuple(colour for _, _, colour in kept),
        values=tuple(number for number, _, _ in kept),
        ignored=frozenset(number for number, _ in void),
        coloured=True,
        ignored_colours=frozenset(colour for _, colour in void),
        origin=str(path),
    )


def _colour(value: Any, path: Path) -> Colour:
    good = _is_list(value, int) and len(value) == 3 and all(0 <= part <= 255 for part in value)
    _require(good, f"{path}: a colour is [red, green, blue] of 0 to 255, got {value!r}")
    return (value[0], value[1], value[2])


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # as spreadsheets write it
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(type(item) is kind for item in value)


def _ranges(values: Sequence[int]) -> str:
    """Such as ``0 to 10, 12``."""
    parts: list[list[int]] = []
    for value in sorted(values):
        if parts and value == parts[-1][1] + 1:
            parts[-1][1] = value
        else:
            parts.append([value, value])
    return ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in parts)


def _require(rule: bool, message: str) -> None:
    if not rule:
        raise DataError(message)
