"""A whole dataset looked at before it is trained on: what cannot be read, what is odd, what is there twice."""

import dataclasses
import hashlib
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, Dataset

from visionmlp.data.decode import decode, reason
from visionmlp.data.labelled import LabelledImages


class _Look(NamedTuple):
    """What one image is like."""

    place: int
    size: tuple[int, int] | None
    """Width and height; None if it cannot be read."""
    digest: str
    """Of its pixels, as every task decodes them."""
    error: str | None
    notes: tuple[str, ...]


class _Looks(Dataset[_Look]):
    def __init__(self, source: LabelledImages) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> _Look:
        notes: list[str] = []
        try:
            image = decode(self.source.read(index), "RGB", warn=notes.append)
        except Exception as error:  # a source may read from a disk or a library
            return _Look(index, None, "", reason(error), ())
        pixels = f"{image.size}".encode() + image.tobytes()
        return _Look(index, image.size, hashlib.sha256(pixels).hexdigest(), None, tuple(notes))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitReport:
    """What one split holds."""

    images: int
    per_class: Mapping[str, int]
    """Images of each class that can be read."""
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
    """The same over several splits: what is evaluated was trained on."""
    contradictions: Sequence[tuple[str, ...]]
    """Those among both that are in different classes."""

    def to_plain(self) -> dict[str, Any]:
        """JSON values."""
        return dataclasses.asdict(self)


def check_data(
    sources: Mapping[str, LabelledImages],
    *,
    num_workers: int = 0,
    progress: Callable[[str, int], Callable[[], None]] = lambda _split, _images: lambda: None,
) -> DataReport:
    """Decode every image of a dataset once.

    Args:
        sources: by split.
        num_workers: processes that read.
        progress: called with each split and its number of images; what it returns is called behind each image.

    Raises:
        DataError: for labels that are no class.
    """
    splits: dict[str, SplitReport] = {}
    same: defaultdict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for split, source in sources.items():
        source.check_labels(len(source.class_names))  # -1 would count as the last class
        advance = progress(split, len(source))
        looks: list[_Look] = []
        for look in _read(source, num_workers):
            looks.append(look)
            advance()
        splits[split] = _split_report(source, looks)
        for look in looks:
            if look.error is None:
                name = source.class_names[source.label(look.place)]
                same[look.digest].append((split, source.name(look.place), name))
    several = [entries for entries in same.values() if len(entries) > 1]
    return DataReport(
        splits=splits,
        duplicates=[_names(entries) for entries in several if len({split for split, _, _ in entries}) == 1],
        leaks=[_names(entries) for entries in several if len({split for split, _, _ in entries}) > 1],
        contradictions=[_names(entries) for entries in several if len({label for _, _, label in entries}) > 1],
    )


def _read(source: LabelledImages, num_workers: int) -> Iterator[_Look]:
    as_it_is: Any = _as_it_is
    yield from DataLoader(_Looks(source), batch_size=None, num_workers=num_workers, collate_fn=as_it_is)


def _as_it_is(look: _Look) -> _Look:
    return look


def _names(entries: Sequence[tuple[str, str, str]]) -> tuple[str, ...]:
    return tuple(name for _, name, _ in entries)


def _split_report(source: LabelledImages, looks: Sequence[_Look]) -> SplitReport:
    readable = [(look, look.size) for look in looks if look.size is not None]
    counts = Counter(source.class_names[source.label(look.place)] for look, _ in readable)
    sizes = sorted((size for _, size in readable), key=lambda size: (size[0] * size[1], size))
    sides = {}
    if sizes:
        middle = statistics.median_low(range(len(sizes)))
        sides = {"smallest": sizes[0], "median": sizes[middle], "largest": sizes[-1]}
    return SplitReport(
        images=len(looks),
        per_class={name: counts.get(name, 0) for name in source.class_names},
        broken={source.name(look.place): look.error for look in looks if look.error is not None},
        notes={source.name(look.place): "; ".join(look.notes) for look in looks if look.notes},
        sides=sides,
    )
