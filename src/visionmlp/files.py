"""Files that appear whole or not at all: outputs of commands, checkpoints, files of a run."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from visionmlp.errors import CheckpointError, RunFolderError, VisionMLPError


class OutputError(VisionMLPError, OSError):
    """An output file cannot be written, or exists and may not be replaced."""


@contextlib.contextmanager
def beside(path: Path, *, force: bool, suffix: str = "") -> Iterator[Path]:
    """A file beside ``path`` that takes its place when the block succeeds and is removed when it fails.

    It is created on entry, so that a folder that cannot be written is found before the work and not after it.

    Args:
        path: the output.
        force: whether it may replace an existing file.
        suffix: how its name must end, since readers tell formats by it; empty for any.

    Raises:
        OutputError: naming the output and the reason.
    """
    path = Path(path)
    require_utf8(path, OutputError)
    if path.is_dir():
        raise OutputError(f"{path} is a folder; give a file")
    if suffix and path.suffix != suffix:
        raise OutputError(f"{path} must end in {suffix}")
    if path.exists() and not force:
        raise OutputError(f"{path} exists; give another --output, or --force to replace it")
    partial = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        partial.touch(exist_ok=False)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        if isinstance(error, VisionMLPError):
            raise
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_file(path: Path, error: type[VisionMLPError] = CheckpointError) -> Iterator[Path]:
    """A file beside ``path`` that takes its place when the block succeeds, so that a crash leaves the old file.

    Args:
        path: the file; it may exist.
        error: what to raise if it cannot be written.
    """
    require_utf8(path, error)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.touch()
        mode = partial.stat().st_mode  # as the user's umask has it; safetensors would keep others out
        yield partial
        partial.chmod(mode)
        sync(partial)  # a rename may reach the disk before the data does
        os.replace(partial, path)
    except VisionMLPError:  # some are OSErrors too
        raise
    except (OSError, SafetensorError) as reason:
        raise error(f"cannot write {path}: {getattr(reason, 'strerror', None) or reason}") from reason
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what kills in the middle of a write leave in a folder: files of `whole_file`, and safetensors' own.

    Raises:
        RunFolderError: if one cannot be removed.
    """
    for path in folder.iterdir():
        if re.fullmatch(r"\.(.+\.partial|tmp\w{6})", path.name) and path.is_file():
            with writing(path):
                path.unlink(missing_ok=True)


def require_utf8(path: Path, error: type[VisionMLPError]) -> None:
    """Refuse a path that safetensors and the runtimes cannot open, before any work is done for it."""
    if (printed := os.fsencode(path).decode(errors="replace")) != str(path):
        raise error(f"the path {printed} is not UTF-8, which checkpoints need; rename the folder or file")


def write_beside(path: Path, content: bytes) -> None:
    """Write a file of a run so that at any moment the old or the new one is there, complete.

    Raises:
        RunFolderError: if it cannot be written.
    """
    with whole_file(path, RunFolderError) as partial:
        partial.write_bytes(content)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError (disk full, read-only, ...) into one line about ``path``.

    Raises:
        RunFolderError: in its place.
    """
    try:
        yield
    except VisionMLPError:  # some are OSErrors too
        raise
    except OSError as error:
        raise RunFolderError(f"cannot write {path}: {error.strerror or error}") from error


def sync(path: Path) -> None:
    """Wait until a file is on the disk, before another one says that it is there."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
