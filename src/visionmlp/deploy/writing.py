"""Exported files: how each format is written, and how the files of one model appear together or not at all."""

import contextlib
import errno
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.export import ExportedProgram

from visionmlp.deploy.graphs import quiet
from visionmlp.deploy.metadata import PROGRAM_ENTRY, RT_INFO_KEY, ExportMetadata
from visionmlp.errors import CheckpointError, VisionMLPError, require
from visionmlp.files import OutputError, beside, require_utf8

if TYPE_CHECKING:
    import openvino

ONE_FILE = 3 << 29
"""Bytes of the largest weights that an ONNX file holds itself. Protocol buffers end at 2 GiB, graph included."""


@contextlib.contextmanager
def whole_output(output: Path, *, force: bool, suffix: str, companions: Sequence[str] = ()) -> Iterator[Path]:
    """A file in a new folder beside ``output``, under the same name; when the block succeeds, it and all files that
    were written beside it take their places.

    At no time does an old file stand beside a new companion: it is removed before, and comes last.

    Args:
        output: the file that the others belong to.
        force: whether existing files may be replaced.
        suffix: how its name must end.
        companions: suffixes of files that will be there too, so that existing ones are found before the work; others
            may come.

    Raises:
        OutputError: if a file exists, or cannot be written.
    """
    placed: list[Path] = []
    try:
        with beside(output, force=force, suffix=suffix) as partial:
            for companion in companions:
                _check_free(output.with_suffix(companion), force)
            with tempfile.TemporaryDirectory(prefix=f".{output.stem}.", dir=output.parent) as folder:
                staged = Path(folder) / output.name
                try:
                    yield staged
                except CheckpointError as error:  # names the file that it was told to write
                    raise OutputError(str(error).replace(str(staged), str(output))) from error
                mode = partial.stat().st_mode  # as the user's umask has it; some writers keep others out
                others = {path: output.with_name(path.name) for path in Path(folder).iterdir() if path != staged}
                for target in others.values():
                    _check_free(target, force)
                if others:
                    output.unlink(missing_ok=True)
                for path, target in others.items():
                    path.chmod(mode)
                    os.replace(path, target)
                    placed.append(target)
                staged.chmod(mode)
                os.replace(staged, partial)
    except BaseException:
        # without the file that describes them they are no model
        for target in placed:
            target.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def whole_folder(output: Path, *, force: bool, mark: str) -> Iterator[Path]:
    """A new folder beside ``output`` that takes its place when the block succeeds and is removed when it fails.

    Args:
        output: the folder.
        force: whether an existing one may be replaced.
        mark: file that each such folder has; one without it is another's, and never replaced.

    Raises:
        OutputError: if it exists, or cannot be written.
    """
    require_utf8(output, OutputError)
    _check_free(output, force)
    if output.exists() and not (output / mark).is_file():
        raise OutputError(f"{output} exists and was not written by export; give another --output")
    partial = output.absolute().with_name(f".{output.absolute().name}.{os.getpid()}")
    old = partial.with_name(f"{partial.name}.old")
    try:
        partial.mkdir()
        yield partial
        if output.exists():
            output.rename(old)
        partial.rename(output)
    except OSError as error:
        if isinstance(error, VisionMLPError):
            raise
        raise OutputError(f"cannot write {output}: {error.strerror or error}") from error
    finally:
        if old.exists() and not output.exists():
            old.rename(output)
        for folder in (partial, old):
            shutil.rmtree(folder, ignore_errors=True)


def _check_free(path: Path, force: bool) -> None:
    if path.exists() and not force:
        raise OutputError(f"{path} exists; give another --output, or --force to replace it")


def save_program(program: ExportedProgram, path: Path, metadata: ExportMetadata) -> None:
    """Write PyTorch's graph."""
    # not into the file: on a full disk PyTorch's writer ends the process when it is destroyed
    buffer = io.BytesIO()
    with quiet():
        torch.export.save(program, buffer, extra_files={PROGRAM_ENTRY: json.dumps(metadata.to_text())})
    path.write_bytes(buffer.getbuffer())


def save_onnx(program: torch.onnx.ONNXProgram, path: Path, metadata: ExportMetadata | None = None) -> None:
    """Write an ONNX graph with the metadata in its ``metadata_props``; weights over `ONE_FILE` lie beside it, in
    ``.onnx.data``."""
    if metadata is not None:
        program.model.metadata_props.update(metadata.to_text())
    weights = [value.const_value for value in program.model.graph.initializers.values()]
    size = sum(weight.nbytes for weight in weights if weight is not None)
    program.save(path, external_data=size > ONE_FILE)


def save_openvino(model: "openvino.Model", path: Path, metadata: ExportMetadata) -> None:
    """Write an OpenVINO model, ``.xml`` and ``.bin``, with the metadata in its ``rt_info``."""
    openvino = require("openvino", extra="openvino")
    for key, value in metadata.to_text().items():
        model.set_rt_info(value, [RT_INFO_KEY, key])
    try:
        openvino.save_model(model, path, compress_to_fp16=metadata.dtype == "fp16")
    except RuntimeError as error:  # its streams do not say more
        raise OSError(errno.EIO, "OpenVINO cannot write its weights; is the disk full?") from error
