"""Trees of tensors on the disk, each process's shards in a file of its own; readable by any number of processes.

By ``torch.distributed.checkpoint``, which says where of a tensor each shard lies. What is no shard stays in the tree.
"""

import io
import pickle
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException, FileSystemReader, FileSystemWriter, load, save
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from visionmlp.engine.sharding import empty_shard, is_sharded
from visionmlp.errors import RunFolderError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

_MARK = "shard"
"""Key of the one entry that stands in the tree for a tensor on the disk."""


class DamagedShards(RunFolderError):
    """They cannot be read; the message says why."""


def take_shards(tree: Any, name: str = "") -> tuple[Any, dict[str, Tensor]]:
    """A tree of dictionaries and lists without its shards, and these by their names."""
    if is_sharded(tree):
        return {_MARK: name}, {name: tree}
    if isinstance(tree, dict | list):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        parts = {key: take_shards(item, f"{name}.{key}") for key, item in items}
        shards = {key: value for _, taken in parts.values() for key, value in taken.items()}
        rest = {key: left for key, (left, _) in parts.items()}
        return rest if isinstance(tree, dict) else list(rest.values()), shards
    return tree, {}


def put_shards(tree: Any, shards: dict[str, Tensor]) -> Any:
    """The inverse of `take_shards`."""
    if isinstance(tree, dict):
        if tree.keys() == {_MARK}:
            return shards[tree[_MARK]]
        return {key: put_shards(item, shards) for key, item in tree.items()}
    return [put_shards(item, shards) for item in tree] if isinstance(tree, list) else tree


def write_shards(folder: Path, shards: dict[str, Tensor]) -> None:
    """Write them, each process its own; all processes call this together.

    Raises:
        RunFolderError: in all of them, if one cannot write.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about its own names
            save({name: value.detach() for name, value in shards.items()}, storage_writer=FileSystemWriter(folder))
    except CheckpointException as error:
        raise RunFolderError(f"cannot write {folder}: {_reason(error)}") from error


def read_index(folder: Path) -> dict[str, TensorStorageMetadata]:
    """What `write_shards` wrote, by name.

    Raises:
        DamagedShards: if this process cannot read it.
    """
    try:
        found = _Reader(folder).read_metadata().state_dict_metadata
    except (OSError, EOFError, RuntimeError, ValueError, TypeError, LookupError, pickle.UnpicklingError) as error:
        raise DamagedShards(f"its index: {error}") from error
    return {name: about for name, about in found.items() if isinstance(about, TensorStorageMetadata)}


def read_shards(folder: Path, index: dict[str, TensorStorageMetadata], mesh: "DeviceMesh | None") -> dict[str, Tensor]:
    """The tensors themselves.

    Args:
        folder: where they lie.
        index: of `read_index`, read by all processes that are to call this.
        mesh: to give each process its shard, for which all call this together; None gives whole tensors.

    Raises:
        DamagedShards: if files are missing or damaged.
    """
    shards: dict[str, Any] = {}
    for name, about in index.items():
        dtype = about.properties.dtype
        shards[name] = torch.empty(about.size, dtype=dtype) if mesh is None else empty_shard(about.size, dtype, mesh)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load(shards, storage_reader=_Reader(folder), no_dist=mesh is None)
    except CheckpointException as error:
        raise DamagedShards(_reason(error)) from error
    except (OSError, EOFError, RuntimeError, ValueError, AssertionError, pickle.UnpicklingError) as error:
        raise DamagedShards(f"{type(error).__name__}: {error}") from error
    return shards


class _Reader(FileSystemReader):
    """Reads the index without running what it may name: PyTorch's own would."""

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        found = _Index(io.BytesIO((Path(self.path) / ".metadata").read_bytes())).load()
        if not isinstance(found, Metadata):
            raise pickle.UnpicklingError("it is no index of tensors")
        return found


class _Index(pickle.Unpickler):
    """Knows the classes that an index is made of, and no other."""

    def find_class(self, module: str, name: str) -> Any:
        known = name in _NAMES.get(module, ())
        if known or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no index does")


_PATHS = ("PosixPath", "WindowsPath")
_NAMES = {
    "torch": ("Size",),
    "torch.serialization": ("_get_layout",),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.distributed.checkpoint.metadata": (
        *("Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata", "ChunkStorageMetadata"),
        *("TensorProperties", "_MEM_FORMAT_ENCODING"),
    ),
    "pathlib": _PATHS,
    "pathlib._local": _PATHS,
}


def _reason(error: CheckpointException) -> str:
    first: Any = next(iter(error.failures.values()))[0]
    return getattr(first, "strerror", None) or f"{type(first).__name__}: {first}"
