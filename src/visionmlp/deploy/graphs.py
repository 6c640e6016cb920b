"""A model as a graph: PyTorch's exported program, and from it ONNX and OpenVINO.

All graphs take ``images`` (B, C, H, W) and give ``logits`` (B, classes), or (B, classes, H, W) for segmentation, both
float32, whatever they compute in.
"""

import contextlib
import dataclasses
import io
import logging
import math
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from visionmlp.deploy.networks import Network, backbone_of, has_windows
from visionmlp.errors import InvalidConfig, VisionMLPError, require
from visionmlp.models.backbone import Backbone
from visionmlp.ops.eager import graph_of_images

if TYPE_CHECKING:
    import openvino

Batch = int | Literal["dynamic"]

_LOGGERS = (
    "torch.onnx",
    "torch.export",
    "torch.fx.experimental.symbolic_shapes",
    "torch.utils.cpp_extension",
    "torch._inductor",
    "onnxscript",
    "onnx_ir",
)


class ExportError(VisionMLPError):
    """The exported graph does not compute what the model computes, or cannot be made or run."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sides:
    """Image sides that a graph of dynamic size takes: multiples of a step."""

    step: int
    """Pixels."""
    least: int
    """Smallest side, pixels."""

    def fits(self, side: int) -> bool:
        """Whether the graph takes images of this height or width."""
        return side >= self.least and side % self.step == 0

    def fitting(self, side: int) -> int:
        """The smallest side that fits, of those that are not smaller."""
        return max(self.least, -(-side // self.step) * self.step)


def dynamic_sides(network: Network) -> Sides:
    """Image sides that one graph of this model can take.

    Multiples of the model's step: padding that depends on the rest would be fixed when the graph is made.

    Raises:
        InvalidConfig: for a model that takes one size, and for windows.
    """
    model = backbone_of(network)
    if has_windows(network):
        raise InvalidConfig(
            f"{model.name} takes larger images in windows, whose number a graph has to know; "
            "leave out dynamic size and give the input size that it will see"
        )
    if model.input_sizes == "fixed":
        height, width = model.config.img_size
        raise InvalidConfig(
            f"{model.name} has matrices over all positions and takes {height}x{width} only; leave out dynamic size"
        )
    step = model.size_step
    if not isinstance(network, Backbone):
        step = math.lcm(step, *network.levels.feature_info.reduction())
    return Sides(step=step, least=step * -(-max(2 * model.strides[-1], model.least_side) // step))


def example_images(network: Network, batch: Batch, sides: Sides | None, size: tuple[int, int]) -> Tensor:
    """Random images that a graph can be made with; of ``size`` unless that is dynamic."""
    height, width = size
    if sides is not None:
        # all different, and none the smallest: equal or special values would be taken for constants
        rows = max(height, sides.least) // sides.step + 1
        height, width = rows * sides.step, (rows + 1) * sides.step
    return torch.randn(2 if batch == "dynamic" else batch, backbone_of(network).in_chans, height, width)


def export_program(
    model: nn.Module, images: Tensor, *, batch: Batch, sides: Sides | None = None, as_images: bool = False
) -> ExportedProgram:
    """PyTorch's graph of a model.

    Args:
        model: in evaluation mode, on the CPU, in the dtype that it is to compute in.
        images: float32, of a size and number that the graph will take.
        batch: "dynamic", or the one batch size.
        sides: for a graph of dynamic size.
        as_images: see `visionmlp.ops.eager.graph_of_images`.

    Raises:
        ExportError: if PyTorch cannot.
    """
    shapes = {}
    if batch == "dynamic":
        shapes[0] = Dim("batch", min=1, max=2**31 - 1)
    if sides is not None:
        least = sides.least // sides.step
        shapes |= {2: sides.step * Dim("rows", min=least), 3: sides.step * Dim("columns", min=least)}
    dtype = next(model.parameters()).dtype
    module = model if dtype == torch.float32 else _Float32Interface(model, dtype).eval()
    try:
        with quiet(), torch.no_grad(), graph_of_images() if as_images else contextlib.nullcontext():
            return torch.export.export(module, (images,), dynamic_shapes=(shapes,) if shapes else None, strict=False)
    except (RuntimeError, AssertionError) as error:
        raise ExportError(f"PyTorch cannot export this model: {first_line(error)}") from error


def _plain_batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    del momentum
    scale = (variance + eps).rsqrt() * (1 if weight is None else weight)
    shift = (0 if bias is None else bias) - mean * scale
    shape = [1, -1] + [1] * (x.dim() - 2)
    return x * scale.view(shape) + shift.view(shape), x.new_empty(0), x.new_empty(0)


def _plain_addcmul(x: Tensor, a: Tensor, b: Tensor, *, value: float = 1) -> Tensor:
    return x + value * (a * b)


def _plain_baddbmm(x: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return beta * x + alpha * torch.bmm(a, b)


_PLAIN_OPERATORS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten._native_batch_norm_legit_no_training.default: _plain_batch_norm,
    torch.ops.aten.addcmul.default: _plain_addcmul,
    torch.ops.aten.baddbmm.default: _plain_baddbmm,
}
"""For operators that PyTorch 2.6 cannot take to ONNX: the first in any model, the others where they broadcast over a
dynamic batch."""


def onnx_program(
    program: ExportedProgram,
    *,
    opset: int | None = None,
    inputs: Sequence[str] = ("images",),
    outputs: Sequence[str] = ("logits",),
) -> torch.onnx.ONNXProgram:
    """The graph in ONNX.

    Args:
        program: from `export_program`.
        opset: operator set; None is PyTorch's choice.
        inputs: names.
        outputs: names.

    Raises:
        ExportError: for an operator set that cannot be had.
        MissingExtra: without the packages of the ``export`` extra.
    """
    require("onnxscript", extra="export")
    try:
        with quiet(), torch.no_grad():
            if torch.__version__ < "2.7":
                program = program.run_decompositions(_PLAIN_OPERATORS)
            result = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                opset_version=opset,
                input_names=list(inputs),
                output_names=list(outputs),
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ExportError(f"PyTorch cannot export this model: {first_line(error)}") from error
    assert result is not None
    if torch.__version__ < "2.7":
        _forget_shapes(result)
    written = result.model.opset_imports.get("")
    if opset is not None and written != opset:
        # the exporter goes on with the nearest that it can write
        raise ExportError(f"PyTorch cannot export to opset {opset}, it gives {written}; nothing was written")
    return result


def _forget_shapes(program: torch.onnx.ONNXProgram) -> None:
    """Those of numbers alone: PyTorch 2.6 notes some of the example's batch, and ONNX Runtime believes it."""
    outputs = set(program.model.graph.outputs)
    for node in program.model.graph:
        for value in node.outputs:
            if value not in outputs and value.shape is not None and all(isinstance(side, int) for side in value.shape):
                value.shape = None


def openvino_model(program: ExportedProgram) -> "openvino.Model":
    """The graph in OpenVINO.

    Args:
        program: from `export_program`, of a model in float32 or float16.

    Raises:
        ExportError: if OpenVINO lacks an operator.
        MissingExtra: without OpenVINO.
    """
    openvino = require("openvino", extra="openvino")
    try:
        with quiet(), torch.no_grad():
            model = openvino.convert_model(program)
            # the converter drops all sizes, known ones too
            (images,) = (node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs)
            model.reshape([side if isinstance(side, int) else -1 for side in images.meta["val"].shape])
    except Exception as error:  # its converter raises what its parts raise
        raise ExportError(f"OpenVINO cannot take this model: {first_line(error)}") from error
    model.input(0).get_tensor().set_names({"images"})
    model.output(0).get_tensor().set_names({"logits"})
    return model


class _Float32Interface(nn.Module):
    """Takes and gives float32, whatever the model computes in."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self.dtype = dtype

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to logits."""
        return self.model(images.to(self.dtype)).float()


def first_line(error: Exception) -> str:
    """What happened; of messages that tell a story, the beginning."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


exporters_lock = threading.RLock()
"""Held by whoever calls exporters: they, and what quiets them, change the state of the process."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what exporters report on standard output, in logs and as warnings; other threads' exports wait."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    with exporters_lock:
        levels = [logger.level for logger in loggers]
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
