"""Output files that appear whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from visionmlp.errors import VisionMLPError


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
