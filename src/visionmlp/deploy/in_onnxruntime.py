"""Graphs in ONNX Runtime, from a file or a program, with large batches in parts."""

import contextlib
import functools
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from visionmlp.deploy.division import DividedCall, part_of, thread_count
from visionmlp.deploy.graphs import ExportError
from visionmlp.deploy.metadata import ExportMetadata
from visionmlp.deploy.session import Call, Session
from visionmlp.deploy.writing import save_onnx
from visionmlp.errors import CheckpointError, require


def open_onnx(path: Path, threads: int | None) -> Session:
    """An ONNX file with our metadata; see `visionmlp.deploy.runtimes.open_session`."""
    opened = _identity(path)

    @functools.cache
    def session(threads: int | None) -> Any:
        if _identity(path) != opened:
            raise CheckpointError(f"{path} is no longer the file that was opened; open it again")
        return onnx_session(path, threads, lambda text: CheckpointError(f"ONNX Runtime cannot load {path}: {text}"))

    metadata = ExportMetadata.from_text(session(threads).get_modelmeta().custom_metadata_map, path)
    return Session(metadata, _call_of(session, threads))


def onnx_call(program: torch.onnx.ONNXProgram, threads: int | None, *, divided: bool = False) -> Call:
    """A graph without a file.

    Args:
        program: the graph.
        threads: as in `visionmlp.deploy.runtimes.open_session`.
        divided: whether the graph takes one part of every batch, not the batch.

    Raises:
        ExportError: if it cannot be loaded; the call raises it too.
    """
    return _call_of(functools.cache(functools.partial(_session_of, program)), threads, divided=divided)


def _identity(path: Path) -> tuple[int, ...] | None:
    """What tells whether a file is still the same; None if it is gone."""
    with contextlib.suppress(OSError):
        status = path.stat()
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    return None


def _session_of(program: torch.onnx.ONNXProgram, threads: int | None) -> Any:
    """By way of a file, since in memory a graph ends at 2 GiB."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "graph.onnx"
        save_onnx(program, path)
        return onnx_session(
            path, threads, lambda text: ExportError(f"ONNX Runtime cannot load the exported model: {text}")
        )


def onnx_session(path: Path, threads: int | None, reason: Callable[[str], Exception]) -> Any:
    """An ONNX graph of any kind in ONNX Runtime; ``reason`` makes an error of its message."""
    runtime = require("onnxruntime", extra="export")
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    if threads is not None:
        options.intra_op_num_threads = threads
    with explained(reason):
        return runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _call_of(session: Callable[[int | None], Any], threads: int | None, *, divided: bool = False) -> Call:
    """A graph in ONNX Runtime, which divides large batches among sessions' calls of one thread.

    Args:
        session: the graph in the session of so many threads; large batches need the one of one thread, which is made
            when the first comes. If it cannot be made, they are computed whole.
        threads: as in `onnx_call`.
        divided: as in `onnx_call`.
    """
    count = thread_count(threads)

    def size(batch: int) -> int:
        return part_of(batch, threads)

    if divided:
        return DividedCall([_run_of(session(1))] * count, size)
    whole = session(threads)
    call_whole = _run_of(whole)
    if isinstance(whole.get_inputs()[0].shape[0], int):
        return call_whole

    @functools.cache
    def call_parts() -> Call:
        try:
            return DividedCall([_run_of(session(1))] * count, size)
        except (CheckpointError, ExportError, OSError):
            return call_whole

    # two threads make no second session for their first batches
    lock = threading.Lock()

    def call(images: np.ndarray) -> np.ndarray:
        if size(len(images)) == len(images):
            return call_whole(images)
        with lock:
            parts = call_parts()
        return parts(images)

    return call


def _run_of(session: Any) -> Call:
    name = session.get_inputs()[0].name

    def call(images: np.ndarray) -> np.ndarray:
        shape = images.shape[1:]
        with explained(lambda text: ExportError(f"ONNX Runtime cannot run this model at images of {shape}: {text}")):
            return session.run(None, {name: images})[0]

    return call


@contextlib.contextmanager
def explained(reason: Callable[[str], Exception]) -> Iterator[None]:
    """Turn ONNX Runtime's own errors, which share no base, into one line."""
    values = vars(require("onnxruntime", extra="export").capi.onnxruntime_pybind11_state).values()
    try:
        yield
    except tuple(value for value in values if isinstance(value, type) and issubclass(value, Exception)) as error:
        raise reason(" ".join(str(error).split())) from error
