"""ONNX export that is compared with ONNX Runtime before the file appears."""

import contextlib
import copy
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Literal

import torch

from visionmlp.errors import InvalidConfig, VisionMLPError, require
from visionmlp.layers.fusible import is_training_form, reparameterize
from visionmlp.models.backbone import Backbone
from visionmlp.models.checkpoint import CheckpointInfo, default_preprocessing
from visionmlp.tools.certificate import randomise, relative_error
from visionmlp.tools.files import beside

LIMIT = 1e-4
"""Largest difference from ONNX Runtime that passes, relative to the largest logit: rounding is near 1e-6, a wrong graph
near 1."""

CHECKED_BATCHES = (1, 5)

Batch = int | Literal["dynamic"]


class ExportError(VisionMLPError):
    """The exported graph does not compute what the model computes, or cannot be made."""


def export_onnx(
    model: Backbone,
    info: CheckpointInfo,
    output: Path,
    *,
    form: Literal["deploy", "training"] = "deploy",
    batch: Batch = "dynamic",
    opset: int | None = None,
    force: bool = False,
) -> dict[int, float]:
    """Write a model as one ONNX file: input ``images`` (B, C, H, W), output ``logits`` (B, classes).

    The file carries ``class_names`` and ``preprocessing`` as JSON in its ``metadata_props``, and appears only after
    ONNX Runtime has given the model's own outputs for random images. A model with fresh weights is exported with
    random ones (the model is changed): zero classifiers and tiny LayerScales would let any graph pass.

    Args:
        model: in evaluation mode, on the CPU; in another precision than float32 it is converted first, so what is
            compared and written is float32.
        info: where it came from.
        output: ``.onnx`` file.
        form: re-parameterised or as trained.
        batch: the one batch size that the graph takes, or "dynamic".
        opset: ONNX operator set; None is PyTorch's choice.
        force: replace an existing file.

    Returns:
        Largest difference relative to the largest logit, for each batch size that was run.

    Raises:
        ExportError: if the outputs differ, PyTorch cannot export the model, or ONNX Runtime cannot run it.
        InvalidConfig: for a form that the model does not have, or an impossible batch size.
        MissingExtra: without the packages of the ``export`` extra.
        OutputError: if the output exists or cannot be written.
    """
    require("onnxscript", extra="export")
    runtime = require("onnxruntime", extra="export")
    if form == "training" and not is_training_form(model):
        raise InvalidConfig(f"{info.source} is in deploy form; its training form cannot be recovered")
    if batch != "dynamic" and batch < 1:
        raise InvalidConfig(f"batch must be 'dynamic' or at least 1, got {batch}")
    fresh = info.source == CheckpointInfo(model=info.model, form=info.form).source
    if fresh:
        randomise(model)
    if next(model.parameters()).dtype != torch.float32:
        model = copy.deepcopy(model).float()
    exported = reparameterize(model) if form == "deploy" else model
    assert isinstance(exported, Backbone)
    metadata = {
        "model": info.model,
        "form": form,
        "class_names": json.dumps(info.class_names),
        "preprocessing": json.dumps(info.preprocessing or default_preprocessing(model)),
    }
    with beside(output, force=force, suffix=".onnx") as partial:
        _write(exported, partial, batch, opset, metadata)
        errors: dict[int, float] = {}
        with _explained(runtime, "load the exported model"):
            session = runtime.InferenceSession(partial, providers=["CPUExecutionProvider"])
        for size in CHECKED_BATCHES if batch == "dynamic" else (batch,):
            images = torch.randn(size, model.config.in_chans, *model.config.img_size)
            with torch.inference_mode():
                reference = exported(images)
            with _explained(runtime, f"run the exported model at batch {size}"):
                (logits,) = session.run(None, {"images": images.numpy()})
            errors[size] = relative_error(reference, torch.from_numpy(logits))
            if not errors[size] <= LIMIT:
                raise ExportError(
                    f"ONNX Runtime gives other outputs than PyTorch at batch {size}: "
                    f"relative error {errors[size]:.1e}, limit {LIMIT:.0e}; nothing was written"
                )
    return errors


@contextlib.contextmanager
def _explained(runtime: ModuleType, action: str) -> Iterator[None]:
    """Turn ONNX Runtime's own errors, which share no base, into one line."""
    values = vars(runtime.capi.onnxruntime_pybind11_state).values()
    try:
        yield
    except tuple(value for value in values if isinstance(value, type) and issubclass(value, Exception)) as error:
        reason = " ".join(str(error).split())
        raise ExportError(f"ONNX Runtime cannot {action}: {reason}; nothing was written") from error


def _write(model: Backbone, path: Path, batch: Batch, opset: int | None, metadata: dict[str, str]) -> None:
    config = model.config
    # two, not one: torch.export takes a batch of one for a constant
    images = torch.randn(2 if batch == "dynamic" else batch, config.in_chans, *config.img_size)
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        # the exporter reports its steps on standard output
        with contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            program = torch.onnx.export(
                model,
                (images,),
                dynamo=True,
                verbose=False,
                opset_version=opset,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},) if batch == "dynamic" else None,
            )
            assert program is not None
            written = program.model.opset_imports.get("")
            if opset is not None and written != opset:
                # the exporter goes on with the nearest that it can write
                raise ExportError(f"PyTorch cannot export to opset {opset}, it gives {written}; nothing was written")
            program.model.metadata_props.update(metadata)
            program.save(path, external_data=False)
    except torch.onnx.errors.OnnxExporterError as error:
        raise ExportError(f"PyTorch cannot export this model: {str(error).splitlines()[0]}") from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
