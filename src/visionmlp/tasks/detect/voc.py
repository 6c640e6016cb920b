"""Annotations in PASCAL VOC's layout: one XML file an image, and lists of images. Boxes only."""

from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

from visionmlp.errors import DataError
from visionmlp.tasks.detect.annotations import (
    FARTHEST,
    AnnotatedImage,
    AnnotatedSet,
    Categories,
    Instance,
    is_degenerate,
    named,
    note,
)

_SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")


def read_voc(path: Path, root: Path, *, known: tuple[Categories, str] | None = None) -> AnnotatedSet:
    """The images of a list such as ``ImageSets/Main/train.txt``, with their objects.

    Categories are the names in the files, in alphabetical order, with ids from 1 on; VOC's own 20 are in this order.
    Objects marked as difficult are neither learnt nor scored. Pixels are counted from 1 in the files, and the last one
    belongs to the box.

    Args:
        path: names of images, one a line.
        root: folder with ``Annotations`` and ``JPEGImages``.
        known: the categories that labels are to follow, and where they are from; None for those in the files.

    Raises:
        DataError: naming the file, and what in it cannot be used.
    """
    try:
        names = [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'it is not UTF-8'}") from error
    if not names:
        raise DataError(f"{path} lists no image")
    twice = [name for name, later in zip(sorted(names), sorted(names)[1:], strict=False) if name == later]
    if twice:
        raise DataError(f"{path} lists {len(twice)} images twice, such as {twice[0]}")
    trees = {name: _tree(root / "Annotations" / f"{name}.xml") for name in names}
    found = sorted({_text(item, "name", name) for name, tree in trees.items() for item in tree.iter("object")})
    if known is None:
        categories = Categories.of(list(enumerate(found, start=1)), str(path))
    else:
        categories, where = known
        unknown = [name for name in found if name not in categories.names]
        if unknown:
            raise DataError(f"{path} has a category {unknown[0]!r} that {where} does not have")
    labels = {name: label for label, name in enumerate(categories.names, start=1)}
    lost: list[int | str] = []
    images = tuple(_image(name, trees[name], root, labels, lost) for name in names)
    missing = [image.name for image in images if not image.path.is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} of the {len(names)} images of {path} are missing in {root / 'JPEGImages'}, "
            f"such as {missing[0]}"
        )
    if lost:
        note(f"{path}: left out {named(lost)} whose boxes have no area in the image")
    return AnnotatedSet(source=path, categories=categories, images=images)


def _tree(path: Path) -> ElementTree.Element:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DataError(f"no annotation {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'it is not UTF-8'}") from error
    if "<!DOCTYPE" in text.upper():
        # where entities are declared, which may name files or grow without end
        raise DataError(f"{path} declares a document type, which VOC's annotations do not have")
    try:
        return ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise DataError(f"{path} is no XML: {error}") from error


def _text(element: ElementTree.Element, name: str, where: str) -> str:
    text = element.findtext(name)
    if not text or not text.strip():
        raise DataError(f"annotation {where}.xml: <{element.tag}> has no <{name}>")
    return text.strip()


def _number(element: ElementTree.Element, name: str, where: str) -> float:
    text = _text(element, name, where)
    try:
        return float(text)
    except ValueError as error:
        raise DataError(f"annotation {where}.xml: <{name}> is {text!r}, no number") from error


def _side(element: ElementTree.Element, name: str, where: str) -> int:
    side = _number(element, name, where)
    if not 1 <= side <= FARTHEST:
        raise DataError(f"annotation {where}.xml: the <{name}> of its <size> is {side:g}; write the image's")
    return round(side)


def _image(
    name: str, tree: ElementTree.Element, root: Path, labels: Mapping[str, int], lost: list[int | str]
) -> AnnotatedImage:
    size_of = tree.find("size")
    if size_of is None:
        raise DataError(f"annotation {name}.xml has no <size>")
    size = _side(size_of, "width", name), _side(size_of, "height", name)
    instances = []
    for place, item in enumerate(tree.iter("object"), start=1):
        bounds = item.find("bndbox")
        if bounds is None:
            raise DataError(f"annotation {name}.xml: object {place} has no <bndbox>")
        left, top, right, bottom = (_number(bounds, side, name) for side in ("xmin", "ymin", "xmax", "ymax"))
        box = (left - 1, top - 1, right - left + 1, bottom - top + 1)
        one = f"{name}#{place}"
        if is_degenerate(box, size):
            lost.append(one)
            continue
        instances.append(
            Instance(
                id=one,
                label=labels[_text(item, "name", name)],
                box=box,
                area=box[2] * box[3],
                crowd=(item.findtext("difficult") or "0").strip() == "1",
            )
        )
    folder = root / "JPEGImages"
    path = next((path for suffix in _SUFFIXES if (path := folder / f"{name}{suffix}").is_file()), None)
    path = path or folder / f"{name}{_SUFFIXES[0]}"
    return AnnotatedImage(id=name, path=path, name=path.name, size=size, instances=tuple(instances))
