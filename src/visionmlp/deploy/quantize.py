"""Post-training quantisation: matrix products and convolutions in int8, the rest in float32.

The range of every input of a product is measured on calibration images; weights have one scale for each output channel.
NNCF quantises for OpenVINO, ONNX Runtime for itself. docs/int8.md says what else was measured, and why it was left.

Without VNNI, processors add two products of an unsigned and a signed byte in 16 bits, and libraries shift signed left
operands by 128 to get unsigned ones. So right operands and kernels use 7 of their 8 bits: 2 * 255 * 64 still fits.
"""

import contextlib
import io
import logging
import math
import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from visionmlp.data.decode import decode
from visionmlp.data.seeding import derive_seed
from visionmlp.data.sources import open_evaluation_data
from visionmlp.data.transforms import Preprocessing
from visionmlp.errors import DataError, InvalidConfig, require

if TYPE_CHECKING:
    import openvino

CALIBRATION_IMAGES = 300
"""Images that ranges are measured on, if nothing else is said."""
MINIMUM_IMAGES = 8
"""Fewer say nothing about ranges."""

_PRODUCTS = ("Convolution", "GroupConvolution", "MatMul")
_SHAPE_OPERATIONS = ("Convert", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


def calibration_images(
    data: str,
    preprocessing: Mapping[str, Any],
    *,
    count: int = CALIBRATION_IMAGES,
    split: str = "train",
    root: Path | None = None,
    seed: int = 0,
) -> Iterator[np.ndarray]:
    """A random but fixed choice of a dataset's images, preprocessed as for evaluation.

    Args:
        data: folder or dataset name, as for evaluation.
        preprocessing: as in `CheckpointInfo`.
        count: how many; all of a smaller dataset.
        split: ``train``, ``validation`` or ``test``. Images that a model is then evaluated on must not calibrate it.
        root: where a named dataset lies.
        seed: of the choice.

    Yields:
        (1, C, H, W) float32. An image that cannot be read is replaced by the next of the choice.

    Raises:
        DataError: if the data cannot be opened, or too few of its images can be read.
        InvalidConfig: for a count below `MINIMUM_IMAGES`.
    """
    if count < MINIMUM_IMAGES:
        raise InvalidConfig(
            f"calibration needs at least {MINIMUM_IMAGES} images, better {CALIBRATION_IMAGES}; got {count}"
        )
    source = open_evaluation_data(data, split=split, root=root)
    evaluation = Preprocessing.from_saved(preprocessing)
    transform = evaluation.transform()
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(derive_seed(seed)))
    given = 0
    for index in order.tolist():
        notes: list[str] = []
        try:
            file = source.read(index)
            image = decode(file, evaluation.mode, warn=notes.append, exif_orientation=evaluation.exif_orientation)
        except Exception:  # a source may read from a disk or a library; the count below notices
            continue
        for note in notes:
            warnings.warn(f"{source.name(index)}: {note}", stacklevel=1)
        yield transform(image)[None].numpy()
        given += 1
        if given == count:
            return
    if given < MINIMUM_IMAGES:
        raise DataError(f"{data} has {given} readable images in its {split} split; calibration needs {MINIMUM_IMAGES}")


def quantize_openvino(model: "openvino.Model", images: Iterable[np.ndarray]) -> "openvino.Model":
    """A model whose products and convolutions take int8 inputs and weights.

    Left in float32: the classifier and the products that compute the weights of other products or of branches, since
    they cost next to nothing and errors in them reach every position.

    Args:
        model: one input (B, C, H, W), B fixed or dynamic; it is not changed.
        images: calibration images (N, C, H, W) float32, of any N; all are held in memory.

    Returns:
        Model of the same inputs and outputs.

    Raises:
        InvalidConfig: for too few images, or of another size than the model's.
        MissingExtra: without the packages of the ``int8`` extra.
    """
    require("openvino", extra="int8")
    # it would report every use over the network
    os.environ.setdefault("NNCF_CI", "1")
    nncf = require("nncf", extra="int8")
    advanced = require("nncf.quantization.advanced_parameters", extra="int8")
    ranges = require("nncf.quantization.range_estimator", extra="int8")
    shape = model.input(0).get_partial_shape()
    batch = 1 if shape[0].is_dynamic else shape[0].get_length()
    calibration = _batches(
        images, batch, tuple(None if side.is_dynamic else side.get_length() for side in list(shape)[1:])
    )
    with _quiet():
        quantised = nncf.quantize(
            model.clone(),
            nncf.Dataset(calibration),
            subset_size=len(calibration),
            # symmetric ranges: OpenVINO computes a matrix times an unsigned map, as in token mixing, in float32
            preset=nncf.QuantizationPreset.PERFORMANCE,
            ignored_scope=nncf.IgnoredScope(
                names=_float_products(model, calibration[0].shape),
                # sums too would be quantised, and errors in the residual stream are never repaired
                types=sorted({node.get_type_name() for node in model.get_ops()}.difference(_PRODUCTS)),
                validate=False,
            ),
            advanced_parameters=advanced.AdvancedQuantizationParameters(
                # constants in 7 bits
                overflow_fix=advanced.OverflowFix.ENABLE,
                # it takes the last axis of every product for its channels, and fails for matrices on the left
                disable_bias_correction=True,
                # the average of the images' ranges, NNCF's own choice, cuts off what is rare and large
                activations_range_estimator_params=ranges.RangeEstimatorParametersSet.MINMAX,
            ),
        )
    _widen_right_operands(quantised)
    return quantised


def quantize_onnx(source: Path, target: Path, images: Iterable[np.ndarray]) -> None:
    """Write an ONNX file whose products and convolutions take int8 weights of 7 bits and unsigned 8-bit inputs.

    Left in float32: the classifier and other products with one vector for each image, and those for which ONNX Runtime
    has no int8 kernel: token mixing that was exported as ``MatMul`` with its matrix on the left, and stacked matrices
    (experts), which have a scale for each channel.

    Args:
        source: ONNX file with one input (B, C, H, W), B fixed or dynamic; its weights may lie beside it.
        target: ONNX file to write, over what is there; it keeps the source's metadata, and has its weights where the
            source has them.
        images: as for `quantize_openvino`.

    Raises:
        InvalidConfig: as `quantize_openvino`.
        MissingExtra: without the packages of the ``export`` extra.
    """
    onnx = require("onnx", extra="export")
    quantization = require("onnxruntime.quantization", extra="export")
    graph = onnx.load(source, load_external_data=False).graph
    (entry,) = graph.input
    beside = any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in graph.initializer)
    # 0 stands for a dimension without a number
    batch, *size = (side.dim_value or None for side in entry.type.tensor_type.shape.dim)
    calibration = _batches(images, batch or 1, tuple(size))
    with tempfile.TemporaryDirectory() as folder, _quiet():
        prepared = Path(folder) / "prepared.onnx"
        quantization.shape_inference.quant_pre_process(
            source, prepared, skip_symbolic_shape=True, save_as_external_data=beside, all_tensors_to_one_file=True
        )
        graph = onnx.load(prepared, load_external_data=False).graph
        constants = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
        images_axis = entry.type.tensor_type.shape.dim[0]
        vectors = {
            value.name
            for value in graph.value_info
            if len(dims := value.type.tensor_type.shape.dim) == 2 and dims[0] == images_axis
        }
        quantization.quantize_static(
            prepared,
            target,
            _Feeds(entry.name, calibration),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Gemm", "MatMul"],
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            use_external_data_format=beside,
            nodes_to_exclude=[
                node.name
                for node in graph.node
                if (node.op_type == "MatMul" and (node.input[0] in constants or constants.get(node.input[1], 0) > 2))
                or (node.op_type in ("Gemm", "MatMul") and node.input[0] in vectors)
            ],
        )


class _Feeds:
    """Calibration batches as ONNX Runtime asks for them."""

    def __init__(self, name: str, batches: Iterable[np.ndarray]) -> None:
        self.name = name
        self.batches = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Inputs of the next call, or None behind the last."""
        batch = next(self.batches, None)
        return None if batch is None else {self.name: batch}


def _batches(images: Iterable[np.ndarray], batch: int, size: tuple[int | None, ...]) -> list[np.ndarray]:
    """The images in batches of the model's size; the incomplete rest is left out."""
    single = [image for part in images for image in np.asarray(part, dtype=np.float32)]
    for image in single:
        if len(image.shape) != len(size) or any(
            side not in (None, got) for side, got in zip(size, image.shape, strict=True)
        ):
            raise InvalidConfig(
                f"the model takes images of {' x '.join('any' if side is None else str(side) for side in size)}, "
                f"but calibration images are {' x '.join(map(str, image.shape))}; preprocess them as for evaluation"
            )
    least = max(batch, MINIMUM_IMAGES)
    if len(single) < least:
        raise InvalidConfig(
            f"calibration needs at least {least} images, better {CALIBRATION_IMAGES}; got {len(single)}"
        )
    return [np.stack(single[start : start + batch]) for start in range(0, len(single) - batch + 1, batch)]


def _float_products(model: "openvino.Model", shape: tuple[int, ...]) -> list[str]:
    """Names of the products with one vector for each image, and of those that give another product its matrix."""
    probe = model.clone()
    probe.reshape(list(shape))
    names: set[str] = set()
    for product in (node for node in probe.get_ops() if node.get_type_name() == "MatMul"):
        operands = [product.input_value(port) for port in range(2)]
        constant = [_origin(value).get_type_name() == "Constant" for value in operands]
        if any(constant):
            summed = operands[0].get_shape()[-2 if product.get_attributes()["transpose_a"] else -1]
            if math.prod(operands[constant.index(True) - 1].get_shape()) == shape[0] * summed:
                names.add(product.get_friendly_name())
        else:
            names.update(
                origin.get_friendly_name() for origin in map(_origin, operands) if origin.get_type_name() == "MatMul"
            )
    return sorted(names)


def _widen_right_operands(model: "openvino.Model") -> None:
    """Twice the range, and so 7 bits, for signed maps that stand on the right of a product; in place.

    Unsigned ones OpenVINO multiplies in float32.
    """
    opset = require("openvino.opset13", extra="int8")
    products = [node for node in model.get_ops() if node.get_type_name() == "MatMul"]
    for quantiser in {_origin(product.input_value(1)) for product in products}:
        if quantiser.get_type_name() != "FakeQuantize":
            continue
        limits = [_origin(quantiser.input_value(port)).get_data() for port in range(1, 5)]
        if limits[0].min() < 0:
            for port, limit in enumerate(limits, start=1):
                # NumPy 1 would make float64 of twice an array without dimensions
                twice = np.multiply(limit, 2, dtype=limit.dtype)
                quantiser.input(port).replace_source_output(opset.constant(twice).output(0))


def _origin(value: "openvino.Output") -> "openvino.Node":
    """The node that computes a value, behind those that only reshape or convert it."""
    node = value.get_node()
    while node.get_type_name() in _SHAPE_OPERATIONS:
        node = node.input_value(0).get_node()
    return node


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Both libraries log their steps, and NNCF draws its progress on standard output."""
    loggers = logging.getLogger(), logging.getLogger("nncf")
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
