"""What a dataset holds, small enough to stand in a run, exact enough to notice that it changed."""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSummary:
    """Number, classes and names of the images of one split; ``dataclasses.asdict`` is plain JSON, and back.

    Two summaries are equal if and only if the images have the same names, order and classes. Pixels are not looked at.
    """

    images: int
    class_names: list[str]
    """In order; a class may have no image."""
    images_per_class: list[int]
    digest: str
    """Of all names, below the split's folder, and class numbers, in order."""

    @classmethod
    def of(cls, names: Iterable[str], labels: Sequence[int], class_names: Sequence[str]) -> "DataSummary":
        """Count and hash.

        Args:
            names: of the images, the same wherever the dataset lies.
            labels: class numbers, as many.
            class_names: names of the classes.
        """
        counts = [0] * len(class_names)
        digest = hashlib.sha256()
        for name, label in zip(names, labels, strict=True):
            counts[label] += 1
            # file names are bytes, and need not be UTF-8
            digest.update(f"{name}\0{label}\0".encode(errors="surrogateescape"))
        return cls(
            images=len(labels), class_names=list(class_names), images_per_class=counts, digest=digest.hexdigest()
        )

    def change_to(self, other: "DataSummary") -> str | None:
        """The first difference of a later summary, for a message, or None if there is none."""
        if self.class_names != other.class_names:
            return _change_of_classes(self.class_names, other.class_names)
        if self.images_per_class != other.images_per_class:
            counts = zip(self.class_names, self.images_per_class, other.images_per_class, strict=True)
            name, before, after = next(count for count in counts if count[1] != count[2])
            return f"class {name!r} had {before} images and has {after}; {self.images} in all, now {other.images}"
        if self.digest != other.digest:
            return f"the {self.images} images have other names or an other order"
        return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunData:
    """What a run is trained and evaluated on: `visionmlp.engine.run_folder.DataRecord`."""

    training: DataSummary
    evaluation: DataSummary

    def to_plain(self) -> dict[str, Any]:
        """Plain JSON."""
        return dataclasses.asdict(self)

    def change_since(self, before: Mapping[str, Any]) -> str | None:
        """What is different from an earlier `to_plain`, in one clause; None if nothing is."""
        earlier = RunData(training=DataSummary(**before["training"]), evaluation=DataSummary(**before["evaluation"]))
        for part, old, new in (
            ("training", earlier.training, self.training),
            ("evaluation", earlier.evaluation, self.evaluation),
        ):
            if (change := old.change_to(new)) is not None:
                return f"{part} data: {change}"
        return None


def _change_of_classes(before: Sequence[str], after: Sequence[str]) -> str:
    gone = [name for name in before if name not in set(after)]
    new = [name for name in after if name not in set(before)]
    if not gone and not new:
        pairs = zip(before, after, strict=False)
        number, (old, now) = next(item for item in enumerate(pairs) if item[1][0] != item[1][1])
        return f"the classes are in another order: class {number} was {old!r} and is {now!r}"
    parts = [f"class {names[0]!r} is {word}" for names, word in ((gone, "gone"), (new, "new")) if names]
    return f"{' and '.join(parts)}; there were {len(before)} classes and are {len(after)}"
