"""Images and masks as ``visionmlp check-data`` looks at them."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from visionmlp.data.check import Seen
from visionmlp.data.loading import Reading
from visionmlp.data.policy import BadImage
from visionmlp.tasks.segment.data import MaskedImages, check_masks
from visionmlp.tasks.segment.layouts import Pairs, open_parts


class MaskedSplit:
    """A split with the pixels of each class."""

    counted = "pixels"

    def __init__(self, pairs: Pairs) -> None:
        self.images = MaskedImages(pairs)
        told = pairs.classes.origin != ""
        self.class_names: Sequence[str] | None = pairs.classes.names if told else None

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        """See `visionmlp.data.check.CheckedImages`."""
        return str(self.images.pairs.images[index])

    def look(self, index: int) -> Reading:
        """See `visionmlp.data.check.CheckedImages`."""
        reading = self.images.read(index)
        if isinstance(reading.item, BadImage):
            return reading
        image, labels = reading.item
        counts = np.bincount(labels.ravel(), minlength=256)[: self.images.pairs.classes.count]
        pixels = {number: int(counts[number]) for number in np.flatnonzero(counts).tolist()}
        return reading._replace(item=Seen(image, pixels, hashlib.sha256(labels.tobytes()).hexdigest()))


def splits(folder: Path) -> dict[str, MaskedSplit]:
    """Every split of a folder.

    Raises:
        DataError: for images or masks without a partner, and masks that would be read as something else.
    """
    parts = open_parts(folder)
    for pairs in parts.values():
        check_masks(pairs)
    return {name: MaskedSplit(pairs) for name, pairs in parts.items()}
