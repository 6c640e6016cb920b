"""Where the images and masks of a dataset lie: ADE20K, Cityscapes, CamVid, and pairs of folders in general.

docs/segmentation.md draws the layouts. An image and its mask have the same name but for the suffix, and for an ending
of the mask such as ``_mask``.
"""

import dataclasses
import hashlib
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from visionmlp.data.files import find_images, image_suffixes, natural_key
from visionmlp.data.splits import EVALUATION_NAMES, TRAIN_NAMES, split_names
from visionmlp.errors import DataError
from visionmlp.tasks.segment.classes import (
    IGNORE,
    Classes,
    ade20k,
    camvid,
    cityscapes,
    numbered,
    read_classes,
    with_values,
)

IMAGE_FOLDERS = ("images", "imgs", "img", "JPEGImages", "image")
MASK_FOLDERS = ("masks", "annotations", "labels", "mask", "SegmentationClass", "label")
_LABEL_ENDINGS = ("_labels", "annot", "_masks", "_mask", "_annotations", "_label")
"""Of a split's folder of masks beside that of its images."""
_NAME_ENDINGS = ("", "_L", "_mask", "_label", "_labels", "_gt", "_segmentation")
"""Of a mask's name behind that of its image."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs:
    """Images and masks of one split."""

    title: str
    """The dataset and its split, for messages."""
    images: Sequence[Path]
    masks: Sequence[Path]
    """As many."""
    keys: Sequence[str]
    """Names of the images, the same wherever the dataset lies."""
    classes: Classes

    def __len__(self) -> int:
        return len(self.images)

    def first(self, most: int | None) -> "Pairs":
        """The first ones only."""
        return dataclasses.replace(self, images=self.images[:most], masks=self.masks[:most], keys=self.keys[:most])

    def summary(self) -> dict[str, Any]:
        """What a resumed run must find as it was; plain JSON."""
        digest = hashlib.sha256()
        for key, mask in zip(self.keys, self.masks, strict=True):
            digest.update(f"{key}\0{mask.name}\0".encode(errors="surrogateescape"))
        classes = self.classes
        return {
            "images": len(self),
            "class_names": list(classes.names),
            "values": list(classes.values),
            "digest": digest.hexdigest(),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentData:
    """What a run is trained and evaluated on: `visionmlp.engine.run_folder.DataRecord`."""

    training: Pairs
    evaluation: Pairs

    def to_plain(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"training": self.training.summary(), "evaluation": self.evaluation.summary()}

    def change_since(self, before: Mapping[str, Any]) -> str | None:
        """What is different from an earlier `to_plain`, in one clause; None if nothing is."""
        texts = {
            "class_names": "the classes have other names",
            "values": "the classes have other values in the masks",
            "images": "there are {} images, and were {}",
            "digest": "the images or masks have other names",
        }
        for part, now in self.to_plain().items():
            for key, text in texts.items():
                if before[part][key] != now[key]:
                    return f"{part} data: {text.format(now[key], before[part][key])}"
        return None


def open_pairs(
    data: str | Path, split: str, *, num_classes: int | None = None, mask_values: Sequence[int] | None = None
) -> Pairs:
    """The images and masks of a split.

    Args:
        data: folder of the dataset.
        split: ``train``, ``validation`` or ``test``; a dataset without one of this name may have it by another, see
            `visionmlp.data.splits`.
        num_classes: for a dataset that says nothing of its classes.
        mask_values: value of each class in the masks, in place of what the dataset says.

    Raises:
        DataError: for a folder of no known layout, an image or mask without its partner, or classes nobody knows.
    """
    folder = Path(data)
    if not folder.is_dir():
        raise DataError(f"no folder {folder}; --data takes a folder with images and masks")
    found = _cityscapes(folder, split) if is_cityscapes(folder) else _two_folders(folder, split_names(split))
    classes = _classes(folder, found, num_classes)
    if mask_values is not None:
        classes = with_values(classes, mask_values)
    return dataclasses.replace(found, classes=classes)


def part_names(folder: Path) -> list[str]:
    """Names of the splits that a folder has in one of the layouts."""
    if is_cityscapes(folder):
        return [name for name in ("train", "val") if (folder / "leftImg8bit" / name).is_dir()]
    places = {name: _place(folder, name) for name in (*TRAIN_NAMES, *EVALUATION_NAMES)}
    # a folder of labels may hold text
    return [name for name, place in places.items() if place is not None and all(map(_has_images, place))]


def _has_images(folder: Path) -> bool:
    suffixes = tuple(image_suffixes())
    return any(name.lower().endswith(suffixes) for _, _, names in os.walk(folder) for name in names)


def open_parts(folder: Path) -> dict[str, Pairs]:
    """Every split of a folder by its own name; where nothing tells the classes, masks may hold any value.

    Raises:
        DataError: as `open_pairs`.
    """
    parts = {}
    for name in part_names(folder):
        found = _cityscapes(folder, name) if is_cityscapes(folder) else _two_folders(folder, [name])
        told = found.classes is not _UNKNOWN or read_classes(folder) is not None
        parts[name] = dataclasses.replace(found, classes=_classes(folder, found, None if told else IGNORE))
    return parts


def _classes(folder: Path, found: Pairs, num_classes: int | None) -> Classes:
    classes = read_classes(folder) or (found.classes if found.classes is not _UNKNOWN else None)
    if classes is None:
        if num_classes is None:
            raise DataError(
                f"nothing says which classes the masks of {folder} have; write their names into "
                f'{folder / "classes.json"}, as {{"class_names": [...]}}, or give num_classes'
            )
        return numbered(num_classes)
    if num_classes is not None and num_classes != classes.count:
        raise DataError(
            f"{classes.origin} has {classes.count} classes, not {num_classes}; leave num_classes out, or take a "
            "network of these classes"
        )
    return classes


_UNKNOWN = numbered(1)
"""Stands for classes that the layout does not tell."""


# ---- Cityscapes


def is_cityscapes(folder: Path) -> bool:
    """Whether a folder is laid out as Cityscapes is."""
    return (folder / "leftImg8bit").is_dir()


def _cityscapes(folder: Path, split: str) -> Pairs:
    if split == "test":
        raise DataError(
            "the test masks of Cityscapes are dummies, so scores on them mean nothing; take the validation split, or "
            "predict the test images"
        )
    name = "train" if split in TRAIN_NAMES else "val"
    images_folder, masks_folder = folder / "leftImg8bit" / name, folder / "gtFine" / name
    for part in (images_folder, masks_folder):
        if not part.is_dir():
            raise DataError(f"{folder} is Cityscapes by its leftImg8bit, but has no folder {part}")
    keys = [key for key in find_images(images_folder).images if key.rpartition(".")[0].endswith("_leftImg8bit")]
    if not keys:
        raise DataError(f"no image CITY/..._leftImg8bit.png in {images_folder}")
    stems = [key.rpartition("_leftImg8bit")[0] for key in keys]
    paths = {
        kind: [masks_folder / f"{stem}_gtFine_{kind}.png" for stem in stems] for kind in ("labelTrainIds", "labelIds")
    }
    # one kind for all: where both are there, they say the same
    kind = "labelTrainIds" if all(path.is_file() for path in paths["labelTrainIds"]) else "labelIds"
    for key, mask in zip(keys, paths[kind], strict=True):
        if not mask.is_file():
            raise DataError(
                f"image {images_folder / key} has no mask; it should be {mask}, or ..._gtFine_labelTrainIds.png for "
                "all images"
            )
    return Pairs(
        title=f"{folder} ({name})",
        images=[images_folder / key for key in keys],
        masks=paths[kind],
        keys=keys,
        classes=cityscapes(train_ids=kind == "labelTrainIds"),
    )


# ---- two folders


def _two_folders(folder: Path, names: Sequence[str]) -> Pairs:
    """Folders of images and masks that mirror each other, of the first of the names that has them."""
    for name in names:
        if (place := _place(folder, name)) is not None:
            return _mirrored(folder, *place, name)
    raise DataError(
        f"{folder} has no images and masks of split {' or '.join(names)}; it should hold images/{names[0]} and "
        f"masks/{names[0]}, or {names[0]}/images and {names[0]}/masks, or {names[0]} and {names[0]}_labels"
    )


def _place(folder: Path, name: str) -> tuple[Path, Path] | None:
    """Where the images and the masks of a split lie."""
    return next((place for place in _places(folder, name) if all(part.is_dir() for part in place)), None)


def _places(folder: Path, name: str) -> list[tuple[Path, Path]]:
    """Where the images and the masks of a split may lie."""
    places = [(folder / name, folder / f"{name}{ending}") for ending in _LABEL_ENDINGS]
    for images in IMAGE_FOLDERS:
        for masks in MASK_FOLDERS:
            places += [(folder / images / name, folder / masks / name), (folder / name / images, folder / name / masks)]
    return places


def _mirrored(folder: Path, images_folder: Path, masks_folder: Path, name: str) -> Pairs:
    found, masked = find_images(images_folder), find_images(masks_folder)
    for place, here in ((images_folder, found), (masks_folder, masked)):
        if here.notes:
            warnings.warn(f"{place}: {'; '.join(here.notes)}", stacklevel=2)
    if not found.images:
        raise DataError(f"no images in {images_folder}")
    by_stem = {_stem(key): key for key in masked.images}
    for stems, place in (([_stem(key) for key in found.images], images_folder), (by_stem, masks_folder)):
        if len(set(stems)) < len(found.images if place == images_folder else masked.images):
            raise DataError(f"two files in {place} differ in their suffix only; keep one of them")
    masks = []
    for key in found.images:
        names = [by_stem[_stem(key) + ending] for ending in _NAME_ENDINGS if _stem(key) + ending in by_stem]
        if not names:
            raise DataError(
                f"image {images_folder / key} has no mask; it should be {masks_folder / (_stem(key) + '.png')}"
            )
        masks.append(names[0])
    lonely = sorted(set(masked.images) - set(masks), key=natural_key)
    if lonely:
        raise DataError(
            f"mask {masks_folder / lonely[0]} has no image in {images_folder} ({len(lonely)} such masks); remove them, "
            "or add the images"
        )
    return Pairs(
        title=f"{folder} ({name})",
        images=[images_folder / key for key in found.images],
        masks=[masks_folder / key for key in masks],
        keys=found.images,
        classes=_known(folder, found.images, masks_folder),
    )


def _known(folder: Path, images: Sequence[str], masks_folder: Path) -> Classes:
    """Classes of datasets that are known by their layout."""
    if (folder / "objectInfo150.txt").is_file() or all(key.startswith("ADE_") for key in images):
        return ade20k(folder)
    if masks_folder.name in {f"{name}annot" for name in (*TRAIN_NAMES, *EVALUATION_NAMES)}:
        return camvid()
    return _UNKNOWN


def _stem(key: str) -> str:
    return key.rpartition(".")[0]
