"""Graphs in OpenVINO, from a file or a model of its own, with large batches in parts."""

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from visionmlp.deploy.division import DividedCall, part_of, thread_count
from visionmlp.deploy.graphs import ExportError
from visionmlp.deploy.metadata import RT_INFO_KEY, Dtype, ExportMetadata
from visionmlp.deploy.session import Call, Session
from visionmlp.errors import CheckpointError, require

if TYPE_CHECKING:
    import openvino


@functools.cache
def _core() -> Any:
    core = require("openvino", extra="openvino").Core()
    # else a file that is written to would change what runs
    core.set_property({"ENABLE_MMAP": False})
    return core


def open_openvino(path: Path, threads: int | None) -> Session:
    """A file of OpenVINO or ONNX with our metadata; see `visionmlp.deploy.runtimes.open_session`."""
    core = _core()
    try:
        model = core.read_model(path)
        group = "framework" if path.suffix == ".onnx" else RT_INFO_KEY
        keys = [field.name for field in dataclasses.fields(ExportMetadata) if model.has_rt_info([group, field.name])]
        text = {key: str(model.get_rt_info([group, key]).value) for key in keys}
    except (RuntimeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"OpenVINO cannot load {path}: {_last_line(error)}") from error
    metadata = ExportMetadata.from_text(text, path)
    return Session(metadata, openvino_session_call(model, metadata.dtype, threads))


def openvino_session_call(model: "openvino.Model", dtype: Dtype, threads: int | None, *, divided: bool = False) -> Call:
    """`openvino_call`; of any batch size it divides large ones by itself, and then compiles the graph once more."""
    is_dynamic = model.inputs[0].partial_shape[0].is_dynamic
    if threads == 1 or not is_dynamic:
        return openvino_call(model, dtype, threads, divided=divided or is_dynamic)
    whole = openvino_call(model, dtype, threads)
    parts = functools.cache(lambda: openvino_call(model, dtype, threads, divided=True, whole=whole))

    def call(images: np.ndarray) -> np.ndarray:
        is_whole = part_of(len(images), threads) == len(images)
        return (whole if is_whole else parts())(images)

    return call


def openvino_call(
    model: "openvino.Model", dtype: Dtype, threads: int | None, *, divided: bool = False, whole: Call | None = None
) -> Call:
    """A graph of OpenVINO, compiled for the CPU.

    Args:
        model: the graph.
        dtype: what its products are computed in.
        threads: as in `visionmlp.deploy.runtimes.open_session`.
        divided: compute batches in parts of `part_of` images, each in a stream of one thread; the graph takes a part.
        whole: the same graph in one stream, which several are compared with where they compute in float32; compiled
            for that if None.

    Raises:
        ExportError: if it cannot be compiled; the call raises it too.
    """
    streams = thread_count(threads) if divided else 1
    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        # else it computes in bfloat16 wherever the CPU can
        "INFERENCE_PRECISION_HINT": "bf16" if dtype == "bf16" else "f32",
    }
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    if streams > 1:
        settings |= {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": streams}

    def compiled_requests() -> list[Any]:
        try:
            compiled = _core().compile_model(model, "CPU", settings)
            return [compiled.create_infer_request() for _ in range(streams)]
        except RuntimeError as error:
            raise ExportError(f"OpenVINO cannot compile this model: {_last_line(error)}") from error

    def size(batch: int) -> int:
        return part_of(batch, streams) if divided else batch

    requests = compiled_requests()
    parts = DividedCall([_request_call(request) for request in requests], size)
    if streams == 1:
        return parts

    checked: set[tuple[int, ...]] = set()
    lock = threading.Lock()

    def call(images: np.ndarray) -> np.ndarray:
        nonlocal requests, parts
        shape = (size(len(images)), *images.shape[1:])
        with lock:
            if shape not in checked:
                # a user's own may be NaN, or equal in all places
                part = np.random.default_rng(0).standard_normal(shape, np.float32)
                # below float32, other threads may round to other results
                expected = (whole or openvino_call(model, dtype, threads))(part) if dtype in _IN_FLOAT32 else None
                with parts.halted():
                    right = _right_requests(requests, compiled_requests, part, expected)
                if right is not requests:
                    requests, parts = right, DividedCall([_request_call(request) for request in right], size)
                    checked.clear()
                checked.add(shape)
            divided = parts
        return divided(images)

    return call


_IN_FLOAT32: tuple[Dtype, ...] = ("float32", "fp16")
"""What float16 holds are weights."""


def _request_call(request: Any) -> Call:
    def call(images: np.ndarray) -> np.ndarray:
        with _explained(images):
            request.start_async([images], share_inputs=True)
            request.wait()
        return np.array(request.get_output_tensor(0).data)  # whose memory the next call overwrites

    return call


@contextlib.contextmanager
def _explained(images: np.ndarray) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        shape = images.shape[1:]
        raise ExportError(f"OpenVINO cannot run this model at images of {shape}: {_last_line(error)}") from error


_COMPILATIONS = 8


def _right_requests(
    requests: list[Any], compile_again: Callable[[], list[Any]], part: np.ndarray, expected: np.ndarray | None
) -> list[Any]:
    """These requests, or those of the first compilation whose streams all compute the same, and what one stream does.

    OpenVINO 2026.4 makes the graphs of its streams at the same time, and now and then (RepMLPNet: one compilation of
    six) one of them gets wrong weights for a small product, for good; its half of every batch is off by up to 0.8 of
    the largest output. Compiled again, it is right.
    """
    for _ in range(_COMPILATIONS):
        if _agree(requests, part, expected):
            return requests
        requests = compile_again()
    raise ExportError("OpenVINO's streams compute different results on this machine; give one thread")


def _agree(requests: list[Any], part: np.ndarray, expected: np.ndarray | None) -> bool:
    """Whether all streams, at the same time, compute the same, which is also ``expected`` if that is given."""
    with _explained(part):
        try:
            for request in requests:
                request.start_async([part], share_inputs=True)
        finally:
            # all of them: none may run on
            errors = [error for request in requests if (error := _error_of(request)) is not None]
        if errors:
            raise errors[0]
    results = [request.get_output_tensor(0).data for request in requests]
    right = results[0] if expected is None else expected
    bound = 1e-3 * np.abs(right).max(initial=0.0, where=np.isfinite(right))
    return all(np.allclose(right, result, rtol=0, atol=bound, equal_nan=True) for result in results)


def _error_of(request: Any) -> RuntimeError | None:
    try:
        request.wait()
    except RuntimeError as error:
        return error
    return None


def _last_line(error: Exception) -> str:
    """Of OpenVINO's messages the last line says what happened; those before say where in its code."""
    return [line.strip() for line in str(error).splitlines() if line.strip()][-1]
