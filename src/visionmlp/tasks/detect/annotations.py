"""Objects of images as every format gives them: boxes, classes, and outlines that are drawn when they are needed."""

import dataclasses
import hashlib
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from visionmlp.errors import DataError, Note
from visionmlp.tasks.detect.outlines import Outline

ImageId = int | str
"""As the dataset has it: COCO's numbers, VOC's names."""

FARTHEST = 1e9
"""Pixels; no image has such coordinates."""

_NAMED = 5
"""Annotations that a message names."""


@dataclasses.dataclass(frozen=True)
class Categories:
    """Classes of objects in the order of the network's labels, which begin with 1: 0 is the background."""

    names: tuple[str, ...]
    ids: tuple[int, ...]
    """In the dataset's files; COCO's 80 have gaps."""

    @classmethod
    def of(cls, pairs: Iterable[tuple[int, str]], where: str) -> "Categories":
        """From ids and names in any order: ascending ids, as detectron2 has them.

        Raises:
            DataError: for none, or an id or a name that is there twice.
        """
        found = sorted(pairs)
        if not found:
            raise DataError(f"{where} has no categories")
        for kind, values in (("id", [one for one, _ in found]), ("name", [name for _, name in found])):
            twice = [value for value, count in Counter(values).items() if count > 1]
            if twice:
                raise DataError(f"{where} has two categories of {kind} {twice[0]!r}; rename or merge them")
        return cls(names=tuple(name for _, name in found), ids=tuple(one for one, _ in found))

    def labels(self) -> dict[int, int]:
        """From an id to the network's label, 1 to K."""
        return {one: label for label, one in enumerate(self.ids, start=1)}

    def require_same(self, other: "Categories", where: str, theirs: str) -> None:
        """Check the categories of another file, which may have fewer, in any order.

        Args:
            other: of the file.
            where: its name.
            theirs: what the model's categories are from.

        Raises:
            DataError: for a name with another id, an id with another name, or a category that is not known.
        """
        id_of, name_of = (dict(zip(*pair, strict=True)) for pair in ((self.names, self.ids), (self.ids, self.names)))
        for one, name in zip(other.ids, other.names, strict=True):
            if id_of.get(name) == one:
                continue
            if name in id_of:
                raise DataError(f"{where} gives category {name!r} the id {one}, but in {theirs} it is {id_of[name]}")
            if one in name_of:
                raise DataError(f"{where} calls category {one} {name!r}, but in {theirs} it is {name_of[one]!r}")
            raise DataError(f"{where} has a category {name!r} (id {one}) that {theirs} does not have")


@dataclasses.dataclass(frozen=True, slots=True)
class Instance:
    """An object of an image."""

    id: ImageId
    """Of the annotation, for messages."""
    label: int
    """1 to K."""
    box: tuple[float, float, float, float]
    """x, y, width, height in pixels, as the file says."""
    area: float
    """In pixels: the file's, which sorts objects into small, medium and large ones."""
    crowd: bool = False
    """Whether it stands for many objects, or is not to count for another reason: neither learnt nor scored."""
    outline: Outline | None = None
    """None where the file has none, or none that can be drawn."""


@dataclasses.dataclass(frozen=True, slots=True)
class AnnotatedImage:
    """An image and what is on it."""

    id: ImageId
    path: Path
    name: str
    """As the dataset calls the file."""
    size: tuple[int, int]
    """Width and height that the annotations refer to."""
    instances: tuple[Instance, ...]

    @property
    def objects(self) -> list[Instance]:
        """Those that are single objects."""
        return [instance for instance in self.instances if not instance.crowd]


@dataclasses.dataclass(frozen=True)
class AnnotatedSet:
    """The images of one split."""

    source: Path
    """The file that lists them."""
    categories: Categories
    images: tuple[AnnotatedImage, ...]

    @property
    def has_outlines(self) -> bool:
        """Whether any object has one."""
        return any(instance.outline is not None for image in self.images for instance in image.objects)

    def require_objects(self) -> None:
        """Check that there is something to learn or to find.

        Raises:
            DataError: if there is no object, or only crowds.
        """
        if any(image.objects for image in self.images):
            return
        crowds = sum(len(image.instances) for image in self.images)
        why = f"all {crowds} annotations are crowds or left out of scoring" if crowds else "no annotation can be used"
        raise DataError(f"{self.source} has no object: {why}")

    def first(self, count: int | None) -> "AnnotatedSet":
        """The first images, or all."""
        return dataclasses.replace(self, images=self.images[:count])

    def with_objects(self) -> "AnnotatedSet":
        """Without the images that have none."""
        return dataclasses.replace(self, images=tuple(image for image in self.images if image.objects))

    def for_masks(self) -> "AnnotatedSet":
        """Objects without an outline as crowds, which are not learnt; a note names them."""
        bare = [one for image in self.images for one in image.objects if one.outline is None]
        if not bare:
            return self
        note(f"{self.source}: {named(bare)} without an outline, left out of training with masks")
        images = [
            dataclasses.replace(
                image,
                instances=tuple(
                    dataclasses.replace(one, crowd=one.crowd or one.outline is None) for one in image.instances
                ),
            )
            for image in self.images
        ]
        return dataclasses.replace(self, images=tuple(images))

    def counts(self) -> list[int]:
        """Objects of each category."""
        counter = Counter(instance.label for image in self.images for instance in image.objects)
        return [counter[label] for label in range(1, len(self.categories.names) + 1)]

    def summary(self) -> "DetectionSummary":
        """What a resumed run must find again."""
        digest = hashlib.sha256()
        for image in self.images:
            digest.update(f"{image.id}\0{image.name}\0{image.size}\0".encode(errors="surrogateescape"))
            for one in image.instances:
                digest.update(f"{one.label} {one.box} {one.crowd}\0".encode())
        return DetectionSummary(
            images=len(self.images),
            class_names=list(self.categories.names),
            objects_per_class=self.counts(),
            digest=digest.hexdigest(),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectionSummary:
    """Number of images and objects of a split, small enough to stand in a run."""

    images: int
    class_names: list[str]
    objects_per_class: list[int]
    """Without crowds."""
    digest: str
    """Of names, sizes, boxes and labels, in order. Pixels and outlines are not looked at."""

    def change_to(self, other: "DetectionSummary") -> str | None:
        """The first difference of a later summary, for a message, or None if there is none."""
        if self.class_names != other.class_names:
            return f"the classes were {', '.join(self.class_names)} and are {', '.join(other.class_names)}"
        if self.images != other.images:
            return f"there were {self.images} images and are {other.images}"
        for name, old, new in zip(self.class_names, self.objects_per_class, other.objects_per_class, strict=True):
            if old != new:
                return f"class {name!r} had {old} objects and has {new}"
        return None if self.digest == other.digest else "images or boxes are others, or in another order"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectionData:
    """What a run is trained and evaluated on: `visionmlp.engine.run_folder.DataRecord`."""

    training: DetectionSummary
    evaluation: DetectionSummary

    def to_plain(self) -> dict[str, Any]:
        """Plain JSON."""
        return dataclasses.asdict(self)

    def change_since(self, before: Mapping[str, Any]) -> str | None:
        """What is different from an earlier `to_plain`, in one clause; None if nothing is."""
        for part in ("training", "evaluation"):
            now: DetectionSummary = getattr(self, part)
            if (change := DetectionSummary(**before[part]).change_to(now)) is not None:
                return f"{part} data: {change}"
        return None


def is_degenerate(box: Sequence[float], size: tuple[int, int]) -> bool:
    """Whether a box (x, y, width, height) is not finite, or covers nothing of an image of a size."""
    if not all(abs(value) <= FARTHEST for value in box):
        return True
    x, y, width, height = box
    across = min(x + width, size[0]) - max(x, 0)
    down = min(y + height, size[1]) - max(y, 0)
    return width <= 0 or height <= 0 or across <= 0 or down <= 0


def named(instances: Sequence[Instance] | Sequence[ImageId]) -> str:
    """How many annotations, and the ids of the first ones."""
    ids = [one.id if isinstance(one, Instance) else one for one in instances]
    more = ", ..." if len(ids) > _NAMED else ""
    word = "annotation" if len(ids) == 1 else "annotations"
    return f"{len(ids)} {word} ({', '.join(map(str, ids[:_NAMED]))}{more})"


def note(text: str) -> None:
    """Tell the user about the data, without calling it an error."""
    warnings.warn(text, Note, stacklevel=3)
