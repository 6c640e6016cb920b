"""Annotations in COCO's JSON."""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from visionmlp.errors import DataError
from visionmlp.tasks.detect.annotations import (
    FARTHEST,
    AnnotatedImage,
    AnnotatedSet,
    Categories,
    ImageId,
    Instance,
    is_degenerate,
    named,
    note,
)
from visionmlp.tasks.detect.outlines import read_outline


def read_coco(path: Path, folders: Sequence[Path], *, known: tuple[Categories, str] | None = None) -> AnnotatedSet:
    """The images of a JSON file, in its order, with their objects.

    Boxes without area and outlines that cannot be drawn are dropped; a note has their number and ids.

    Args:
        path: the file.
        folders: where its images may lie; all lie in the first that has one of them.
        known: the categories that labels are to follow, and where they are from; None for the file's own.

    Raises:
        DataError: naming the file, and what in it cannot be used.
    """
    content = _read(path)
    own = Categories.of(_categories(content["categories"], path), str(path))
    if known is not None:
        known[0].require_same(own, str(path), known[1])
    categories = own if known is None else known[0]
    images = _images(content["images"], path)
    folder = _folder(path, [image["file_name"] for image in images.values()], folders)
    sizes = {one: _size(image, folder) for one, image in images.items()}
    instances = _instances(content["annotations"], path, categories.labels(), sizes)
    return AnnotatedSet(
        source=path,
        categories=categories,
        images=tuple(
            AnnotatedImage(
                id=one,
                path=folder / image["file_name"],
                name=image["file_name"],
                size=sizes[one],
                instances=tuple(instances.get(one, ())),
            )
            for one, image in images.items()
        ),
    )


def _read(path: Path) -> dict[str, list[Any]]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no JSON: {error}") from error
    for name in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise DataError(f"{path} is not COCO's JSON of objects: it has no list {name!r}")
        if not all(isinstance(entry, dict) for entry in content[name]):
            raise DataError(f"{path}: an entry of {name!r} is no object")
    return content


def _categories(entries: Sequence[Mapping[str, Any]], path: Path) -> list[tuple[int, str]]:
    for entry in entries:
        if type(entry.get("id")) is not int or not isinstance(entry.get("name"), str):
            raise DataError(f"{path}: a category needs a whole number as id and a name, got {dict(entry)}")
    return [(entry["id"], entry["name"]) for entry in entries]


def _images(entries: Sequence[Mapping[str, Any]], path: Path) -> dict[ImageId, Mapping[str, Any]]:
    if not entries:
        raise DataError(f"{path} lists no image")
    for entry in entries:
        if type(entry.get("id")) not in (int, str) or not isinstance(entry.get("file_name"), str):
            raise DataError(f"{path}: an image needs an id and a file_name, got {dict(entry)}")
    for key in ("id", "file_name"):
        twice = [value for value, count in Counter(entry[key] for entry in entries).items() if count > 1]
        if twice:
            raise DataError(f"{path} lists {len(twice)} images twice, such as {key} {twice[0]!r}")
    return {entry["id"]: entry for entry in entries}


def _folder(path: Path, names: Sequence[str], folders: Sequence[Path]) -> Path:
    """The first folder that has the first image, or else any; it must have all."""
    for name in (names[0], *names[1:]):
        folder = next((folder for folder in folders if (folder / name).is_file()), None)
        if folder is not None:
            break
    else:
        looked = ", ".join(str(folder) for folder in folders)
        raise DataError(f"none of the {len(names)} images of {path} is there, such as {names[0]}; looked in {looked}")
    missing = [name for name in names if not os.path.isfile(folder / name)]
    if missing:
        raise DataError(
            f"{len(missing)} of the {len(names)} images of {path} are missing in {folder}, such as {missing[0]}"
        )
    return folder


def _size(image: Mapping[str, Any], folder: Path) -> tuple[int, int]:
    size = image.get("width"), image.get("height")
    if all(type(side) is int and side > 0 for side in size):
        return size  # type: ignore[return-value] (checked)
    try:
        with Image.open(folder / image["file_name"]) as opened:
            return opened.size
    except Exception as error:  # as decoders do
        name = folder / image["file_name"]
        raise DataError(f"the JSON does not say the size of {name}, and it cannot be read") from error


def _is_key(value: Any) -> bool:
    return isinstance(value, int | float | str)


def _instances(
    entries: Sequence[Mapping[str, Any]],
    path: Path,
    labels: Mapping[int, int],
    sizes: Mapping[ImageId, tuple[int, int]],
) -> dict[ImageId, list[Instance]]:
    found: dict[ImageId, list[Instance]] = defaultdict(list)
    lost: dict[str, list[ImageId]] = defaultdict(list)
    for place, entry in enumerate(entries):
        one: ImageId = entry.get("id", place)
        image: Any = entry.get("image_id")
        category: Any = entry.get("category_id")
        box = entry.get("bbox")
        if not _is_key(category) or category not in labels:
            raise DataError(f"{path}: annotation {one} has category_id {category!r}, which is none of its categories")
        if not _is_key(image) or image not in sizes:
            lost["of images that the file does not list"].append(one)
            continue
        if not isinstance(box, list) or len(box) != 4 or not all(isinstance(value, int | float) for value in box):
            raise DataError(f"{path}: annotation {one} needs bbox [x, y, width, height], got {box!r}")
        if is_degenerate(box, sizes[image]):
            lost["whose boxes have no area in the image"].append(one)
            continue
        outline, problem = read_outline(entry.get("segmentation"), sizes[image])
        if problem is not None:
            lost[f"with {problem}; {'the rest is used' if outline else 'used without an outline'}"].append(one)
        area = entry.get("area")
        if not isinstance(area, int | float) or not 0 <= area <= FARTHEST**2:
            area = box[2] * box[3] if outline is None else outline.area()
        crowd: Any = entry.get("iscrowd") or 0
        if crowd not in (0, 1):
            raise DataError(f"{path}: annotation {one} has iscrowd {crowd!r}; it is 0 or 1")
        found[image].append(
            Instance(
                id=one,
                label=labels[category],
                box=tuple(map(float, box)),  # type: ignore[arg-type] (four)
                area=float(area),
                crowd=bool(crowd),
                outline=outline,
            )
        )
    for why, ids in lost.items():
        fate = "" if why.endswith(("used", "outline")) else "left out "
        note(f"{path}: {fate}{named(ids)} {why}")
    return found
