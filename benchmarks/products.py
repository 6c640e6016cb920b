"""Which product is fastest where: PyTorch's own, oneDNN's, packed weights, GELU within or behind, columns that alias.

    python benchmarks/products.py --csv products.csv
    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 python benchmarks/products.py   # as without AVX-512

The rules of `visionmlp.ops.product.RULES` were made from this table. Rates are GFLOP/s, medians; all contenders of a
shape take turns. Channel products are (rows, inputs) by (inputs, outputs) with a weight that lies in memory as PyTorch
keeps it; "columns" is the product from the left of token mixing, whose right factor has contiguous rows. The gradient
of a weight is (inputs, rows) by (rows, outputs).
"""

import argparse
import dataclasses
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from visionmlp.bench.bench import write_rows
from visionmlp.files import beside
from visionmlp.layers.packing import packed
from visionmlp.measure.timing import describe_machine, interleave
from visionmlp.ops import product

CHANNELS = ((3136, 64, 256), (3136, 96, 384), (784, 192, 768), (196, 384, 1536), (196, 768, 3072), (49, 512, 2048))
"""Positions of an image, channels, hidden channels."""
TOKENS = ((384, 196, 768), (384, 196, 3072), (384, 196, 3080), (384, 196, 6144))
"""Outputs, positions, channels of all images."""

Calls = dict[str, Callable[[], Tensor]]


def channel_calls(rows: int, inputs: int, outputs: int) -> Calls:
    x, weight, bias = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(outputs)
    operator = product._LINEAR
    calls: Calls = {
        "PyTorch": lambda: F.linear(x, weight, bias),
        "PyTorch, then GELU": lambda: torch.ops.aten.gelu_(F.linear(x, weight, bias)),
    }
    if operator is not None:
        order = packed(weight)
        calls |= {
            "oneDNN": lambda: operator(x, weight, bias, "none", [], ""),
            "oneDNN, packed": lambda: operator(x, order, bias, "none", [], ""),
            "packed, GELU within": lambda: operator(x, order, bias, "gelu", [], "none"),
            "packed, then GELU": lambda: torch.ops.aten.gelu_(operator(x, order, bias, "none", [], "")),
        }
    return calls


def token_calls(outputs: int, positions: int, columns: int) -> Calls:
    matrix, tokens = torch.randn(outputs, positions), torch.randn(positions, columns)
    operator = product._LINEAR
    calls: Calls = {"PyTorch": lambda: matrix @ tokens}
    if operator is not None:
        calls |= {
            "oneDNN, columns": lambda: operator(matrix, tokens.t(), None, "none", [], ""),
            "oneDNN, columns copied": lambda: operator(matrix, tokens.t().contiguous(), None, "none", [], ""),
        }
    return calls


def gradient_calls(rows: int, inputs: int, outputs: int) -> Calls:
    x, gradient, weight = torch.randn(rows, inputs), torch.randn(rows, outputs), torch.randn(outputs, inputs)
    operator = product._LINEAR
    calls: Calls = {"PyTorch": lambda: gradient.t() @ x}
    if operator is not None:
        calls |= {
            "oneDNN": lambda: operator(gradient.t(), x.t(), None, "none", [], ""),
            "oneDNN, transposed": lambda: operator(x.t(), gradient.t(), None, "none", [], "").t(),
        }
        if rows % product._IMAGES == 0:
            calls["oneDNN, convolution"] = lambda: product._convolved_gradient(gradient, x, weight)
    return calls


@torch.inference_mode()
def measured(shape: tuple[int, int, int], calls: Calls, seconds: float) -> dict[str, float]:
    operations = 2 * shape[0] * shape[1] * shape[2]
    times = interleave(calls, seconds=seconds)
    return {name: operations / statistics.median(of) / 1e9 for name, of in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--seconds", type=float, default=0.4, help="time for each contender")
    parser.add_argument("--csv", type=Path)
    arguments = parser.parse_args()

    console = Console(width=150)
    machine = dataclasses.asdict(describe_machine(torch.device("cpu")))
    isa = torch.backends.cpu.get_cpu_capability()
    print(f"{isa}, rules in force: {product._RULES if product._LINEAR is not None else 'plain products'}")
    rows: list[dict[str, object]] = []
    channels = [(rows * b, *rest) for b in arguments.batch_size for rows, *rest in CHANNELS]
    tables = {
        "channel mixing": (channel_calls, channels),
        "token mixing": (token_calls, TOKENS),
        "gradient of the weight": (gradient_calls, [*channels, *((rows, o, i) for rows, i, o in channels)]),
    }
    for kind, (make, shapes) in tables.items():
        results = {shape: measured(shape, make(*shape), arguments.seconds) for shape in shapes}
        names = list(dict.fromkeys(name for rates in results.values() for name in rates))
        table = Table(kind, *names, title="GFLOP/s")
        for shape, rates in results.items():
            table.add_row(
                " x ".join(map(str, shape)), *(f"{rates[name]:.0f}" if name in rates else "" for name in names)
            )
            rows += [
                {
                    "kind": kind,
                    "shape": " x ".join(map(str, shape)),
                    "product": name,
                    "gflops": round(rate, 1),
                    "isa": isa,
                }
                | machine
                for name, rate in rates.items()
            ]
        console.print(table)
    if arguments.csv:
        with beside(arguments.csv, force=True) as partial:
            write_rows(rows, partial)


if __name__ == "__main__":
    main()
