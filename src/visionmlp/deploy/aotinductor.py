"""Graphs compiled to machine code by PyTorch's AOTInductor: a shared library in a ``.pt2`` package.

Loading one runs its code, and it runs on processors that have what the one had that it was compiled on.
"""

import io
import json
import platform
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch._inductor
import torch._inductor.utils
from torch import Tensor
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import CppCompileError, InvalidCxxCompiler
from torch.export import ExportedProgram

from visionmlp.deploy.graphs import ExportError, first_line, quiet
from visionmlp.errors import CheckpointError, InvalidConfig

_TEXT, _PROCESSOR = "visionmlp_text", "visionmlp_processor"
_CODE, _DESCRIPTION = ".so", "_metadata.json"
# PyTorch 2.6 has the other name
_fresh_cache = getattr(torch._inductor.utils, "fresh_cache", None) or torch._inductor.utils.fresh_inductor_cache


def check_compiler(what: str = "AOTInductor", otherwise: str = "use OpenVINO") -> None:
    """Refuse to compile on a machine without a C++ compiler.

    Args:
        what: needs one.
        otherwise: what can be done without it.

    Raises:
        InvalidConfig: if there is none.
    """
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise InvalidConfig(
            f"{what} needs a C++ compiler and finds none; install g++ or clang++, or {otherwise}"
        ) from error


def compile_package(program: ExportedProgram, path: Path, text: Mapping[str, str]) -> None:
    """Write a graph as machine code, with its weights; takes from 10 seconds for a tiny model to minutes.

    Args:
        program: the graph; its products become oneDNN's, with packed weights.
        path: the package.
        text: what the package says about itself, see `package_text`.

    Raises:
        InvalidConfig: without a C++ compiler.
        ExportError: if it cannot be compiled.
        OSError: if it cannot be written.
    """
    check_compiler()
    settings = {
        "freezing": True,
        # else the number of threads is that of this moment
        "cpp.dynamic_threads": True,
        "aot_inductor.metadata": {_TEXT: json.dumps(dict(text)), _PROCESSOR: json.dumps(_processor())},
    }
    # not into the file: on a full disk PyTorch's writer ends the process when it is destroyed
    buffer = io.BytesIO()
    try:
        # its usual cache keeps code and weights for ever, under one name for all weights of an architecture
        with quiet(), torch.no_grad(), _fresh_cache():
            torch._inductor.aoti_compile_and_package(program, package_path=buffer, inductor_configs=settings)
    except (CppCompileError, RuntimeError, AssertionError, OSError) as error:  # OSError: the disk is full
        raise ExportError(f"AOTInductor cannot compile this model: {first_line(error)}") from error
    path.write_bytes(buffer.getbuffer())


def is_package(path: Path) -> bool:
    """Whether a ``.pt2`` file holds machine code, not a program of torch.export; nothing of it is loaded.

    Raises:
        CheckpointError: if it is neither.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(_CODE) for name in archive.namelist())
    except Exception as error:  # damaged archives raise whatever comes first
        raise CheckpointError(f"{path} is truncated, or neither a program of torch.export nor machine code") from error


def package_text(path: Path) -> dict[str, str]:
    """What `compile_package` was told to write into a package; none of its code is run.

    Raises:
        CheckpointError: if it is damaged or says nothing, or was compiled for a processor that has more than this one.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():  # code that is not what was written would not fail, but crash
                raise zipfile.BadZipFile(damaged)
            entries: dict[str, str] = {}
            for name in archive.namelist():
                if name.endswith(_DESCRIPTION):
                    entries |= dict(json.loads(archive.read(name)))
        text = dict(json.loads(entries[_TEXT]))
        processor = {str(name) for name in json.loads(entries[_PROCESSOR])}
    except Exception as error:  # damaged archives raise whatever comes first
        raise CheckpointError(f"{path} is truncated or was not written by visionmlp export") from error
    if lacking := sorted(processor - set(_processor())):
        raise CheckpointError(
            f"{path} was compiled for another processor, with {', '.join(lacking)}; export the model on this machine"
        )
    return text


def load_package(path: Path) -> Callable[[Tensor], Tensor]:
    """The model in a package. **This runs its code**: as with any program, know who made it.

    Raises:
        CheckpointError: if it cannot be loaded.
    """
    try:
        with quiet():
            return torch._inductor.aoti_load_package(str(path))
    except Exception as error:  # damaged archives raise whatever comes first
        raise CheckpointError(f"{path} is truncated or no package of AOTInductor") from error


def compile_in_memory(program: ExportedProgram) -> Callable[[Tensor], Tensor]:
    """A graph as machine code in memory; errors as in `compile_package`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "compiled.pt2"
        compile_package(program, path, {})
        return load_package(path)


def _processor() -> list[str]:
    """What machine code may rely on here: system, architecture, and the processor's instruction sets."""
    known = getattr(torch.cpu, "get_capabilities", dict)()  # since PyTorch 2.10
    sets = [name for name, value in known.items() if value is True] or [torch.backends.cpu.get_cpu_capability()]
    return [platform.system(), platform.machine(), *sorted(sets)]
