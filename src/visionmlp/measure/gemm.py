"""The machine's own limits: rates of large matrix products by every library at hand, and of a large copy."""

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

GEMM_SIDES = {"cpu": (1024, 2048, 4096), "cuda": (4096, 8192)}
"""Sides of the square matrices whose product sets the GEMM rate, by kind of device; the best of them counts."""

COPY_BYTES = {"cpu": 2**28, "cuda": 2**31}
"""Size of the copy whose rate is the bandwidth: far larger than any cache."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GemmRate:
    """What this machine makes of matrix products of one dtype, in operations per second."""

    best: float
    """Of all libraries and sides."""
    library: str
    """Which library gave it: "torch.matmul" or "oneDNN"."""
    matmul: float
    """The best of ``torch.matmul``."""

    def __str__(self) -> str:
        """Both rates in 10^9 operations per second."""
        if self.library == "torch.matmul":
            return f"{self.best / 1e9:.1f} GFLOP/s"
        return f"{self.best / 1e9:.1f} GFLOP/s ({self.library}; torch.matmul {self.matmul / 1e9:.1f})"


def synchronised(run: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """The same call, finished when it returns."""
    if device.type != "cuda":
        return run

    def call() -> None:
        run()
        torch.cuda.synchronize(device)

    return call


def copy_size(device: torch.device) -> int:
    """`COPY_BYTES` of a device."""
    return COPY_BYTES.get(device.type, COPY_BYTES["cpu"])


def gemm_calls(
    dtype: torch.dtype, device: torch.device, sides: Sequence[int] = ()
) -> dict[tuple[str, int], Callable[[], object]]:
    """Products of square matrices to be timed, by library and side.

    On a CPU oneDNN's linear layer takes part beside ``torch.matmul``, which goes to another library for float32; its
    weight is packed beforehand, as inference compilers do.
    """
    calls: dict[tuple[str, int], Callable[[], object]] = {}
    for side in sides or GEMM_SIDES.get(device.type, GEMM_SIDES["cpu"]):
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        calls["torch.matmul", side] = synchronised(_call(torch.matmul, a, b), device)
        if device.type == "cpu" and (packed := _packed(b)) is not None:
            linear: Any = torch.ops.mkldnn._linear_pointwise
            calls["oneDNN", side] = _call(linear, a, packed, None, "none", [], "")
    return calls


def gemm_rate(durations: Mapping[tuple[str, int], Sequence[float]]) -> GemmRate:
    """The rates behind the timed calls of `gemm_calls`: the medians of each count."""
    rates = {(library, side): 2 * side**3 / statistics.median(times) for (library, side), times in durations.items()}
    library, side = max(rates, key=lambda key: rates[key])
    return GemmRate(
        best=rates[library, side],
        library=library,
        matmul=max(rate for (name, _), rate in rates.items() if name == "torch.matmul"),
    )


def copy_call(device: torch.device, size: int) -> Callable[[], object]:
    """A copy of ``size`` bytes, which moves twice as many."""
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    return synchronised(lambda: target.copy_(source), device)


def _call(function: Callable[..., object], *arguments: object) -> Callable[[], object]:
    def run() -> object:
        with torch.inference_mode():
            return function(*arguments)

    return run


def _packed(weight: Tensor) -> Tensor | None:
    """A square weight in oneDNN's own order, or None where this build of PyTorch or this CPU cannot multiply by it."""
    if not torch.backends.mkldnn.is_available():
        return None
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, len(weight))
        torch.ops.mkldnn._linear_pointwise(weight[:1], packed, None, "none", [], "")
    except (AttributeError, RuntimeError):  # the operator is not in every build, bfloat16 not on every CPU
        return None
    return packed


def fused_bound(macs: float, weight_bytes: float, *, gemm_flops: float, bandwidth: float) -> float:
    """Seconds that one layer takes with perfect fusion: only products compute, and only its weights move.

    Args:
        macs: multiply-accumulates.
        weight_bytes: of its weights, which are read once; the maps between layers stay in the caches.
        gemm_flops: operations per second.
        bandwidth: bytes per second.
    """
    return max(2 * macs / gemm_flops, weight_bytes / bandwidth)
