"""WebDataset shards: tar archives of images and their classes, read by position."""

import io
import posixpath
import tarfile
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from visionmlp.data.files import image_suffixes, is_hidden, suffix_of
from visionmlp.data.labelled import LabelledImages
from visionmlp.data.splits import split_names
from visionmlp.data.texts import Texts
from visionmlp.errors import DataError, first_line

_COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ\0": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}


_NUMBER = np.dtype(np.int64)
_ROW = np.dtype([("shard", np.uint32), ("offset", np.uint64), ("size", np.uint64), ("label", _NUMBER)])


class _Member(NamedTuple):
    key: str
    offset: int
    size: int
    label: int


class ShardSource(LabelledImages):
    """WebDataset shards on this machine, read by position: images and ``KEY.cls`` beside them in tar archives.

    Shards belong to a split by their name (``imagenet1k-train-0001.tar``) or folder (``train/0001.tar``). A ``.cls``
    file holds the number of the class. Links within a shard are followed.

    Raises:
        DataError: for shards that are compressed, damaged, or without a pair of an image and its class.
    """

    def __init__(self, data: str, root: Path | None, split: str) -> None:
        if root is None or not root.is_dir():
            raise DataError(f"{data} needs data_root, the folder of its .tar shards; {root} is none")
        archives = [path for path in root.rglob("*") if _is_archive(path, root)]
        for name in split_names(split):
            shards = [path for path in archives if name in _words(path.relative_to(root))]
            if shards:
                break
        else:
            raise DataError(f"no shard of split {split!r} in {root}; name them like NAME-{split}-0000.tar")
        self.root = root
        self.shards = sorted(shards)
        left_out: Counter[str] = Counter()
        # arrays, as a million images would be a gigabyte of objects
        indexed: list[np.ndarray] = []
        keys = Texts.of(self._index(indexed, left_out))
        self.index, self.index_keys = np.concatenate(indexed), keys
        if not len(self.index):
            raise DataError(
                f"no pair of an image and a .cls file in the shards of {root}, such as {self.shards[0].name}"
            )
        labels = self.index["label"]
        super().__init__(f"{data} ({name})", labels, [str(number) for number in range(int(labels.max()) + 1)])
        if left_out:
            counts = ", ".join(f"{what} ({count})" for what, count in left_out.items())
            warnings.warn(f"{root}: left out of the shards of split {name}: {counts}", stacklevel=2)

    def name(self, index: int) -> str:
        """Shard and key."""
        return f"{self.shards[self.index['shard'][index]]}:{self.index_keys[index]}"

    def keys(self) -> Iterable[str]:
        """Shards, keys and sizes."""
        names = [path.relative_to(self.root).as_posix() for path in self.shards]
        rows = zip(self.index["shard"].tolist(), self.index_keys, self.index["size"].tolist(), strict=True)
        return (f"{names[shard]}:{key}:{size}" for shard, key, size in rows)

    def read(self, index: int) -> BinaryIO:
        """The encoded image."""
        row = self.index[index]
        with self.shards[row["shard"]].open("rb") as shard:
            shard.seek(int(row["offset"]))
            return io.BytesIO(shard.read(int(row["size"])))

    def use_classes(self, class_names: Sequence[str] | None, num_classes: int) -> None:
        """The numbers in a shard are those of a model's outputs."""
        self.use_numbers(class_names, num_classes)

    def _index(self, indexed: list[np.ndarray], left_out: "Counter[str]") -> Iterator[str]:
        """Keys of all images; the rest of each shard's index is appended to ``indexed``."""
        for number, path in enumerate(self.shards):
            members = _index(path, left_out)
            indexed.append(np.array([(number, *member[1:]) for member in members], dtype=_ROW))
            yield from (member.key for member in members)


def _is_archive(path: Path, root: Path) -> bool:
    # a compressed shard must be named, not be missing
    visible = not any(is_hidden(part) for part in path.relative_to(root).parts)
    return visible and (".tar" in path.suffixes[-2:] or path.suffix == ".tgz") and path.is_file()


def _index(path: Path, left_out: "Counter[str]") -> list[_Member]:
    """Pair the images and classes of one shard, and count what has no partner."""
    try:
        with path.open("rb") as file:
            start = file.read(6)
        for magic, command in _COMPRESSED.items():
            if start.startswith(magic):
                raise DataError(f"shard {path} is compressed, so images in it have no position; unpack it: {command}")
        with tarfile.open(path, "r:") as archive:
            members = {posixpath.normpath(member.name): member for member in archive}
            return _pairs(archive, members, left_out)
    except (tarfile.TarError, OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"cannot read shard {path}: {first_line(error)}") from error


def _pairs(archive: tarfile.TarFile, members: Mapping[str, tarfile.TarInfo], left_out: "Counter[str]") -> list[_Member]:
    suffixes = image_suffixes()
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, int] = {}
    for name, member in members.items():
        suffix = suffix_of(name)
        if member.isdir() or not (suffix in suffixes or suffix == ".cls"):
            continue
        if any(map(is_hidden, name.split("/"))):
            left_out["hidden files"] += 1
        elif (content := _content(name, members)) is None:
            left_out["links that lead nowhere"] += 1
        elif suffix == ".cls":
            labels[name[: -len(suffix)]] = _label(archive, content, name)
        elif name[: -len(suffix)] in images:
            left_out["second images of a key"] += 1
        else:
            images[name[: -len(suffix)]] = content
    paired = {key for key in images if key in labels}
    for key in images.keys() - paired:
        # of x.jpg, x.depth.png and x.cls, the second is no image of its own
        if _sample(key) not in paired:
            left_out["images without a class (.cls)"] += 1
    if others := len(labels) - len(paired):
        left_out["classes without an image"] += others
    return [
        _Member(key, member.offset_data, member.size, labels[key]) for key, member in images.items() if key in paired
    ]


def _sample(key: str) -> str:
    """What WebDataset calls the key: all before the first dot of the file's name."""
    folder, name = posixpath.split(key)
    return posixpath.join(folder, name.partition(".")[0])


def _content(name: str, members: Mapping[str, tarfile.TarInfo]) -> tarfile.TarInfo | None:
    """Where the bytes of a file lie, behind links of both kinds."""
    seen: set[str] = set()
    while (member := members.get(name)) is not None and name not in seen:
        seen.add(name)
        if member.islnk():
            name = posixpath.normpath(member.linkname)
        elif member.issym():
            name = posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname))
        else:
            return member if member.isreg() and not member.issparse() else None
    return None


def _label(archive: tarfile.TarFile, member: tarfile.TarInfo, name: str) -> int:
    file = archive.extractfile(member)
    text = file.read() if file else b""
    try:
        return _NUMBER.type(int(text)).item()
    except (ValueError, OverflowError) as error:
        raise DataError(f"{archive.name}:{name} is no class number: {text[:40]!r}") from error


def _words(path: Path) -> list[str]:
    return "".join(letter if letter.isalnum() else " " for letter in str(path.with_suffix(""))).split()
