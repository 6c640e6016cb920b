"""The formats that a model can be exported to, and what each can hold."""

from pathlib import Path
from typing import Literal

from visionmlp.deploy.graphs import Batch
from visionmlp.deploy.metadata import Dtype
from visionmlp.errors import InvalidConfig
from visionmlp.files import OutputError

Format = Literal["onnx", "openvino", "pt2", "aotinductor", "safetensors"]
Form = Literal["deploy", "training"]

SUFFIXES: dict[Format, str] = {
    "onnx": ".onnx",
    "openvino": ".xml",
    "pt2": ".pt2",
    "aotinductor": ".pt2",
    "safetensors": ".safetensors",
}
"""The first format of a suffix is meant where none is given."""
DTYPES: dict[Format, tuple[Dtype, ...]] = {
    "onnx": ("float32", "fp16", "int8"),  # ONNX Runtime has no bfloat16 products on CPUs
    "openvino": ("float32", "bf16", "fp16", "int8"),
    "pt2": ("float32", "bf16", "fp16"),
    "aotinductor": ("float32", "bf16"),  # half precision was not tried
    "safetensors": ("float32", "bf16", "fp16"),
}
RUNNERS: dict[Format, str] = {
    "onnx": "ONNX Runtime",
    "openvino": "OpenVINO",
    "pt2": "torch.export's program",
    "aotinductor": "AOTInductor's machine code",
    "safetensors": "the checkpoint read back",
}


def format_of(output: Path, format: Format | None) -> Format:
    """The format that is asked for, by default that of the output's suffix.

    Raises:
        OutputError: if the suffix is another format's, or none.
    """
    if format is None:
        known: dict[str, Format] = {suffix: name for name, suffix in reversed(SUFFIXES.items())}
        if output.suffix not in known:
            raise OutputError(
                f"{output} must end in {', '.join(dict.fromkeys(SUFFIXES.values()))}, which name the formats "
                f"{', '.join(known[suffix] for suffix in dict.fromkeys(SUFFIXES.values()))}"
            )
        return known[output.suffix]
    if output.suffix != SUFFIXES[format]:
        raise OutputError(f"{output} must end in {SUFFIXES[format]} for --format {format}")
    return format


def check_options(
    format: Format,
    batch: Batch,
    dynamic_size: bool,
    dtype: Dtype,
    calibration: bool,
    opset: int | None,
    *,
    input_size: tuple[int, int] | None = None,
) -> None:
    """Raise InvalidConfig for a combination that no runtime can run."""
    if batch != "dynamic" and batch < 1:
        raise InvalidConfig(f"batch must be 'dynamic' or at least 1, got {batch}")
    if dtype not in DTYPES[format]:
        able = [name for name, dtypes in DTYPES.items() if dtype in dtypes]
        raise InvalidConfig(
            f"{dtype} cannot run in {format} files here; use the format {' or '.join(able)}, "
            f"or the dtype {' or '.join(DTYPES[format])}"
        )
    if opset is not None and format != "onnx":
        raise InvalidConfig(f"opset is for ONNX; leave it out for {format}")
    if format == "safetensors" and (batch != "dynamic" or dynamic_size or input_size):
        raise InvalidConfig("a checkpoint takes what the model takes; leave out batch, dynamic size and input size")
    if dynamic_size and input_size:
        raise InvalidConfig("a graph of dynamic size takes them all; leave out either dynamic size or input size")
    if (dtype == "int8") != calibration:
        raise InvalidConfig(
            "int8 needs calibration images" if dtype == "int8" else f"calibration is for int8; leave it out for {dtype}"
        )
