"""A whole dataset looked at before it is trained on: what cannot be read, what is odd, what is there twice."""

import dataclasses
import hashlib
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from PIL import Image
from torch.utils.data import DataLoader, Dataset

from visionmlp.data.labelled import LabelledImages
from visionmlp.data.loading import Reading, leave_signals_to_main, loaded_by, read_image
from visionmlp.data.policy import BadImage


class Seen(NamedTuple):
    """An image as training would take it."""

    image: Image.Image
    classes: Mapping[int, int]
    """How much of each class it has."""
    told: str
    """All that the dataset says about it, or a digest of that; the same text for the same in every split."""


class CheckedImages(Protocol):
    """A split of any task's dataset."""

    @property
    def class_names(self) -> Sequence[str] | None:
        """None where nothing tells them; classes go by their numbers then."""
        ...

    @property
    def counted(self) -> str:
        """What is counted of each class: images, objects or pixels."""
        ...

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What to call an image in a message."""
        ...

    def look(self, index: int) -> Reading:
        """A `Seen`, or why training could not use it."""
        ...


class LabelledSplit:
    """Images of which each is of one class.

    Raises:
        DataError: for labels that are no class.
    """

    counted = "images"

    def __init__(self, source: LabelledImages) -> None:
        source.check_labels(len(source.class_names))  # -1 would count as the last class
        self.source, self.class_names = source, source.class_names

    def __len__(self) -> int:
        return len(self.source)

    def name(self, index: int) -> str:
        """See `LabelledImages`."""
        return self.source.name(index)

    def look(self, index: int) -> Reading:
        """See `CheckedImages`."""
        reading = read_image(lambda: self.source.read(index), self.name(index), "RGB", exif_orientation=True)
        if isinstance(reading.item, BadImage):
            return reading
        label = self.source.label(index)
        # by name: each split has numbers of its own
        return reading._replace(item=Seen(reading.item, {label: 1}, self.class_names[label]))


class _Look(NamedTuple):
    """What one image is like."""

    name: str
    size: tuple[int, int] | None
    """Width and height; None if it cannot be read."""
    digest: str
    """Of its pixels, as every task decodes them."""
    error: str | None
    notes: tuple[str, ...]
    classes: Mapping[int, int]
    told: str


class _Looks(Dataset[_Look]):
    def __init__(self, split: CheckedImages) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> _Look:
        item, notes = self.split.look(index)
        if isinstance(item, BadImage):
            # of an image and its mask, either may be the bad one
            return _Look(item.name, None, "", item.reason, (), {}, "")
        pixels = f"{item.image.size}".encode() + item.image.tobytes()
        return _Look(
            self.split.name(index),
            item.image.size,
            hashlib.sha256(pixels).hexdigest(),
            None,
            tuple(note.text for note in notes),
            item.classes,
            item.told,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitReport:
    """What one split holds."""

    images: int
    counted: str
    """What is counted of each class: images, objects or pixels."""
    per_class: Mapping[str, int]
    """How many of them are in images that can be read."""
    class_names_known: bool
    """Whether anything tells them; numbers stand for them otherwise."""
    without_classes: Sequence[str]
    """Names of images that can be read and have nothing of any class."""
    broken: Mapping[str, str]
    """Why an image cannot be read, by its name."""
    notes: Mapping[str, str]
    """What is odd about an image that is used all the same."""
    sides: Mapping[str, tuple[int, int]]
    """``smallest``, ``median`` and ``largest`` width and height, by area."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataReport:
    """What a dataset holds."""

    splits: Mapping[str, SplitReport]
    duplicates: Sequence[tuple[str, ...]]
    """Names of images with the same pixels, within one split."""
    leaks: Sequence[tuple[str, ...]]
    """The same over several splits, as where what is evaluated was trained on."""
    contradictions: Sequence[tuple[str, ...]]
    """Those among both of which the dataset says different things, such as another class."""

    def to_plain(self) -> dict[str, Any]:
        """JSON values."""
        return dataclasses.asdict(self)


def check_data(
    splits: Mapping[str, CheckedImages],
    *,
    num_workers: int = 0,
    progress: Callable[[str, int], Callable[[], None]] = lambda _split, _images: lambda: None,
) -> DataReport:
    """Decode every image of a dataset once.

    Args:
        splits: by name.
        num_workers: processes that read.
        progress: called with each split and its number of images; what it returns is called behind each image.
    """
    reports: dict[str, SplitReport] = {}
    same: defaultdict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for name, split in splits.items():
        advance = progress(name, len(split))
        looks: list[_Look] = []
        for look in _read(split, num_workers):
            looks.append(look)
            advance()
        reports[name] = _split_report(split, looks)
        for look in looks:
            if look.error is None:
                same[look.digest].append((name, look.name, look.told))
    several = [entries for entries in same.values() if len(entries) > 1]
    return DataReport(
        splits=reports,
        duplicates=[_names(entries) for entries in several if len({split for split, _, _ in entries}) == 1],
        leaks=[_names(entries) for entries in several if len({split for split, _, _ in entries}) > 1],
        contradictions=[_names(entries) for entries in several if len({told for _, _, told in entries}) > 1],
    )


def _read(split: CheckedImages, num_workers: int) -> Iterator[_Look]:
    as_it_is: Any = _as_it_is
    yield from loaded_by(
        DataLoader(
            _Looks(split),
            batch_size=None,
            num_workers=num_workers,
            collate_fn=as_it_is,
            worker_init_fn=leave_signals_to_main,
        )
    )


def _as_it_is(look: _Look) -> _Look:
    return look


def _names(entries: Sequence[tuple[str, str, str]]) -> tuple[str, ...]:
    return tuple(name for _, name, _ in entries)


def _split_report(split: CheckedImages, looks: Sequence[_Look]) -> SplitReport:
    sizes = sorted((look.size for look in looks if look.size is not None), key=lambda size: (size[0] * size[1], size))
    counts: Counter[int] = Counter()
    for look in looks:
        counts.update(look.classes)
    names = split.class_names
    numbered = [(one, str(one)) for one in sorted(counts)] if names is None else enumerate(names)
    sides = {}
    if sizes:
        middle = statistics.median_low(range(len(sizes)))
        sides = {"smallest": sizes[0], "median": sizes[middle], "largest": sizes[-1]}
    return SplitReport(
        images=len(looks),
        counted=split.counted,
        per_class={name: counts[number] for number, name in numbered},
        class_names_known=names is not None,
        without_classes=[look.name for look in looks if look.error is None and not any(look.classes.values())],
        broken={look.name: look.error for look in looks if look.error is not None},
        notes={look.name: "; ".join(look.notes) for look in looks if look.notes},
        sides=sides,
    )
