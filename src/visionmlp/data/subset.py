"""A part of a dataset: as many images of each class as there is room for."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from visionmlp.data.labelled import LabelledImages


class Subset(LabelledImages):
    """The first images of each class of a source, in its order and under its names.

    Classes get the same number of images, one more where that does not go even, and fewer where they have no more. So a
    subset is a part of every larger one, and the same for any number of processes.

    Args:
        source: all images; its classes stay, some perhaps without an image.
        most: how many to take at most.
    """

    def __init__(self, source: LabelledImages, most: int) -> None:
        self.source = source
        self.class_word = source.class_word
        met: Counter[int] = Counter()
        turns = []
        for index, label in enumerate(source.labels.tolist()):
            turns.append((met[label], label, index))
            met[label] += 1
        self.indices = sorted(index for _, _, index in sorted(turns)[:most])
        super().__init__(source.title, source.labels[self.indices], source.class_names)

    def name(self, index: int) -> str:
        """As in the source."""
        return self.source.name(self.indices[index])

    def read(self, index: int) -> Path | BinaryIO | Image.Image:
        """As in the source."""
        return self.source.read(self.indices[index])

    def keys(self) -> Iterable[str]:
        """As in the source."""
        keys = list(self.source.keys())
        return (keys[index] for index in self.indices)
