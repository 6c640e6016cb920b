"""Training steps of every family: ours, with plain ``nn.Linear`` products, and with activation checkpointing.

    python benchmarks/training_speed.py --batch-size 8 --csv training_speed.csv

A step is forward pass, cross-entropy and backward pass, float32, in training mode. "plain" is the same model with
PyTorch's own linear layers, as any textbook formulation has them; CycleMLP's textbook formulation, a deformable
convolution, has a benchmark of its own (``cyclefc.py``). All take turns; times are medians.
"""

import argparse
import dataclasses
import statistics
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table

import visionmlp
from visionmlp.bench.bench import write_rows
from visionmlp.files import beside
from visionmlp.measure.timing import TrainingStep, describe_machine, interleave, peak_memory
from visionmlp.ops import product

MODELS = (
    "repmlpnet_t224",
    "resmlp_s24",
    "mlpmixer_b16",
    "asmlp_t",
    "hiremlp_t",
    "vip_s7",
    "cyclemlp_b1",
    "dynamixer_s",
    "sparsemlp_moe_s",
)


def plain(step: Callable[[], object]) -> Callable[[], object]:
    """A step whose products are PyTorch's own."""

    def run() -> None:
        with mock.patch.object(product, "_LINEAR", None):
            step()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=4.0, help="time for each contender")
    parser.add_argument("--csv", type=Path)
    arguments = parser.parse_args()

    machine = dataclasses.asdict(describe_machine(torch.device("cpu")))
    rows = []
    for name in arguments.models:
        images = torch.randn(arguments.batch_size, 3, 224, 224)
        models = {kind: visionmlp.create_model(name).train() for kind in ("ours", "checkpointed")}
        models["checkpointed"].set_grad_checkpointing()
        steps: dict[str, Callable[[], object]] = {
            kind: TrainingStep(model, model, images, 1000) for kind, model in models.items()
        }
        steps["plain"] = plain(steps["ours"])
        seconds = {kind: statistics.median(of) for kind, of in interleave(steps, seconds=arguments.seconds).items()}
        memory = {
            kind: peak_memory(models["ours" if kind == "plain" else kind], images, run=step) / 2**20
            for kind, step in steps.items()
        }
        rows.append(
            {
                "model": name,
                "batch_size": arguments.batch_size,
                **{f"{kind}_ms": round(1e3 * seconds[kind], 1) for kind in ("plain", "ours", "checkpointed")},
                **{f"{kind}_mib": round(memory[kind], 1) for kind in ("plain", "ours", "checkpointed")},
                **machine,
            }
        )
        print(rows[-1], flush=True)

    table = Table("model", "plain ms", "ours ms", "times as fast", "plain MiB", "ours MiB", "checkpointed ms", "MiB")
    for row in rows:
        table.add_row(
            row["model"],
            str(row["plain_ms"]),
            str(row["ours_ms"]),
            f"{row['plain_ms'] / row['ours_ms']:.2f}",
            str(row["plain_mib"]),
            str(row["ours_mib"]),
            str(row["checkpointed_ms"]),
            str(row["checkpointed_mib"]),
        )
    Console(width=140).print(table)
    if arguments.csv:
        with beside(arguments.csv, force=True) as partial:
            write_rows(rows, partial)


if __name__ == "__main__":
    main()
