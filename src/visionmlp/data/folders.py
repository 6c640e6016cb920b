"""Folders of images, one folder a class."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from timm.data import create_dataset

from visionmlp.errors import DataError


class FolderSource:
    """One folder a class. Class names are the folders', in natural order."""

    def __init__(self, folder: Path) -> None:
        try:
            dataset: Any = create_dataset("", root=str(folder), search_split=False)
        except RuntimeError as error:
            raise DataError(f"no images in {folder}; it must hold one sub-folder of images for each class") from error
        reader = dataset.reader
        self.folder = folder
        self.class_names: list[str] = list(reader.class_to_idx)
        self.samples: list[tuple[str, int]] = reader.samples
        folders: dict[str, Path] = {}
        for path in dict.fromkeys(Path(path).parent for path, _ in self.samples):
            if path == folder:
                raise DataError(f"images lie directly in {folder}; move them into one sub-folder for each class")
            # timm names classes by the last folder alone and would merge these
            if (other := folders.setdefault(path.name, path)) != path:
                raise DataError(f"{other} and {path} have the same name but are not one class; rename one of them")

    def __len__(self) -> int:
        return len(self.samples)

    def name(self, index: int) -> str:
        """Path of the file."""
        return self.samples[index][0]

    def label(self, index: int) -> int:
        """Class of the folder."""
        return self.samples[index][1]

    def read(self, index: int) -> Image.Image:
        """Open and decode the file."""
        with Image.open(self.samples[index][0]) as image:
            image.load()
            return image

    def use_classes(self, class_names: Sequence[str]) -> None:
        """Number the classes as elsewhere.

        Raises:
            DataError: naming a class folder that the other numbering lacks.
        """
        strangers = sorted(set(self.class_names) - set(class_names))
        if strangers:
            raise DataError(
                f"{self.folder} has class folder {strangers[0]!r}, which is none of the {len(class_names)} classes "
                f"of the training data ({', '.join(class_names[:3])}, ...); rename or remove it"
            )
        numbers = {name: number for number, name in enumerate(class_names)}
        self.samples = [(path, numbers[self.class_names[label]]) for path, label in self.samples]
        self.class_names = list(class_names)
