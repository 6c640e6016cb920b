"""Export to ONNX, OpenVINO, PyTorch's program, machine code or a checkpoint; each file is run and compared before it
appears."""

import copy
import dataclasses
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from visionmlp.deploy.aotinductor import compile_package
from visionmlp.deploy.certificate import randomise, relative_error
from visionmlp.deploy.formats import RUNNERS, SUFFIXES, Form, Format, check_options, format_of
from visionmlp.deploy.graphs import (
    Batch,
    ExportError,
    Sides,
    dynamic_sides,
    example_images,
    export_program,
    onnx_program,
    openvino_model,
)
from visionmlp.deploy.metadata import Dtype, ExportMetadata, metadata_of
from visionmlp.deploy.networks import (
    Network,
    NetworkInfo,
    backbone_of,
    chosen_size,
    classifier_of,
    load_saved,
    save_network,
)
from visionmlp.deploy.quantize import quantize_onnx, quantize_openvino
from visionmlp.deploy.runtimes import open_session
from visionmlp.deploy.session import Call
from visionmlp.deploy.writing import save_onnx, save_openvino, save_program, whole_output
from visionmlp.errors import InvalidConfig
from visionmlp.layers.fusible import is_training_form, reparameterize
from visionmlp.models.checkpoint import CheckpointInfo

_TORCH_DTYPES: dict[Dtype, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}

LIMIT = 1e-4
"""Largest difference from PyTorch in float32 that passes, relative to the largest logit: rounding is near 1e-6, a wrong
graph near 1."""
ROUNDINGS = 4
"""In bf16 and fp16: how often as far from float32 as PyTorch's own model in that dtype. In float32 likewise, from
float64, for the rare model and image of which rounding alone makes more than `LIMIT`."""
FLOAT32_CEILING, LOWER_PRECISION_CEILING = 1e-2, 0.2
"""Never more: a model that rounds so much is no use, and a wrong graph could hide there."""
DAMPING = 0.7
"""Of random matrices: at full size RepMLPNet's gates else become switches, and an image that stands at one changes by a
tenth when float64 weights change by 6e-8."""
INT8_LIMIT = 0.7
"""Least correlation with the float32 logits over the calibration images; that of a wrong graph is near 0."""
CHECKED_BATCHES = (1, 5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """One comparison of a file with PyTorch in float32."""

    batch: int
    size: tuple[int, int]
    """Height and width, pixels."""
    error: float
    """Largest difference relative to the largest logit."""
    limit: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agreement:
    """A quantised file against the float32 graph on the calibration images."""

    images: int
    top1: float
    """Images for which both give the same class, percent."""
    correlation: float
    """Of the logits, each class's mean taken out."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What was written, and how far from PyTorch it is."""

    format: Format
    checks: list[Check]
    """For int8: of the float32 graph that was quantised."""
    random_checks: list[Check]
    """The same export with random weights; empty if the file itself has them."""
    sides: Sides | None
    agreement: Agreement | None
    files: list[Path]
    """The output, then what belongs to it."""


def export_model(
    model: Network,
    info: NetworkInfo,
    output: Path,
    *,
    format: Format | None = None,
    form: Form = "deploy",
    batch: Batch = "dynamic",
    dynamic_size: bool = False,
    input_size: tuple[int, int] | None = None,
    dtype: Dtype = "float32",
    calibration: Iterable[np.ndarray] | None = None,
    opset: int | None = None,
    force: bool = False,
) -> ExportReport:
    """Write a model as one file (OpenVINO: two), from ``images`` (B, C, H, W) to ``logits``, both float32.

    Logits of a classifier are (B, classes), of a segmentation network (B, classes, H, W).

    The file says task, model, form, dtype, class names, preprocessing and sizes, and appears only after it was run and
    gave the model's own outputs for random images. The same is done before with random weights, since a wrong graph
    could hide behind a zero classifier or tiny LayerScales. A model with fresh weights is exported with random ones
    itself (the model is changed).

    Args:
        model: in evaluation mode, on the CPU; taken in float32, whatever its precision.
        info: where it came from.
        output: its suffix tells the format: ``.onnx``, ``.xml`` (weights in ``.bin`` beside it), ``.pt2``,
            ``.safetensors``.
        format: checked against the suffix; "aotinductor" has to be given, as ``.pt2`` alone means a program. It is
            machine code for processors like this one, and needs a C++ compiler here.
        form: re-parameterised or as trained.
        batch: the one batch size that the graph takes, or "dynamic".
        dynamic_size: a graph for all sizes of `dynamic_sides`.
        input_size: height and width of the images that a graph of one size takes; None is what the model is built for,
            of a segmentation run the size of its crops.
        dtype: "fp16" is half precision throughout, in OpenVINO of the stored weights only; "bf16" likewise, in OpenVINO
            products in bfloat16 of float32 weights; "int8" is for classifiers and needs ``calibration``.
        calibration: images (N, C, H, W) float32, preprocessed as for evaluation.
        opset: ONNX operator set; None is PyTorch's choice.
        force: replace an existing file.

    Raises:
        ExportError: if the outputs differ, the model cannot be exported, or the runtime cannot run it.
        InvalidConfig: for a form that the model does not have, or a combination that no runtime can run.
        InvalidImageSize: for an input size that the model does not take.
        MissingExtra: if a package is not installed.
        OutputError: if the output exists, has another suffix or cannot be written.
    """
    output = Path(output)
    format = format_of(output, format)
    check_options(format, batch, dynamic_size, dtype, calibration is not None, opset, input_size=input_size)
    if dtype == "int8":
        classifier_of(model, info, "int8")
    if form == "training" and not is_training_form(model):
        raise InvalidConfig(f"{info.source} is in deploy form; its training form cannot be recovered")
    sides = dynamic_sides(model) if dynamic_size else None
    size = chosen_size(model, info, input_size)
    fresh = info.source == CheckpointInfo(model=info.model, form=info.form).source
    if fresh:
        _randomise(model)
    if next(model.parameters()).dtype != torch.float32:
        model = copy.deepcopy(model).float()
    plan = _Plan(info=info, format=format, form=form, batch=batch, sides=sides, size=size, dtype=dtype, opset=opset)
    companions = [".bin"] if format == "openvino" else []
    with whole_output(output, force=force, suffix=SUFFIXES[format], companions=companions) as staged:
        random_checks: list[Check] = []
        if not fresh and format != "safetensors":
            twin = copy.deepcopy(model)
            _randomise(twin)
            with tempfile.TemporaryDirectory() as folder:
                random_checks = plan.write(twin, Path(folder) / f"twin{output.suffix}")
        checks = plan.write(model, staged)
        agreement = None
        if calibration is not None:
            agreement = plan.quantise(model, staged, calibration)
        beside = sorted(path for path in staged.parent.iterdir() if path != staged)
    return ExportReport(
        format=format,
        checks=checks,
        random_checks=random_checks,
        sides=sides,
        agreement=agreement,
        files=[output, *(output.with_name(path.name) for path in beside)],
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Plan:
    """How a model is written and checked."""

    info: NetworkInfo
    format: Format
    form: Form
    batch: Batch
    sides: Sides | None
    size: tuple[int, int]
    dtype: Dtype
    opset: int | None

    def write(self, model: Network, path: Path) -> list[Check]:
        """Write a model in float32, in ``dtype`` but for int8, and compare the file with it.

        Raises:
            ExportError: if they differ.
        """
        reference = self._formed(model)
        cast_model = reference
        if self.dtype in _TORCH_DTYPES:
            cast_model = copy.deepcopy(reference).to(_TORCH_DTYPES[self.dtype])
        self._write_file(reference, cast_model, path)
        call = _opened(path, self.format, reference)
        return [self._check(call, reference, cast_model, images) for images in self._images(model)]

    def quantise(self, model: Network, path: Path, calibration: Iterable[np.ndarray]) -> Agreement:
        """Replace the file in float32, which is right, by one in int8.

        Raises:
            ExportError: if the outputs have nothing to do with each other.
        """
        images = [np.asarray(part, dtype=np.float32) for part in calibration]
        call = _opened(path, self.format, model)
        exact = np.concatenate([call(part) for part in images])
        with tempfile.TemporaryDirectory(prefix="float.", dir=path.parent, ignore_cleanup_errors=True) as folder:
            # moved, not overwritten: the runtime may still map them
            for file in [file for file in path.parent.iterdir() if file.is_file()]:
                file.rename(Path(folder) / file.name)
            if self.format == "onnx":
                quantize_onnx(Path(folder) / path.name, path, images)
            else:
                graph = quantize_openvino(openvino_model(self._program(self._formed(model))), images)
                save_openvino(graph, path, self._metadata(model))
        call = _opened(path, self.format, model)
        agreement = _agreement(exact, np.concatenate([call(part) for part in images]))
        if not agreement.correlation >= INT8_LIMIT:
            raise ExportError(
                f"in int8 the logits have a correlation of {agreement.correlation:.2f} with those in float32 on the "
                f"calibration images, limit {INT8_LIMIT}; nothing was written"
            )
        return agreement

    def _formed(self, model: Network) -> Network:
        return cast("Network", reparameterize(model)) if self.form == "deploy" else model

    def _program(self, model: Network) -> torch.export.ExportedProgram:
        images = example_images(model, self.batch, self.sides, self.size)
        as_images = self.format == "onnx" and self.dtype != "int8"  # int8 is calibrated for products
        return export_program(model, images, batch=self.batch, sides=self.sides, as_images=as_images)

    def _metadata(self, model: Network) -> ExportMetadata:
        return metadata_of(
            model,
            self.info,
            dtype=self.dtype,
            batch=self.batch,
            sides=self.sides,
            size=self.size,
            form=self.form,
        )

    def _write_file(self, reference: Network, cast_model: Network, path: Path) -> None:
        metadata = self._metadata(reference)
        if self.format == "safetensors":
            save_network(path, cast_model, self.info, metadata.preprocessing)
        elif self.format == "openvino":
            # it stores and computes in other precisions by itself
            save_openvino(openvino_model(self._program(reference)), path, metadata)
        elif self.format == "pt2":
            save_program(self._program(cast_model), path, metadata)
        elif self.format == "aotinductor":
            compile_package(self._program(cast_model), path, metadata.to_text())
        else:
            save_onnx(onnx_program(self._program(cast_model), opset=self.opset), path, metadata)

    def _images(self, model: Network) -> Iterator[Tensor]:
        """Random images: of each batch size to check, and of two sizes where that is dynamic."""
        generator = torch.Generator().manual_seed(0)
        sizes = [self.size]
        if self.sides is not None:
            step, least = self.sides.step, self.sides.least
            sizes = [(least, least + step), (least + 2 * step, least)]
        batches = CHECKED_BATCHES if self.batch == "dynamic" else (self.batch,)
        for size in sizes:
            for batch in batches:
                yield torch.randn(batch, backbone_of(model).in_chans, *size, generator=generator)

    def _check(self, call: Call, reference: Network, cast_model: Network, images: Tensor) -> Check:
        logits = torch.from_numpy(call(images.numpy()))
        limit = LIMIT
        with torch.inference_mode():
            exact = reference(images)
            error = relative_error(exact, logits)
            if cast_model is not reference:
                rounded = cast_model(images.to(next(cast_model.parameters()).dtype)).float()
                limit = min(max(limit, ROUNDINGS * relative_error(exact, rounded)), LOWER_PRECISION_CEILING)
            elif error > limit:
                exacter = copy.deepcopy(reference).double()(images.double())
                limit = min(max(limit, ROUNDINGS * relative_error(exacter, exact.double())), FLOAT32_CEILING)
        batch, _, height, width = images.shape
        if not error <= limit:
            raise ExportError(
                f"{RUNNERS[self.format]} gives other outputs than PyTorch at batch {batch}, {height}x{width}: "
                f"relative error {error:.1e}, limit {limit:.0e}; nothing was written"
            )
        return Check(batch=batch, size=(height, width), error=error, limit=limit)


def _randomise(model: Network) -> None:
    """Random weights and norm statistics, in place, of which float32 is sure."""
    randomise(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.squeeze().dim() > 1:
                parameter.mul_(DAMPING)


def _opened(path: Path, format: Format, like: Network) -> Call:
    """What a file that was written of a network computes."""
    if format != "safetensors":
        return open_session(path, runtime="aotinductor" if format == "aotinductor" else None)
    model = load_saved(path, like)
    dtype = next(model.parameters()).dtype

    @torch.inference_mode()
    def call(images: np.ndarray) -> np.ndarray:
        return model(torch.from_numpy(images).to(dtype)).float().numpy()

    return call


def _agreement(exact: np.ndarray, quantised: np.ndarray) -> Agreement:
    centred = [logits - logits.mean(0) for logits in (exact, quantised)]
    norms = [float(np.linalg.norm(logits)) for logits in centred]
    return Agreement(
        images=len(exact),
        top1=100 * float((exact.argmax(1) == quantised.argmax(1)).mean()),
        correlation=float((centred[0] * centred[1]).sum()) / max(norms[0] * norms[1], np.finfo(np.float32).tiny),
    )
