"""Checkpoint files that appear whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from visionmlp.errors import CheckpointError


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file beside ``path`` that takes its place when the block succeeds, so that a crash leaves the old file.

    Raises:
        CheckpointError: if it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.touch()
        mode = partial.stat().st_mode  # as the user's umask has it; safetensors would keep others out
        yield partial
        partial.chmod(mode)
        with partial.open("rb") as written:
            os.fsync(written.fileno())  # a rename may reach the disk before the data does
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write {path}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
