"""What all datasets have in common: the classes of all images are known before one is read."""

import abc
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from visionmlp.data.classes import are_numbers, gap_in_numbers, names_of_outputs, outputs_by_name
from visionmlp.data.summary import DataSummary
from visionmlp.errors import DataError


class LabelledImages(abc.ABC):
    """Images by index, with their class numbers in memory; the base of every `visionmlp.data.ImageSource`.

    Args:
        title: what a message calls the split, such as its folder.
        labels: class numbers.
        class_names: of all classes, in order.
    """

    class_word = "class"

    def __init__(self, title: str, labels: Sequence[int] | np.ndarray, class_names: Sequence[str]) -> None:
        # an array, which loader processes share
        self.labels: np.ndarray = np.asarray(labels, dtype=np.int64)
        self.title, self.class_names = title, list(class_names)

    def __len__(self) -> int:
        return len(self.labels)

    def label(self, index: int) -> int:
        """Class of an image, an index into ``class_names``."""
        return int(self.labels[index])

    @abc.abstractmethod
    def name(self, index: int) -> str:
        """What to call an image in a message."""

    @abc.abstractmethod
    def read(self, index: int) -> Path | BinaryIO | Image.Image:
        """Decode an image; any exception means that it cannot be read."""

    @abc.abstractmethod
    def keys(self) -> Iterable[str]:
        """What tells the images apart wherever the dataset lies, in order."""

    def summary(self) -> DataSummary:
        """What the split holds."""
        return DataSummary.of(self.keys(), self.labels.tolist(), self.class_names)

    def use_classes(self, class_names: Sequence[str] | None, num_classes: int) -> None:
        """Number the classes as a model does, by their names.

        Args:
            class_names: of its outputs, in order; None if they have no names.
            num_classes: how many outputs it has.

        Raises:
            DataError: for labels that are no class, and if it is not certain which output a class is.
        """
        self.check_labels(len(self.class_names))
        if class_names is None:
            if len(self.class_names) > num_classes:
                raise DataError(f"{self.title} has {len(self.class_names)} classes, but the model {num_classes}")
            class_names = self.outputs_without_names(num_classes)
        outputs = outputs_by_name(self.class_names, class_names, f"{self.title} has {self.class_word}")
        self.labels = np.asarray(outputs, dtype=np.int64)[self.labels]
        self.class_names = list(class_names)

    def outputs_without_names(self, num_classes: int) -> list[str]:
        """Names for the outputs of a model that has none.

        Raises:
            DataError: if any numbering would be a guess.
        """
        if (names := names_of_outputs(self.class_names, num_classes)) is not None:
            return names
        numbers = f"0 to {num_classes - 1}"
        if are_numbers(self.class_names) and (gap := gap_in_numbers(self.class_names, num_classes)) is not None:
            numbers += f" ({gap})"
        accepted = f"by ImageNet's synsets (n01440764, ...) or {numbers}" if num_classes == 1000 else numbers
        raise DataError(
            f"{self.title} has {self.class_word} {self.class_names[0]!r}, but the model does not say what its "
            f"{num_classes} outputs are, so the numbering would be a guess; name the classes {accepted}, or save the "
            "model with class_names"
        )

    def use_numbers(self, class_names: Sequence[str] | None, num_classes: int) -> None:
        """`use_classes` of a dataset that knows its classes by number only: they are the outputs' own.

        Raises:
            DataError: for labels that are no output.
        """
        self.check_labels(num_classes)
        self.class_names = list(class_names or map(str, range(num_classes)))

    def check_labels(self, num_classes: int) -> None:
        """Refuse images without a class.

        Raises:
            DataError: for labels outside of [0, num_classes).
        """
        strange = Counter(self.labels[(self.labels < 0) | (self.labels >= num_classes)].tolist())
        if not strange:
            return
        label, count = strange.most_common(1)[0]
        others = f" ({len(strange) - 1} more such labels)" if len(strange) > 1 else ""
        last = f"the last class is {num_classes - 1}"
        reason = "classes start at 0; splits published without classes have -1" if label < 0 else last
        raise DataError(
            f"{self.title}: {count} of {len(self)} images have the label {label}{others}, but {reason}; "
            "take another split or repair it"
        )
