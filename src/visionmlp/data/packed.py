"""Packed folders: the shards that `visionmlp pack` wrote, read by position through their index.

``shards.json`` says what is there. A split has its shards, which are plain WebDataset tar files (``KEY.jpg``,
``KEY.cls``), and two files that make opening them quick: ``SPLIT.index.npy``, one row of `INDEX` an image, and
``SPLIT.names``, where each image lay in the folder. Rows stand in the folder's order, so an epoch is the same one.
"""

import dataclasses
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from visionmlp.data.files import suffix_of
from visionmlp.data.labelled import LabelledImages
from visionmlp.data.splits import TRAIN_NAMES, split_names
from visionmlp.data.texts import Texts
from visionmlp.errors import DataError

META = "shards.json"
FORMAT = "visionmlp-shards-1"
WHOLE = "images"
"""What the one split of a folder without split folders is called."""

INDEX = np.dtype([("key", "<u8"), ("offset", "<u8"), ("size", "<u8"), ("label", "<u4"), ("name_end", "<u8")])
"""Of one image: place among those of the split as packed, its bytes in the shard, number of its class, and where its
name ends in ``SPLIT.names``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredFile:
    """A file of a pack."""

    name: str
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedSplit:
    """What ``shards.json`` says of a split."""

    images: int
    class_names: Sequence[str]
    """In the order of the numbers in ``.cls``; in evaluation some may have no image."""
    images_per_class: Sequence[int]
    shards: Sequence[StoredFile]
    index: StoredFile
    names: StoredFile


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedMeta:
    """What ``shards.json`` holds."""

    images_per_shard: int
    seed: int
    content: str
    """Digest of names, sizes and classes of all images, and of the two numbers above."""
    splits: Mapping[str, PackedSplit]

    def to_bytes(self) -> bytes:
        """JSON for people too."""
        return (json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=2) + "\n").encode()

    @classmethod
    def read(cls, folder: Path) -> "PackedMeta":
        """Of a packed folder.

        Raises:
            DataError: if it cannot be read, or is of an unknown format.
        """
        path = folder / META
        try:
            values: dict[str, Any] = json.loads(path.read_bytes())
            if values.pop("format") != FORMAT:
                raise DataError(f"{path} is of another version of visionmlp; pack the folder again")
            splits = {name: _split(split) for name, split in values.pop("splits").items()}
            return cls(splits=splits, **values)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                f"cannot read {path}: it is damaged ({type(error).__name__}); pack the folder again"
            ) from error


def is_packed(folder: Path) -> bool:
    """Whether a folder is one that `visionmlp pack` wrote."""
    return (folder / META).is_file()


def packed_split(folder: Path, split: str) -> str:
    """What a packed folder calls a split.

    Args:
        folder: with ``shards.json``.
        split: as in `visionmlp.data.open_evaluation_data`.

    Raises:
        DataError: if it has none.
    """
    splits, names = PackedMeta.read(folder).splits, split_names(split)
    for name in names:
        if name in splits:
            return name
    # as a folder without split folders, which is evaluated as a whole
    if split not in TRAIN_NAMES and list(splits) == [WHOLE]:
        return WHOLE
    raise DataError(f"{folder} has no split {' or '.join(names)}, but {', '.join(splits)}")


def shard_name(split: str, number: int) -> str:
    """Such that ``wds/`` finds the split too."""
    return f"{split}-{number:06d}.tar"


def member_names(key: int, name: str) -> tuple[str, str]:
    """Of an image and its class in a shard; the key has no dot, and the suffix is in lower case."""
    return f"{key:09d}{suffix_of(name)}", f"{key:09d}.cls"


class PackedSource(LabelledImages):
    """One split of a packed folder: the images, order, names and classes of the folder that was packed.

    Only index and names are read when it opens, no shard; an image is one read at its place.

    Args:
        folder: with ``shards.json``.
        name: of the split, as in ``shards.json``; `packed_split` finds it.

    Raises:
        DataError: if a shard is missing or of another length, or the index is damaged.
    """

    def __init__(self, folder: Path, name: str) -> None:
        meta = PackedMeta.read(folder)
        packed = meta.splits[name]
        self.folder, self.images_per_shard = folder, meta.images_per_shard
        self.shards = [folder / shard.name for shard in packed.shards]
        for shard in packed.shards:
            if (fault := length_fault(folder, shard)) is not None:
                raise DataError(f"{folder / shard.name} {fault}; copy it again, or pack the folder again")
        self.index, self.names = read_index(folder, packed)
        # in evaluation, only the classes that have images, as a folder's
        present = np.unique(self.index["label"])
        class_names = [str(packed.class_names[number]) for number in present.tolist()]
        super().__init__(f"{folder} ({name})", np.searchsorted(present, self.index["label"]), class_names)

    def name(self, index: int) -> str:
        """Shard and member, and what the image was called in the folder."""
        key, name = int(self.index["key"][index]), self.names[index]
        return f"{self._shard(key)}:{member_names(key, name)[0]} ({name})"

    def keys(self) -> Iterable[str]:
        """Paths below the folder that was packed."""
        return self.names

    def read(self, index: int) -> BinaryIO:
        """The file's bytes.

        Raises:
            DataError: if the shard holds another file there.
        """
        row = self.index[index]
        key, offset, size = int(row["key"]), int(row["offset"]), int(row["size"])
        start = offset - tarfile.BLOCKSIZE
        with self._shard(key).open("rb") as shard:
            shard.seek(start)
            content = shard.read(tarfile.BLOCKSIZE + size)
        # a shard that was exchanged must not give another image
        member = member_names(key, self.names[index])[0].encode() + b"\0"
        if len(content) != tarfile.BLOCKSIZE + size or not content.startswith(member):
            raise DataError(f"the shard is not the one that was packed; visionmlp pack --verify {self.folder}")
        return io.BytesIO(content[tarfile.BLOCKSIZE :])

    def _shard(self, key: int) -> Path:
        return self.shards[key // self.images_per_shard]


def length_fault(folder: Path, file: StoredFile) -> str | None:
    """What is wrong with a file of a pack at first sight, or None."""
    path = folder / file.name
    if not path.is_file():
        return "is missing"
    length = path.stat().st_size
    return None if length == file.bytes else f"has {length} bytes and had {file.bytes}"


def read_index(folder: Path, split: PackedSplit) -> tuple[np.ndarray, Texts]:
    """Index and names of a split.

    Raises:
        DataError: unless they are those that were written.
    """
    contents = []
    for file in (split.index, split.names):
        path = folder / file.name
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}; copy it again, or pack the folder again") from error
        if hashlib.sha256(content).hexdigest() != file.sha256:
            raise DataError(f"{path} is damaged; copy it again, or pack the folder again")
        contents.append(content)
    index: np.ndarray = np.load(io.BytesIO(contents[0]), allow_pickle=False)
    return index, Texts(contents[1], index["name_end"])


def _split(values: Mapping[str, Any]) -> PackedSplit:
    rest = dict(values)
    shards = [StoredFile(**shard) for shard in rest.pop("shards")]
    index, names = (StoredFile(**rest.pop(name)) for name in ("index", "names"))
    return PackedSplit(shards=shards, index=index, names=names, **rest)
