"""What runs exported models: ONNX Runtime, OpenVINO, PyTorch and AOTInductor, from a file or a model in memory."""

import contextlib
import copy
import dataclasses
import functools
import json
import logging
import os
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from visionmlp.deploy import aotinductor
from visionmlp.deploy.division import DividedCall, part_of
from visionmlp.deploy.graphs import ExportError, example_images, export_program, onnx_program, openvino_model
from visionmlp.deploy.metadata import PROGRAM_ENTRY, RT_INFO_KEY, Dtype, ExportMetadata, metadata_of
from visionmlp.deploy.session import Call, Session
from visionmlp.deploy.writing import save_onnx
from visionmlp.engine.config import MOST_THREADS
from visionmlp.errors import CheckpointError, InvalidConfig, require
from visionmlp.layers.fusible import reparameterize
from visionmlp.models.backbone import Backbone
from visionmlp.models.checkpoint import CheckpointInfo

if TYPE_CHECKING:
    import openvino

Runtime = Literal["torch", "onnxruntime", "openvino", "aotinductor"]
"""What runs a file."""
ExportedRuntime = Literal["onnxruntime", "openvino", "aotinductor"]
"""What runs a graph instead of PyTorch's operators."""
GraphRuntime = Literal["onnxruntime", "openvino", "aotinductor", "pt2"]
"""What runs a graph made in memory; "pt2" is PyTorch with its own exported program."""
RUNTIMES: dict[str, tuple[Runtime, ...]] = {
    ".onnx": ("onnxruntime", "openvino"),
    ".xml": ("openvino",),
    ".pt2": ("torch", "aotinductor"),
}
"""By the suffix of a file, what can run it; the first does unless another is asked for. A ``.pt2`` file is either a
program or machine code, which nobody shall run without knowing."""


def open_session(path: Path, *, runtime: Runtime | None = None, threads: int | None = None) -> Session:
    """An exported file, ready to run on the CPU.

    Args:
        path: ``.onnx``, ``.xml`` (its ``.bin`` beside it) or ``.pt2``. PyTorch warns that a ``.pt2`` from a stranger
            can be made to run code; only the others are safe to take from anyone.
        runtime: what runs it; None is the first of `RUNTIMES`. "aotinductor" runs the machine code in the file.
        threads: CPU threads; None is the runtime's choice. For PyTorch it holds for the process.

    Raises:
        CheckpointError: if the file is missing, damaged or not of ours.
        InvalidConfig: for a runtime that cannot run it.
        MissingExtra: if the runtime is not installed.
    """
    path = Path(path)
    known = RUNTIMES.get(path.suffix, ())
    if not known:
        raise CheckpointError(f"{path}: exported files end in {', '.join(RUNTIMES)}")
    runtime = runtime or known[0]
    if runtime not in known:
        raise InvalidConfig(f"{path} cannot run in {runtime}; {path.suffix} files run in {' or '.join(known)}")
    check_threads(threads)
    if not path.is_file():
        raise CheckpointError(f"no file {path}")
    if path.suffix == ".pt2":
        return _open_pt2(path, compiled=runtime == "aotinductor", threads=threads)
    if runtime == "onnxruntime":
        return _open_onnx(path, threads)
    return _open_openvino(path, threads)


def session_of(model: nn.Module, images: Tensor, *, runtime: GraphRuntime, threads: int | None = None) -> Call:
    """A model as a graph for exactly these images' shape, unchecked; for benchmarks.

    Args:
        model: in evaluation mode, on the CPU; any module of images. In bfloat16, OpenVINO computes products in
            bfloat16 from the float32 values of the weights; ONNX Runtime cannot.
        images: an example (B, C, H, W); machine code does not notice when it gets others.
        runtime: what runs the graph.
        threads: as in `open_session`.

    Raises:
        ExportError: if it cannot be exported or run.
        MissingExtra: if the runtime is not installed.
    """
    check_threads(threads)
    dtype = next(model.parameters()).dtype
    half = runtime == "openvino" and dtype == torch.bfloat16
    batch = _part_of(len(images), threads) if runtime in ("onnxruntime", "openvino") else len(images)
    program = export_program(
        copy.deepcopy(model).float() if half else model,
        images[:batch].float(),
        batch=batch,
        as_images=runtime == "onnxruntime",
    )
    divided = batch < len(images)
    return _call_of(program, runtime, dtype="bf16" if half else "float32", threads=threads, divided=divided)


def session_of_model(
    model: Backbone, info: CheckpointInfo, *, runtime: ExportedRuntime, threads: int | None = None
) -> Session:
    """A model in a runtime without a file: its deploy form in float32, for any batch.

    Args:
        model: in evaluation mode, on the CPU; not changed.
        info: where it came from.
        runtime: what runs it.
        threads: as in `open_session`.

    Raises:
        ExportError: if it cannot be exported or run.
        MissingExtra: if the runtime is not installed.
    """
    check_threads(threads)
    deployed = copy.deepcopy(cast("Backbone", reparameterize(model))).float()
    size = deployed.config.img_size
    images = example_images(deployed, "dynamic", None, size)
    program = export_program(deployed, images, batch="dynamic", as_images=runtime == "onnxruntime")
    call = _call_of(program, runtime, dtype="float32", threads=threads)
    metadata = metadata_of(model, info, dtype="float32", batch="dynamic", sides=None, size=size, form="deploy")
    return Session(metadata, call)


def _call_of(
    program: ExportedProgram, runtime: GraphRuntime, *, dtype: Dtype, threads: int | None, divided: bool = False
) -> Call:
    """A graph in a runtime, without a file.

    ``dtype`` is OpenVINO's; ``divided`` says that the graph takes one part of the batches that the call will get.
    """
    if runtime == "pt2":
        return _torch_call(program.module(), threads)
    if runtime == "aotinductor":
        return _torch_call(aotinductor.compile_in_memory(program), threads)
    if runtime == "onnxruntime":
        session = functools.cache(functools.partial(_onnx_session_of, onnx_program(program)))
        return _onnx_call(session, threads, divided=divided)
    return _openvino_call(openvino_model(program), dtype, threads, divided=divided)


def check_threads(threads: int | None) -> None:
    """Raise InvalidConfig for fewer than one, or more than any machine has."""
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise InvalidConfig(f"threads must be at least 1 and at most {MOST_THREADS}, got {threads}")


def _count(threads: int | None) -> int:
    return threads or torch.get_num_threads()


def _part_of(batch: int, threads: int | None) -> int:
    """`part_of`; if PyTorch has one thread, a runtime that nobody told to may still use more, so nothing is divided."""
    return batch if threads is None and _count(threads) == 1 else part_of(batch, _count(threads))


# ONNX Runtime


def _open_onnx(path: Path, threads: int | None) -> Session:
    opened = _identity(path)

    @functools.cache
    def session(threads: int | None) -> Any:
        if _identity(path) != opened:
            raise CheckpointError(f"{path} is no longer the file that was opened; open it again")
        return onnx_session(path, threads, lambda text: CheckpointError(f"ONNX Runtime cannot load {path}: {text}"))

    metadata = ExportMetadata.from_text(session(threads).get_modelmeta().custom_metadata_map, path)
    return Session(metadata, _onnx_call(session, threads))


def _identity(path: Path) -> tuple[int, ...] | None:
    """What tells whether a file is still the same; None if it is gone."""
    with contextlib.suppress(OSError):
        status = path.stat()
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    return None


def _onnx_session_of(program: torch.onnx.ONNXProgram, threads: int | None) -> Any:
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


def _onnx_call(session: Callable[[int | None], Any], threads: int | None, *, divided: bool = False) -> Call:
    """A graph in ONNX Runtime, which divides large batches among sessions' calls of one thread.

    Args:
        session: the graph in the session of so many threads; large batches need the one of one thread, which is made
            when the first comes. If it cannot be made, they are computed whole.
        threads: as in `open_session`.
        divided: whether the graph takes one part of every batch, not the batch.
    """
    count = _count(threads)

    def size(batch: int) -> int:
        return _part_of(batch, threads)

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


# OpenVINO


@functools.cache
def _core() -> Any:
    return require("openvino", extra="openvino").Core()


def _open_openvino(path: Path, threads: int | None) -> Session:
    core = _core()
    try:
        model = core.read_model(path)
        group = "framework" if path.suffix == ".onnx" else RT_INFO_KEY
        keys = [field.name for field in dataclasses.fields(ExportMetadata) if model.has_rt_info([group, field.name])]
        text = {key: str(model.get_rt_info([group, key]).value) for key in keys}
    except (RuntimeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"OpenVINO cannot load {path}: {_last_line(error)}") from error
    metadata = ExportMetadata.from_text(text, path)
    return Session(metadata, _openvino_call(model, metadata.dtype, threads))


def openvino_call(
    model: "openvino.Model", dtype: Dtype, threads: int | None, *, divided: bool = False, whole: Call | None = None
) -> Call:
    """A graph of OpenVINO, compiled for the CPU.

    Args:
        model: the graph.
        dtype: what its products are computed in.
        threads: as in `open_session`.
        divided: compute batches in parts of `part_of` images, each in a stream of one thread; the graph takes a part.
        whole: the same graph in one stream, which several are compared with in float32; compiled for that if None.

    Raises:
        ExportError: if it cannot be compiled; the call raises it too.
    """
    streams = _count(threads) if divided else 1
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
    if streams == 1:
        return DividedCall([_request_call(requests[0])], size)

    parts: DividedCall | None = None
    lock = threading.Lock()

    def call(images: np.ndarray) -> np.ndarray:
        nonlocal parts
        with lock:
            if parts is None:
                part = images[: size(len(images))]
                # below float32, other threads may round to other results
                expected = (whole or openvino_call(model, dtype, threads))(part) if dtype == "float32" else None
                right = _right_requests(requests, compiled_requests, part, expected)
                parts = DividedCall([_request_call(request) for request in right], size)
        return parts(images)

    return call


def _request_call(request: Any) -> Call:
    def call(images: np.ndarray) -> np.ndarray:
        try:
            request.start_async([images], share_inputs=True)
            request.wait()
        except RuntimeError as error:
            shape = images.shape[1:]
            raise ExportError(f"OpenVINO cannot run this model at images of {shape}: {_last_line(error)}") from error
        return np.array(request.get_output_tensor(0).data)  # whose memory the next call overwrites

    return call


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
    try:
        for request in requests:
            request.start_async([part], share_inputs=True)
        for request in requests:
            request.wait()
    except RuntimeError:  # the call itself says what is wrong
        for request in requests:
            with contextlib.suppress(RuntimeError):
                request.wait()
        return True
    results = [request.get_output_tensor(0).data for request in requests]
    right = results[0] if expected is None else expected
    bound = 1e-3 * np.abs(right).max(initial=0.0, where=np.isfinite(right))
    return all(np.allclose(right, result, rtol=0, atol=bound, equal_nan=True) for result in results)


def _openvino_call(model: "openvino.Model", dtype: Dtype, threads: int | None, *, divided: bool = False) -> Call:
    """`openvino_call`; of any batch size it divides large ones by itself, and then compiles the graph once more."""
    is_dynamic = model.inputs[0].partial_shape[0].is_dynamic
    if threads == 1 or not is_dynamic:
        return openvino_call(model, dtype, threads, divided=divided or is_dynamic)
    whole = openvino_call(model, dtype, threads)
    parts = functools.cache(lambda: openvino_call(model, dtype, threads, divided=True, whole=whole))

    def call(images: np.ndarray) -> np.ndarray:
        is_whole = _part_of(len(images), threads) == len(images)
        return (whole if is_whole else parts())(images)

    return call


def _last_line(error: Exception) -> str:
    """Of OpenVINO's messages the last line says what happened; those before say where in its code."""
    return [line.strip() for line in str(error).splitlines() if line.strip()][-1]


# PyTorch


def _torch_call(run: Callable[[Tensor], Tensor], threads: int | None) -> Call:
    if threads is not None:
        torch.set_num_threads(threads)

    @torch.inference_mode()
    def call(images: np.ndarray) -> np.ndarray:
        return run(torch.from_numpy(images)).numpy()

    return call


def _open_pt2(path: Path, *, compiled: bool, threads: int | None) -> Session:
    holds_code = aotinductor.is_package(path)
    if holds_code and not compiled:
        raise InvalidConfig(
            f"{path} holds machine code, which runs when it is loaded; if you know who made it, give the runtime "
            "aotinductor"
        )
    if compiled and not holds_code:
        raise InvalidConfig(f"{path} holds no machine code for aotinductor; leave the runtime out")
    if holds_code:
        metadata = ExportMetadata.from_text(aotinductor.package_text(path), path)
        return Session(metadata, _torch_call(aotinductor.load_package(path), threads))
    program, text = _load_program(path)
    return Session(ExportMetadata.from_text(text, path), _torch_call(program.module(), threads))


def _load_program(path: Path) -> tuple[ExportedProgram, dict[str, str]]:
    """Program and metadata of a ``.pt2`` file, without unpickling anything but tensors."""
    extra_files = {PROGRAM_ENTRY: ""}
    logger = logging.getLogger("torch.export")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    forced = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(forced)
    os.environ[forced] = "1"
    try:
        with zipfile.ZipFile(path) as archive:
            if any("custom_obj" in name or "opaque_obj" in name for name in archive.namelist()):
                raise CheckpointError(f"{path} holds pickled objects, which could run code; it was not loaded")
        program = torch.export.load(path, extra_files=extra_files)
        text = dict(json.loads(extra_files[PROGRAM_ENTRY] or "{}"))
    except CheckpointError:
        raise
    except Exception as error:  # on damaged archives PyTorch raises whatever comes first
        raise CheckpointError(f"{path} is truncated or not a program of torch.export") from error
    finally:
        logger.setLevel(level)
        if before is None:
            del os.environ[forced]
        else:
            os.environ[forced] = before
    return program, text
