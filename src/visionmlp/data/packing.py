"""An image folder into WebDataset shards: bytes unchanged, mixed over classes, the same whoever packs it.

What will lie where follows from names and sizes before a byte is copied. So a pack that was killed goes on behind its
last whole shard, and the finished folder appears under its name when every image was read back.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from visionmlp.data.folders import FolderSource
from visionmlp.data.packed import (
    INDEX,
    META,
    WHOLE,
    PackedMeta,
    PackedSplit,
    StoredFile,
    is_packed,
    length_fault,
    member_names,
    shard_name,
)
from visionmlp.data.packed_check import find_faults, require_faultless
from visionmlp.data.sources import split_folders
from visionmlp.data.splits import TRAIN_NAMES
from visionmlp.data.texts import Texts
from visionmlp.errors import DataError, InvalidConfig
from visionmlp.files import OutputError, sync, whole_file

IMAGES_PER_SHARD = 1000
MOST_PER_SHARD = 1_000_000

Progress = Callable[[str, int], Callable[[], None]]
"""Called with what is done and the number of images; what it returns is called behind each image."""

_PROGRESS = "progress.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Packed:
    """What was packed."""

    meta: PackedMeta
    bytes: int
    """Of all shards."""
    resumed: int
    """Shards that an earlier, unfinished pack had left."""
    new: bool
    """False if it lay there already."""


def pack(
    folder: Path,
    output: Path,
    *,
    images_per_shard: int = IMAGES_PER_SHARD,
    seed: int = 0,
    progress: Progress = lambda _what, _images: lambda: None,
) -> Packed:
    """Pack a folder of images, and read all of them back.

    An unfinished pack lies beside the output as ``.NAME.packing``; the same call goes on with it.

    Args:
        folder: as in `visionmlp.data.open_training_data`; all of its splits are packed, or, without any, its classes.
        output: folder to create.
        images_per_shard: of each shard but the last of a split.
        seed: of the order of the images in the shards.
        progress: is told how far it is.

    Raises:
        DataError: for a folder that training would refuse, or a file that cannot be read.
        InvalidConfig: for a number that breaks its rule, or folders within each other.
        OutputError: if the output holds anything else, or cannot be written.
    """
    if not 1 <= images_per_shard <= MOST_PER_SHARD:
        raise InvalidConfig(f"images_per_shard must be from 1 to {MOST_PER_SHARD}, got {images_per_shard}")
    if seed < 0:
        raise InvalidConfig(f"seed must not be negative, got {seed}")
    _check_places(folder, output)
    sources = open_folders(folder)
    plans = [_Plan(name, source, images_per_shard, seed) for name, source in sources.items()]
    content = _digest(plans, images_per_shard, seed)
    if is_packed(output):
        meta = PackedMeta.read(output)
        if meta.content != content:
            raise OutputError(f"{output} holds a pack of other images or options; give another output, or remove it")
        require_faultless(output, meta, sources, progress)
        return Packed(meta=meta, bytes=_bytes_of(meta), resumed=0, new=False)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise OutputError(f"{output} exists and is no pack; give another output, or remove it")
    staging = output.absolute().with_name(f".{output.absolute().name}.packing")
    try:
        done = _Done.open(staging, content)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"cannot write {staging}: {error.strerror or error}") from error
    _require_room(output, staging, sum(plan.bytes for plan in plans), done)
    resumed = len(done.shards)
    advance = progress("pack", sum(len(plan.source) for plan in plans))
    try:
        splits = {plan.split: _write_split(staging, plan, done, advance) for plan in plans}
        meta = PackedMeta(images_per_shard=images_per_shard, seed=seed, content=content, splits=splits)
        with whole_file(staging / META, OutputError) as partial:
            partial.write_bytes(meta.to_bytes())
        _drop_faulty(staging, find_faults(staging, meta, sources, progress))
        done.path.unlink()
        os.replace(staging, output)
    except OSError as error:  # a disk that is full, most often
        reason = error if isinstance(error, OutputError) else f"cannot write {staging}: {error.strerror or error}"
        raise OutputError(
            f"{reason}; {len(done.shards)} shards are done, the same command goes on behind them"
        ) from error
    return Packed(meta=meta, bytes=_bytes_of(meta), resumed=resumed, new=True)


def open_folders(folder: Path) -> dict[str, FolderSource]:
    """The splits of a folder with the classes of the training split, as training reads them.

    Raises:
        DataError: for what training would refuse.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; give one with train/ and val/, or with class folders")
    if is_packed(folder):
        raise DataError(f"{folder} is packed already; give the folder of images")
    names = split_folders(folder)
    sources = {name: FolderSource(folder / name) for name in names} or {WHOLE: FolderSource(folder)}
    training = next((sources[name] for name in TRAIN_NAMES if name in sources), None)
    if training is not None:
        training.require_full_classes()
    for source in sources.values():
        source.warn_of_empty_classes()
        if training is not None:
            source.use_classes(training.class_names, len(training.class_names))
    return sources


class _Plan:
    """Where every image of a split will lie."""

    def __init__(self, split: str, source: FolderSource, images_per_shard: int, seed: int) -> None:
        self.split, self.source, self.images_per_shard = split, source, images_per_shard
        self.sizes = np.array([_size(source, index) for index in range(len(source))], dtype=np.uint64)
        # by hash rather than by a generator, whose permutations may change with its library
        hashes = [hashlib.sha256(f"{seed}\0".encode() + os.fsencode(name)).digest() for name in source.images]
        self.order = np.array(sorted(range(len(source)), key=hashes.__getitem__), dtype=np.int64)
        """Place in the shards to number of the image."""
        rooms = 3 * tarfile.BLOCKSIZE + _padded(self.sizes[self.order])
        self.offsets = np.empty(len(source), dtype=np.uint64)
        self.lengths = []
        for start in range(0, len(source), images_per_shard):
            part = slice(start, start + images_per_shard)
            ends = np.cumsum(rooms[part])
            self.offsets[part] = ends - rooms[part] + tarfile.BLOCKSIZE
            self.lengths.append(_shard_length(int(ends[-1])))

    @property
    def bytes(self) -> int:
        """Of all its shards."""
        return sum(self.lengths)

    def shard(self, number: int) -> Iterator[tuple[int, int]]:
        """Place and number of each image of a shard."""
        start = number * self.images_per_shard
        part = self.order[start : start + self.images_per_shard].tolist()
        return zip(range(start, start + len(part)), part, strict=True)

    def index(self, names: Texts) -> np.ndarray:
        """One row an image, in the folder's order."""
        rows = np.empty(len(self.order), dtype=INDEX)
        rows["key"][self.order] = np.arange(len(self.order))
        rows["offset"][self.order] = self.offsets
        rows["size"], rows["label"], rows["name_end"] = self.sizes, self.source.labels, names.ends
        return rows


class _Done:
    """Shards of an unfinished pack, one line each in a file behind the first line, which says what is packed."""

    def __init__(self, path: Path, shards: dict[str, StoredFile]) -> None:
        self.path, self.shards = path, shards

    @classmethod
    def open(cls, staging: Path, content: str) -> "_Done":
        """Start, or go on; a last line that a kill cut off does not count.

        Raises:
            OutputError: if other images lie there.
        """
        staging.parent.mkdir(parents=True, exist_ok=True)
        staging.mkdir(exist_ok=True)
        path = staging / _PROGRESS
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        first, *rest = [json.loads(line) for line in lines if line.endswith("\n")] or [None]
        if first is not None and first["content"] != content:
            raise OutputError(
                f"{staging} is an unfinished pack of other images or options; remove it, or give those again"
            )
        files = [StoredFile(**values) for values in rest]
        shards = {file.name: file for file in files if length_fault(staging, file) is None}
        with whole_file(path, OutputError) as partial:
            values = [{"content": content}, *map(dataclasses.asdict, shards.values())]
            partial.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
        return cls(path, shards)

    def add(self, file: StoredFile) -> None:
        """A shard is on the disk."""
        self.shards[file.name] = file
        with self.path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(dataclasses.asdict(file)) + "\n")
        sync(self.path)


def _write_split(staging: Path, plan: _Plan, done: _Done, advance: Callable[[], None]) -> PackedSplit:
    shards = []
    for number, length in enumerate(plan.lengths):
        name = shard_name(plan.split, number)
        if name not in done.shards:
            done.add(_write_shard(staging / name, plan, number, length, advance))
        else:
            for _ in plan.shard(number):
                advance()
        shards.append(done.shards[name])
    names = Texts.of(plan.source.images)
    source = plan.source
    return PackedSplit(
        images=len(source),
        class_names=source.class_names,
        images_per_class=np.bincount(source.labels, minlength=len(source.class_names)).tolist(),
        shards=shards,
        index=_write_index(staging / f"{plan.split}.index.npy", plan.index(names)),
        names=_write_file(staging / f"{plan.split}.names", names.joined),
    )


def _write_shard(path: Path, plan: _Plan, number: int, length: int, advance: Callable[[], None]) -> StoredFile:
    digest, position = hashlib.sha256(), 0
    with whole_file(path, OutputError) as partial, partial.open("wb") as file:
        for key, image in plan.shard(number):
            content = plan.source.read(image).read_bytes()
            if len(content) != plan.sizes[image]:
                raise DataError(f"{plan.source.name(image)} has changed since this command started; run it again")
            assert position + tarfile.BLOCKSIZE == plan.offsets[key]
            name, class_name = member_names(key, plan.source.images[image])
            for part in (*_member(name, content), *_member(class_name, b"%d" % plan.source.label(image))):
                digest.update(part)
                file.write(part)
                position += len(part)
            advance()
        end = bytes(length - position)
        digest.update(end)
        file.write(end)
    return StoredFile(name=path.name, bytes=length, sha256=digest.hexdigest())


def _member(name: str, content: bytes) -> tuple[bytes, bytes, bytes]:
    """Header, content and padding; owner, mode and time are tarfile's fixed ones."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info.tobuf(tarfile.USTAR_FORMAT), content, bytes(-len(content) % tarfile.BLOCKSIZE)


def _write_index(path: Path, rows: np.ndarray) -> StoredFile:
    with whole_file(path, OutputError) as partial:
        with partial.open("wb") as file:
            np.save(file, rows, allow_pickle=False)
        content = partial.read_bytes()
    return StoredFile(name=path.name, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def _write_file(path: Path, content: bytes) -> StoredFile:
    with whole_file(path, OutputError) as partial:
        partial.write_bytes(content)
    return StoredFile(name=path.name, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def _drop_faulty(staging: Path, faults: Mapping[str, str]) -> None:
    """So that the next call packs them again; images may have changed since they were packed.

    Raises:
        DataError: if there are any.
    """
    for name in faults:
        (staging / name).unlink(missing_ok=True)
    for shard, fault in faults.items():
        others = f", and {len(faults) - 1} more shards have faults" if len(faults) > 1 else ""
        raise DataError(f"{staging / shard} {fault}{others}; the same command packs them again")


def _digest(plans: Sequence[_Plan], images_per_shard: int, seed: int) -> str:
    digest = hashlib.sha256(f"{images_per_shard}\0{seed}\0".encode())
    for plan in plans:
        source = plan.source
        digest.update(f"{plan.split}\0{json.dumps(source.class_names)}\0".encode())
        for name, size, label in zip(source.images, plan.sizes.tolist(), source.labels.tolist(), strict=True):
            digest.update(os.fsencode(name) + f"\0{size}\0{label}\0".encode())
    return digest.hexdigest()


def _check_places(folder: Path, output: Path) -> None:
    inner, outer = output.resolve(), folder.resolve()
    if inner == outer or outer in inner.parents:
        raise InvalidConfig(f"the output {output} lies in {folder}, which it would change; give a place outside of it")
    if inner in outer.parents:
        raise InvalidConfig(f"{folder} lies in the output {output}; give a folder of its own for the shards")


def _require_room(output: Path, staging: Path, length: int, done: _Done) -> None:
    left = length - sum(file.bytes for file in done.shards.values())
    free = shutil.disk_usage(staging).free
    if free >= left:
        return
    if not done.shards:
        shutil.rmtree(staging)
    raise OutputError(f"{output} needs {_mib(left)} more, but its disk has {_mib(free)} left; free some")


def _size(source: FolderSource, index: int) -> int:
    try:
        return source.read(index).stat().st_size
    except OSError as error:
        raise DataError(f"cannot read {source.name(index)}: {error.strerror}; repair or remove it") from error


def _padded(sizes: np.ndarray) -> np.ndarray:
    block = np.uint64(tarfile.BLOCKSIZE)
    return (sizes + block - np.uint64(1)) // block * block


def _shard_length(members: int) -> int:
    """With two empty blocks at the end, in whole records, as tar writes it."""
    return -(-(members + 2 * tarfile.BLOCKSIZE) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


def _bytes_of(meta: PackedMeta) -> int:
    return sum(shard.bytes for split in meta.splits.values() for shard in split.shards)


def _mib(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"
