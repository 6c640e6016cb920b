"""A packed folder read whole: every shard's hash, and every image and class where the index says."""

import hashlib
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from visionmlp.data.folders import FolderSource
from visionmlp.data.packed import (
    PackedMeta,
    StoredFile,
    length_fault,
    member_names,
    read_index,
)
from visionmlp.data.texts import Texts
from visionmlp.errors import DataError, first_line

Progress = Callable[[str, int], Callable[[], None]]


def require_faultless(
    folder: Path,
    meta: PackedMeta,
    sources: Mapping[str, FolderSource] | None = None,
    progress: Progress = lambda _what, _images: lambda: None,
) -> None:
    """Refuse a pack with a fault; arguments are those of `find_faults`.

    Raises:
        DataError: naming the shards that are not as they were written, and the first fault.
    """
    faults = find_faults(folder, meta, sources, progress)
    if not faults:
        return
    shard, fault = next(iter(faults.items()))
    others = f"; and {len(faults) - 1} more: {', '.join(list(faults)[1:6])}" if len(faults) > 1 else ""
    count = sum(len(split.shards) for split in meta.splits.values())
    raise DataError(
        f"{len(faults)} of {count} shards of {folder} are not as packed: {shard} {fault}{others}; "
        "copy them again, or pack the folder again"
    )


def find_faults(
    folder: Path,
    meta: PackedMeta,
    sources: Mapping[str, FolderSource] | None = None,
    progress: Progress = lambda _what, _images: lambda: None,
) -> dict[str, str]:
    """Read every shard of a packed folder.

    Args:
        folder: the pack.
        meta: of it.
        sources: the folders that were packed, by split, to compare every image's bytes and class with; without them,
            with what was written.
        progress: see `visionmlp.data.packing.pack`.

    Returns:
        What is wrong with a shard, by its name.

    Raises:
        DataError: for a damaged index, or sources that are not those that were packed.
    """
    if sources is not None:
        _require_same_images(folder, meta, sources)
    advance = progress("verify", sum(split.images for split in meta.splits.values()))
    faults: dict[str, str] = {}
    for name, split in meta.splits.items():
        index, names = read_index(folder, split)
        check = _ShardCheck(folder, index, names, None if sources is None else sources[name], advance)
        by_key = np.argsort(index["key"])
        for number, shard in enumerate(split.shards):
            rows = by_key[number * meta.images_per_shard : (number + 1) * meta.images_per_shard]
            if (fault := check.fault(shard, rows)) is not None:
                faults[shard.name] = fault
    return faults


class _ShardCheck:
    def __init__(
        self,
        folder: Path,
        index: np.ndarray,
        names: Texts,
        source: FolderSource | None,
        advance: Callable[[], None],
    ) -> None:
        self.folder, self.index, self.names = folder, index, names
        self.source, self.advance = source, advance

    def fault(self, shard: StoredFile, rows: np.ndarray) -> str | None:
        """What is wrong with a shard, or None.

        Args:
            shard: as it should be.
            rows: of its images in the index, in its order.
        """
        if (fault := length_fault(self.folder, shard)) is not None:
            return fault
        try:
            with (self.folder / shard.name).open("rb") as file:
                reader = _HashingReader(file)
                with tarfile.open(fileobj=cast("BinaryIO", reader), mode="r|") as archive:  # which needs no more
                    fault = self._fault_of_members(archive, rows.tolist())
                reader.read_rest()
        except (tarfile.TarError, OSError) as error:
            return f"cannot be read: {first_line(error)}"
        return fault or (None if reader.digest.hexdigest() == shard.sha256 else "has other bytes (sha256)")

    def _fault_of_members(self, archive: tarfile.TarFile, rows: list[int]) -> str | None:
        members = iter(archive)
        for row in rows:
            entry, name = self.index[row], self.names[row]
            contents = []
            for expected in member_names(int(entry["key"]), name):
                member = next(members, None)
                file = None if member is None else archive.extractfile(member)
                if member is None or file is None or member.name != expected:
                    return f"lacks {expected} in its place"
                contents.append(file.read())
                if not contents[1:] and (member.offset_data, member.size) != (entry["offset"], entry["size"]):
                    return f"has {expected} in another place"
            image, label = contents
            if label != b"%d" % entry["label"]:
                return f"has class {label!r} for {name}, which is of class {entry['label']}"
            if self.source is not None and image != self.source.read(row).read_bytes():
                return f"has other bytes than {self.source.name(row)}"
            self.advance()
        return None if next(members, None) is None else "has more members than were packed"


class _HashingReader:
    """A file for tarfile's stream mode that hashes what passes."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def read(self, size: int) -> bytes:
        """The next bytes."""
        content = self.file.read(size)
        self.digest.update(content)
        return content

    def read_rest(self) -> None:
        """What tarfile leaves unread."""
        while self.read(2**20):
            pass


def _require_same_images(folder: Path, meta: PackedMeta, sources: Mapping[str, FolderSource]) -> None:
    """Refuse a folder that is not the one that was packed.

    Raises:
        DataError: naming the first difference.
    """
    if list(sources) != list(meta.splits):
        raise DataError(f"{folder} has the splits {', '.join(meta.splits)}, but the folder {', '.join(sources)}")
    for name, source in sources.items():
        split = meta.splits[name]
        index, names = read_index(folder, split)
        if list(names) != source.images:
            difference = _difference(names, source.images)
            raise DataError(f"{source.folder} holds other images than were packed into {folder}: {difference}")
        if list(split.class_names) != source.class_names or not np.array_equal(index["label"], source.labels):
            raise DataError(f"{source.folder} has other classes than were packed into {folder}")


def _difference(names: Texts, images: list[str]) -> str:
    packed, there = set(names), set(images)
    new, gone = sorted(there - packed), sorted(packed - there)
    parts = [f"{len(some)} {word}, such as {some[0]}" for some, word in ((new, "more"), (gone, "less")) if some]
    return "; ".join(parts) or "in another order"
