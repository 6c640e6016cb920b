"""Datasets with a name: scikit-learn's digits, torchvision's and Hugging Face's, the latter two by timm's names."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from timm.data import create_dataset

from visionmlp.data.splits import TRAIN_NAMES, split_names
from visionmlp.errors import DataError, first_line, require

TORCH_NAMES = ("cifar10", "cifar100", "fashion_mnist", "imagenet", "kmnist", "mnist", "places365", "qmnist")


class DigitsSource:
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
        self.labels = digits.target[self.rows]
        self.class_names = [str(digit) for digit in range(10)]

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        """Row of scikit-learn's table."""
        return f"sklearn/digits[{self.rows[index]}]"

    def label(self, index: int) -> int:
        """The digit."""
        return int(self.labels[index])

    def read(self, index: int) -> Image.Image:
        """8x8 grey image."""
        return Image.fromarray(self.pixels[index])


class TorchSource:
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
        self.data = data
        # ImageNet's classes are tuples of synonyms
        self.class_names = [name if isinstance(name, str) else name[0] for name in self.dataset.classes]

    def __len__(self) -> int:
        return len(self.dataset)

    def name(self, index: int) -> str:
        """Dataset name and index."""
        return f"{self.data}[{index}]"

    def label(self, index: int) -> int:
        """Class number."""
        return int(self.dataset.targets[index])

    def read(self, index: int) -> Image.Image:
        """The dataset's image."""
        return self.dataset[index][0]


class HuggingFaceSource:
    """A dataset of Hugging Face ``datasets``, by timm's reader. Without ``download``, only what is on this machine."""

    def __init__(self, data: str, root: Path | None, split: str, download: bool) -> None:
        require("datasets", extra="hfds")
        dataset: Any = None
        for name in split_names(split):
            try:
                with contextlib.nullcontext() if download else _offline():
                    dataset = create_dataset(data, root=str(root) if root else None, split=name)
                break
            except ValueError as error:
                if "split" not in str(error).lower():
                    raise DataError(f"{data} cannot be opened: {first_line(error)}") from error
            except (OSError, RuntimeError) as error:
                hint = "" if download else "; set download to fetch it"
                raise DataError(f"{data} cannot be opened: {first_line(error)}{hint}") from error
        if dataset is None:
            raise DataError(f"{data} has no split {' or '.join(split_names(split))}")
        self.data, self.reader = data, dataset.reader
        self.targets = [int(target) for target in self.reader.iter_targets()]
        names_by_class = {number: name for name, number in self.reader.class_to_idx.items()}
        count = max(*self.targets, *names_by_class, 0) + 1
        self.class_names = [names_by_class.get(number, str(number)) for number in range(count)]

    def __len__(self) -> int:
        return len(self.targets)

    def name(self, index: int) -> str:
        """Dataset name and index."""
        return f"{self.data}[{index}]"

    def label(self, index: int) -> int:
        """Class number."""
        return self.targets[index]

    def read(self, index: int) -> Image.Image:
        """Decode an image."""
        image = Image.open(self.reader[index][0])
        image.load()
        return image


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Keep Hugging Face's libraries from the network; their switches are read from the environment only once."""
    settings = [
        (require("huggingface_hub.constants", extra="hfds"), "HF_HUB_OFFLINE"),
        (require("datasets.config", extra="hfds"), "HF_HUB_OFFLINE"),
    ]
    before = [vars(module).get(name, False) for module, name in settings]
    for module, name in settings:
        setattr(module, name, True)
    try:
        yield
    finally:
        for (module, name), value in zip(settings, before, strict=True):
            setattr(module, name, value)
