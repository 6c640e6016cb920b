"""Datasets with a name: scikit-learn's digits, torchvision's and Hugging Face's, the latter two by timm's names."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from timm.data import create_dataset
from torchvision.datasets import ImageNet, Places365

from visionmlp.data.hugging_face import open_split
from visionmlp.data.labelled import LabelledImages
from visionmlp.data.splits import TRAIN_NAMES, split_names
from visionmlp.errors import DataError, require

TORCH_NAMES = ("cifar10", "cifar100", "fashion_mnist", "imagenet", "kmnist", "mnist", "places365", "qmnist")


class _PublishedOrder(LabelledImages):
    """Classes that the dataset itself numbers."""

    def outputs_without_names(self, num_classes: int) -> list[str]:
        """The dataset's own numbers, for a model with as many outputs."""
        return self.class_names if len(self.class_names) == num_classes else super().outputs_without_names(num_classes)


class DigitsSource(_PublishedOrder):
    """The 1797 handwritten digits of scikit-learn, 8x8 grey: 1437 to train, 360 held out, stratified.

    The split is fixed: ``train_test_split(test_size=0.2, stratify=labels, random_state=0)``.
    """

    def __init__(self, split: str) -> None:
        datasets = require("sklearn.datasets", extra="digits")
        selection = require("sklearn.model_selection", extra="digits")
        digits = datasets.load_digits()
        parts = selection.train_test_split(
            np.arange(len(digits.target)), test_size=0.2, stratify=digits.target, random_state=0
        )
        self.rows: np.ndarray = np.sort(parts[0 if split in TRAIN_NAMES else 1])
        self.pixels = (digits.images[self.rows] * (255 / 16)).round().astype(np.uint8)
        super().__init__(
            f"sklearn/digits ({split})", digits.target[self.rows].tolist(), [str(digit) for digit in range(10)]
        )

    def name(self, index: int) -> str:
        """Row of scikit-learn's table."""
        return f"sklearn/digits[{self.rows[index]}]"

    def keys(self) -> Iterable[str]:
        """Rows of scikit-learn's table."""
        return map(str, self.rows)

    def read(self, index: int) -> Image.Image:
        """8x8 grey image."""
        return Image.fromarray(self.pixels[index])


class TorchSource(_PublishedOrder):
    """A dataset of torchvision, by timm's name for it."""

    def __init__(self, data: str, root: Path | None, split: str, download: bool) -> None:
        if data.split("/")[1].lower() not in TORCH_NAMES:
            raise DataError(f"unknown dataset {data!r}; torch/ has {', '.join(TORCH_NAMES)}")
        if root is None:
            raise DataError(f"{data} needs data_root, the folder that it lies in")
        try:
            self.dataset: Any = create_dataset(data, root=str(root), split=split, download=download)
        except (RuntimeError, OSError) as error:
            raise DataError(f"{data} is not in {root}, or incomplete; set download to fetch it") from error
        if isinstance(self.dataset, ImageNet | Places365):
            self.dataset.loader = Path  # theirs drops what a file says of orientation, depth and transparency
        self.data = data
        targets = np.asarray(self.dataset.targets)
        super().__init__(
            f"{data} ({split})",
            (targets if targets.ndim == 1 else targets[:, 0]).tolist(),  # QMNIST's classes have more columns
            # ImageNet's classes are tuples of synonyms
            [name if isinstance(name, str) else name[0] for name in self.dataset.classes],
        )

    def name(self, index: int) -> str:
        """Dataset name and index."""
        return f"{self.data}[{index}]"

    def keys(self) -> Iterable[str]:
        """Indices."""
        return map(str, range(len(self)))

    def read(self, index: int) -> Path | Image.Image:
        """The file, or the image of a dataset that has none."""
        return self.dataset[index][0]


class HuggingFaceSource(_PublishedOrder):
    """A dataset of Hugging Face ``datasets``, by timm's reader. Without ``download``, only what is on this machine."""

    def __init__(self, data: str, root: Path | None, split: str, download: bool) -> None:
        require("datasets", extra="hfds")
        dataset, name = open_split(
            data,
            split_names(split),
            lambda name: create_dataset(data, root=str(root) if root else None, split=name),
            download=download,
            hint="set download to fetch it",
        )
        self.data, self.reader = data, dataset.reader
        # a split without classes has -1, or nothing
        labels = [-1 if target is None else int(target) for target in self.reader.iter_targets()]
        names_by_class = {number: name for name, number in self.reader.class_to_idx.items()}
        count = max(*labels, *names_by_class, 0) + 1
        names = [names_by_class.get(number, str(number)) for number in range(count)]
        super().__init__(f"{data} ({name})", labels, names)
        self.named = bool(names_by_class)

    def use_classes(self, class_names: Sequence[str] | None, num_classes: int) -> None:
        """By name, or by number where the dataset has no names."""
        use = super().use_classes if self.named else self.use_numbers
        use(class_names, num_classes)

    def name(self, index: int) -> str:
        """Dataset name and index."""
        return f"{self.data}[{index}]"

    def keys(self) -> Iterable[str]:
        """Indices."""
        return map(str, range(len(self)))

    def read(self, index: int) -> BinaryIO:
        """The encoded image."""
        with self.reader[index][0] as file:
            return io.BytesIO(file.read())
