"""What a benchmark computes in: a dtype of weights and images, and on CUDA what units multiply float32."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar

import torch

Dtype = Literal["float32", "tf32", "bfloat16", "float16", "int8"]
"""tf32 is float32 in memory, multiplied by CUDA's matrix units; float32 leaves them out, in convolutions as well."""

ResultT = TypeVar("ResultT")


def torch_dtype(dtype: Dtype) -> torch.dtype:
    """Of weights and images; int8 starts from float32."""
    return torch.float32 if dtype in ("tf32", "int8") else getattr(torch, dtype)


@contextlib.contextmanager
def computing_in(dtype: Dtype, device: torch.device) -> Iterator[None]:
    """On CUDA products and convolutions of float32 in full precision, or in TF32 for "tf32"; elsewhere as they are."""
    if device.type != "cuda":
        yield
        return
    units: Any = torch.backends
    before = units.cuda.matmul.allow_tf32, units.cudnn.allow_tf32
    units.cuda.matmul.allow_tf32 = units.cudnn.allow_tf32 = dtype == "tf32"
    try:
        yield
    finally:
        units.cuda.matmul.allow_tf32, units.cudnn.allow_tf32 = before


def in_precision(call: Callable[[], ResultT], dtype: Dtype, device: torch.device) -> Callable[[], ResultT]:
    """The same call under `computing_in`."""

    @functools.wraps(call)
    def run() -> ResultT:
        with computing_in(dtype, device):
            return call()

    return call if device.type != "cuda" else run
