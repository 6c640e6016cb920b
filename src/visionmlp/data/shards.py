"""WebDataset shards: tar archives of images and their classes, read by position."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from visionmlp.data.splits import split_names
from visionmlp.errors import DataError, first_line


class _Member(NamedTuple):
    shard: int
    key: str
    offset: int
    size: int
    label: int


class ShardSource:
    """WebDataset shards on this machine, read by position: files ``KEY.jpg|png|webp`` and ``KEY.cls`` in tar archives.

    Shards belong to a split by their name (``imagenet1k-train-0001.tar``) or folder (``train/0001.tar``).
    """

    def __init__(self, data: str, root: Path | None, split: str) -> None:
        if root is None or not root.is_dir():
            raise DataError(f"{data} needs data_root, the folder of its .tar shards; {root} is none")
        for name in split_names(split):
            shards = [path for path in sorted(root.rglob("*.tar")) if name in _words(path.relative_to(root))]
            if shards:
                break
        else:
            raise DataError(f"no shard of split {split!r} in {root}; name them like NAME-{split}-0000.tar")
        self.shards = shards
        self.members = [member for number, path in enumerate(shards) for member in _index(number, path)]
        if not self.members:
            raise DataError(f"no pair of an image and a .cls file in the shards of {root}, such as {shards[0].name}")
        self.class_names = [str(number) for number in range(max(member.label for member in self.members) + 1)]

    def __len__(self) -> int:
        return len(self.members)

    def name(self, index: int) -> str:
        """Shard and key."""
        return f"{self.shards[self.members[index].shard]}:{self.members[index].key}"

    def label(self, index: int) -> int:
        """Class number."""
        return self.members[index].label

    def read(self, index: int) -> Image.Image:
        """Decode an image."""
        member = self.members[index]
        with self.shards[member.shard].open("rb") as shard:
            shard.seek(member.offset)
            image = Image.open(io.BytesIO(shard.read(member.size)))
        image.load()
        return image


def _index(number: int, path: Path) -> Iterator[_Member]:
    """Pair the images and classes of one shard; neighbours in the archive, as the format says."""
    try:
        with tarfile.open(path) as archive:
            images: dict[str, tarfile.TarInfo] = {}
            labels: dict[str, int] = {}
            for member in archive:
                key, _, extension = member.name.rpartition(".")
                if extension.lower() in ("jpg", "jpeg", "png", "webp"):
                    images[key] = member
                elif extension == "cls" and (file := archive.extractfile(member)):
                    labels[key] = int(file.read())
    except (tarfile.TarError, OSError, ValueError) as error:
        raise DataError(f"cannot read shard {path}: {first_line(error)}") from error
    for key, member in images.items():
        if key in labels:
            yield _Member(number, key, member.offset_data, member.size, labels[key])


def _words(path: Path) -> list[str]:
    return "".join(letter if letter.isalnum() else " " for letter in str(path.with_suffix(""))).split()
