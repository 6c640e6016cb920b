"""Our Triton kernels against the same work by PyTorch, eager and compiled, in bfloat16 on a CUDA GPU.

    python benchmarks/cuda_kernels.py --csv cuda_kernels.csv

Shapes are those of the families at 224 px; medians; "bound" is reading inputs and writing outputs once at the rate of a
large copy, or multiplying at the rate of a large product, whichever takes longer.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F
from triton.testing import do_bench

from visionmlp.bench.bench import write_rows
from visionmlp.files import beside
from visionmlp.measure.gemm import copy_call, copy_size, gemm_calls
from visionmlp.models.asmlp import COLUMNS, _runs, displaced_groups
from visionmlp.ops.cuda.channel_mlp import channel_mlp
from visionmlp.ops.cuda.displaced import displaced_channels
from visionmlp.ops.cuda.mixed_lines import mixed_lines
from visionmlp.ops.lines import from_lines, to_lines

LIKE = {"device": "cuda", "dtype": torch.bfloat16}
Work = tuple[str, str, Callable[..., Tensor], Callable[..., Tensor], tuple[Tensor, ...], float, float]
"""Name, shape, ours, PyTorch's, inputs, multiply-accumulates, bytes."""


def works(batch: int) -> Iterator[Work]:
    for side, width, ratio in ((56, 64, 4), (56, 96, 4), (28, 128, 4), (28, 192, 4), (32, 192, 3)):
        rows, hidden = batch * side**2, ratio * width
        inputs = (
            torch.randn(rows, width, **LIKE),
            torch.randn(hidden, width, **LIKE) / width**0.5,
            torch.randn(hidden, **LIKE),
            torch.randn(width, hidden, **LIKE) / hidden**0.5,
            torch.randn(width, **LIKE),
        )

        def ours(x, weight1, bias1, weight2, bias2):
            return channel_mlp(x, None, None, None, weight1, bias1, weight2, bias2, 1e-5, False)

        def plain(x, weight1, bias1, weight2, bias2):
            hidden = F.gelu(F.linear(F.layer_norm(x, x.shape[1:], eps=1e-5), weight1, bias1))
            return x + F.linear(hidden, weight2, bias2)

        yield (
            "norm and channel MLP",
            f"{rows}x{width}",
            ours,
            plain,
            inputs,
            2.0 * rows * width * hidden,
            4.0 * rows * width,
        )
    for side, width in ((56, 96), (28, 192), (14, 384)):
        x = torch.randn(batch, side, side, width, **LIKE)

        def shift(x):
            return displaced_channels(x, _runs(x.shape[3], COLUMNS, 5, 1))

        def plain_shift(x):
            return displaced_groups(x, COLUMNS, 5, 1)

        yield "axial shift", f"{batch}x{side}x{side}x{width}", shift, plain_shift, (x,), 0.0, 4.0 * x.numel()
    for side, segments, width in ((32, 8, 192), (14, 16, 384)):
        x, logits = (
            torch.randn(batch, side, side, width, **LIKE),
            torch.randn(batch, side, segments, side, side, **LIKE),
        )

        def mix(x, logits):
            return mixed_lines(x, logits, 2)

        def plain_mix(x, logits):
            return from_lines(logits.softmax(-1) @ to_lines(x, 2, logits.shape[2]), 2)

        moved = 4.0 * x.numel() + 2.0 * logits.numel()
        yield (
            "softmax and line mixing",
            f"{batch}x{side}x{side}x{width}",
            mix,
            plain_mix,
            (x, logits),
            x.numel() * side,
            moved,
        )


def milliseconds(function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> float:
    return do_bench(lambda: function(*inputs), warmup=20, rep=60, return_mode="median")


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--csv", type=Path)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("the kernels are Triton's and need a CUDA GPU; this machine has none")
    device = torch.device("cuda")
    product, copy = (
        gemm_calls(torch.bfloat16, device, (8192,))["torch.matmul", 8192],
        copy_call(device, copy_size(device)),
    )
    flops, bandwidth = 2 * 8192**3 / do_bench(product), 2 * copy_size(device) / do_bench(copy)  # per millisecond
    rows: list[dict[str, object]] = []
    for name, shape, ours, plain, inputs, macs, moved in works(arguments.batch_size):
        error = (ours(*inputs).float() - plain(*(x.float() for x in inputs))).norm() / plain(*inputs).float().norm()
        if not error < 1e-2:
            raise SystemExit(f"{name}, {shape}: differs by {error:.1e}")
        compiled = torch.compile(plain, dynamic=False)
        times = [milliseconds(function, inputs) for function in (ours, plain, compiled)]
        row = {"work": name, "shape": shape, "ours_ms": times[0], "eager_ms": times[1], "compile_ms": times[2]}
        rows.append({**row, "bound_ms": max(2 * macs / flops, moved / bandwidth), "gpu": torch.cuda.get_device_name()})
        torch._dynamo.reset()
    table = Table(
        "work", "shape", "ours, ms", "eager, ms", "compiled, ms", "bound, ms", "times eager", "times compiled"
    )
    for row in rows:
        ours, eager, compiled, bound = (float(str(row[f"{key}_ms"])) for key in ("ours", "eager", "compile", "bound"))
        numbers = (f"{value:.3f}" for value in (ours, eager, compiled, bound))
        table.add_row(str(row["work"]), str(row["shape"]), *numbers, f"{eager / ours:.2f}", f"{compiled / ours:.2f}")
    Console(width=140).print(table)
    if arguments.csv:
        with beside(arguments.csv, force=True) as partial:
            write_rows(rows, partial)


if __name__ == "__main__":
    main()
