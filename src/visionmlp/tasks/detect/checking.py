"""Images and objects as ``visionmlp check-data`` looks at them."""

import hashlib
from collections import Counter
from pathlib import Path

from visionmlp.data.check import Seen
from visionmlp.data.loading import Reading
from visionmlp.data.policy import BadImage
from visionmlp.tasks.detect.annotations import AnnotatedSet
from visionmlp.tasks.detect.dataset import annotation_files, open_set
from visionmlp.tasks.detect.samples import AnnotatedImages


class AnnotatedSplit:
    """A split with the objects of each class, crowds left out."""

    counted = "objects"

    def __init__(self, images: AnnotatedSet) -> None:
        self.images, self.class_names = images.images, images.categories.names
        self.reader = AnnotatedImages(images, mode="RGB", masks=False)

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        """See `visionmlp.data.check.CheckedImages`."""
        return str(self.images[index].path)

    def look(self, index: int) -> Reading:
        """See `visionmlp.data.check.CheckedImages`."""
        annotated = self.images[index]
        item, notes = self.reader.pixels(annotated)
        if isinstance(item, BadImage):
            return Reading(item._replace(name=self.name(index)), notes)
        objects = Counter(one.label - 1 for one in annotated.objects)
        # in any order
        told = sorted((one.label, one.box, one.crowd) for one in annotated.instances)
        return Reading(Seen(item, objects, hashlib.sha256(repr(told).encode()).hexdigest()), notes)


def splits(folder: Path) -> dict[str, AnnotatedSplit]:
    """Every split of a folder, by the name of its annotations; labels of all follow those of the first.

    Raises:
        DataError: for annotations that cannot be used.
    """
    found: dict[str, AnnotatedSplit] = {}
    known = None
    for name, path in annotation_files(folder).items():
        images = open_set(str(folder), name, annotations=path.relative_to(folder), known=known)
        known = known or (images.categories, str(path))
        found[name] = AnnotatedSplit(images)
    return found
