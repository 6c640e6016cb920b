"""Folders of images. The class is the first level below: ``train/dog/a.png`` and ``train/dog/part1/b.png`` are dogs."""

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from visionmlp.data.files import FoundImages, find_images, most_common
from visionmlp.data.labelled import LabelledImages
from visionmlp.errors import DataError


class _Files(LabelledImages):
    """Images that are files below a folder."""

    folder: Path
    images: list[str]
    """Paths below the folder."""

    def name(self, index: int) -> str:
        """Path of the file."""
        return os.path.join(self.folder, self.images[index])

    def keys(self) -> Iterable[str]:
        """Paths below the folder."""
        return self.images

    def read(self, index: int) -> Path:
        """The file."""
        return Path(self.name(index))


class FolderSource(_Files):
    """One folder a class. Class names are the folders', in natural order.

    Raises:
        DataError: without images, or for images that lie in no class folder.
    """

    class_word = "class folder"

    def __init__(self, folder: Path, found: FoundImages | None = None) -> None:
        found = find_images(folder) if found is None else found
        self.folder, self.images = folder, found.images
        if not self.images:
            raise DataError(f"no images in {folder}; it must hold one sub-folder of images for each class{_but(found)}")
        if any("/" not in image for image in self.images):
            raise DataError(f"images lie directly in {folder}; move them into one sub-folder for each class")
        folders = [image.partition("/")[0] for image in self.images]
        with_images = set(folders)
        self.empty = {name: found.others.get(name, Counter()) for name in found.folders if name not in with_images}
        names = [name for name in found.folders if name in with_images]
        numbers = {name: number for number, name in enumerate(names)}
        super().__init__(str(folder), [numbers[name] for name in folders], names)
        if notes := [*found.notes, *self._deeper()]:
            warnings.warn(f"{folder}: {'; '.join(notes)}", stacklevel=2)

    def _deeper(self) -> list[str]:
        deeper = [image for image in self.images if image.count("/") > 1]
        if not deeper:
            return []
        folder = deeper[0].rpartition("/")[0]
        return [
            f"{len(deeper)} of {len(self)} images lie below their class folder, such as in {folder}, which is of class "
            f"{folder.partition('/')[0]}"
        ]

    def require_full_classes(self) -> None:
        """Refuse class folders without an image, since they would be missing from the numbering.

        Raises:
            DataError: naming the first.
        """
        if self.empty:
            raise DataError(
                f"{self.folder}: no image in class folder {_first(self.empty)}; the classes would be numbered without "
                "it; fill or remove it"
            )

    def warn_of_empty_classes(self) -> None:
        """Name class folders without an image, which are not evaluated."""
        if self.empty:
            warnings.warn(f"{self.folder}: no image in class folder {_first(self.empty)}", stacklevel=2)


class FlatFolder(_Files):
    """Images of unknown class, which lie in one folder; their label is -1."""

    def __init__(self, folder: Path, found: FoundImages) -> None:
        self.folder, self.images = folder, found.images
        super().__init__(str(folder), [-1] * len(found.images), [])
        if found.notes:
            warnings.warn(f"{folder}: {'; '.join(found.notes)}", stacklevel=3)

    def use_classes(self, class_names: Sequence[str] | None, num_classes: int) -> None:
        """Take the model's names; no image has one of its classes."""
        self.class_names = list(class_names or map(str, range(num_classes)))


def open_flat_or_classes(folder: Path) -> LabelledImages:
    """A folder of images, or of class folders.

    Raises:
        DataError: as `FolderSource`, and for a folder that holds both.
    """
    found = find_images(folder)
    if found.images and not any("/" in image for image in found.images):
        return FlatFolder(folder, found)
    return FolderSource(folder, found)


def _first(empty: dict[str, Counter[str]]) -> str:
    name, files = next(iter(empty.items()))
    others = f" and in {len(empty) - 1} more" if len(empty) > 1 else ""
    return f"{name!r}{f' (its files: {most_common(files)})' if files else ''}{others}"


def _but(found: FoundImages) -> str:
    return f" ({'; '.join(found.notes)})" if found.notes else ""
