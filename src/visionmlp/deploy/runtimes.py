"""What runs exported models: ONNX Runtime, OpenVINO, PyTorch and AOTInductor, from a file or a model in memory."""

import copy
import json
import logging
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from visionmlp.deploy import aotinductor
from visionmlp.deploy.division import part_of
from visionmlp.deploy.graphs import example_images, export_program, exporters_lock, onnx_program, openvino_model
from visionmlp.deploy.in_onnxruntime import onnx_call, open_onnx
from visionmlp.deploy.in_openvino import open_openvino, openvino_session_call
from visionmlp.deploy.metadata import PROGRAM_ENTRY, Dtype, ExportMetadata, metadata_of
from visionmlp.deploy.session import Call, Session
from visionmlp.engine.config import MOST_THREADS
from visionmlp.errors import CheckpointError, InvalidConfig
from visionmlp.layers.fusible import reparameterize
from visionmlp.models.backbone import Backbone
from visionmlp.models.checkpoint import CheckpointInfo

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
        return open_onnx(path, threads)
    return open_openvino(path, threads)


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
    batch = part_of(len(images), threads) if runtime in ("onnxruntime", "openvino") else len(images)
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
    # folded in float32 too
    deployed = cast("Backbone", reparameterize(copy.deepcopy(model).float()))
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
        return onnx_call(onnx_program(program), threads, divided=divided)
    return openvino_session_call(openvino_model(program), dtype, threads, divided=divided)


def check_threads(threads: int | None) -> None:
    """Raise InvalidConfig for fewer than one, or more than any machine has."""
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise InvalidConfig(f"threads must be at least 1 and at most {MOST_THREADS}, got {threads}")


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
    with exporters_lock:  # an environment variable is the process's
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
