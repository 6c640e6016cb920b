"""Where a dataset's annotations lie, by the layouts that are in use."""

import re
from collections.abc import Iterator
from pathlib import Path

from visionmlp.data.splits import EVALUATION_NAMES, TRAIN_NAMES, split_names
from visionmlp.errors import DataError
from visionmlp.tasks.detect.annotations import AnnotatedSet, Categories
from visionmlp.tasks.detect.coco import read_coco
from visionmlp.tasks.detect.voc import read_voc

_YEAR = r"(\d{4})?"


def open_set(
    data: str,
    split: str,
    *,
    root: Path | None = None,
    annotations: Path | None = None,
    known: tuple[Categories, str] | None = None,
) -> AnnotatedSet:
    """The images of a split, with their objects.

    Args:
        data: folder; docs/detection.md has the layouts.
        split: ``train``, ``validation`` or ``test``.
        root: where a relative folder starts.
        annotations: a JSON file or a list of VOC's, if not found by the split's name; a relative one starts in the
            folder.
        known: categories that labels are to follow, and where they are from.

    Raises:
        DataError: if it is not there or cannot be used.
    """
    folder = Path(data) if root is None else root / data
    if not folder.is_dir():
        raise DataError(f"no folder {folder}; data names a folder with images and their annotations")
    path = _found(folder, split) if annotations is None else folder / annotations
    if not path.is_file():
        raise DataError(f"no annotation file {path}")
    opened = (
        read_voc(path, folder, known=known)
        if path.suffix == ".txt"
        else read_coco(path, _image_folders(folder, path), known=known)
    )
    opened.require_objects()
    return opened


def annotation_files(folder: Path) -> dict[str, Path]:
    """Of every split that a folder has in one of the layouts, by the file's path in it."""
    paths = [path for name in (*TRAIN_NAMES, *EVALUATION_NAMES) for path in _candidates(folder, name)]
    return {str(path.relative_to(folder)): path for path in paths}


def _found(folder: Path, split: str) -> Path:
    for name in split_names(split):
        found = list(_candidates(folder, name))
        if len(found) > 1:
            paths = " and ".join(str(path.relative_to(folder)) for path in found)
            raise DataError(f"{folder} has {paths}; say which with {_option(split)}")
        if found:
            return found[0]
    names = ", ".join(split_names(split))
    raise DataError(
        f"{folder} has no annotations to {'train on' if split == 'train' else 'evaluate on'}: looked for "
        f"annotations/instances_NAME.json, instances_NAME.json, NAME.json, NAME/_annotations.coco.json and "
        f"ImageSets/Main/NAME.txt with NAME {names}; give {_option(split)}"
    )


def _option(split: str) -> str:
    return "--train-annotations" if split == "train" else "--val-annotations, or --annotations of eval"


def _candidates(folder: Path, name: str) -> Iterator[Path]:
    """The first layout that has something for a name."""
    pattern = re.compile(rf"instances_{name}{_YEAR}\.json")
    for place in (folder / "annotations", folder):
        numbered = sorted(path for path in place.glob(f"instances_{name}*.json") if pattern.fullmatch(path.name))
        if numbered:
            yield from numbered
            return
        if (plain := place / f"{name}.json").is_file():
            yield plain
            return
    for path in (folder / name / "_annotations.coco.json", folder / "ImageSets" / "Main" / f"{name}.txt"):
        if path.is_file():
            yield path
            return


def _image_folders(folder: Path, path: Path) -> list[Path]:
    """Where the images of a JSON file may lie, likeliest first."""
    part = path.stem.removeprefix("instances_")
    places = [folder / part, folder / "images" / part, path.parent, folder, folder / "images", path.parent / part]
    return [place for place in dict.fromkeys(places) if place.is_dir()]
