"""Cycle FC against torchvision's deform_conv2d: the layer alone, and whole networks with one or the other.

    python benchmarks/cyclefc.py --csv FILE

All contenders hold the same weights and must give the same output before anything is timed; then they take turns.
docs/results/cyclefc.md has the result.
"""

import argparse
import copy
import csv
import dataclasses
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

import visionmlp
from visionmlp.measure.timing import describe_machine, interleave
from visionmlp.models.cyclemlp import CycleFC

BASELINE = "deform_conv2d"
MAPS = ((56, 56, 64), (28, 28, 128), (14, 14, 320), (7, 7, 512))
"""Rows, columns and channels of the stages of CycleMLP-B1 to -B4."""
GEMM_SIDE = 2048


class DeformCycleFC(nn.Module):
    """Cycle FC as a deformable 1x1 convolution: constant offsets, one offset group for each channel."""

    def __init__(self, fc: CycleFC) -> None:
        super().__init__()
        self.weight = nn.Parameter(fc.weight.detach()[:, :, None, None])
        self.bias = nn.Parameter(fc.bias.detach())
        steps = [fc.steps[i % fc.cycle] for i in range(fc.in_features)]
        self.register_buffer("offset", torch.tensor(steps).float().view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        batch, height, width, _ = x.shape
        offset = self.offset.expand(batch, -1, height, width)
        y = deform_conv2d(x.permute(0, 3, 1, 2), offset, self.weight, self.bias)
        # or every sum that follows would walk through two memory orders
        return y.permute(0, 2, 3, 1).contiguous()


def with_deform_conv2d(model: nn.Module) -> nn.Module:
    """A copy of a training form whose Cycle FCs are deformable convolutions."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, CycleFC):
                setattr(module, name, DeformCycleFC(child))
    return model


def networks(name: str) -> dict[str, nn.Module]:
    """The same network three times."""
    training = visionmlp.create_model(name).eval()
    return {BASELINE: with_deform_conv2d(training), "training": training, "deploy": visionmlp.reparameterize(training)}


def layers(dim: int) -> dict[str, nn.Module]:
    """The same layer twice, and a linear layer of its size."""
    fc = CycleFC(dim, (1, 3))
    return {BASELINE: DeformCycleFC(fc), "ours": fc, "linear": nn.Linear(dim, dim)}


def check_equal(contenders: dict[str, nn.Module], x: Tensor) -> None:
    """All but the linear layer compute the same."""
    with torch.inference_mode():
        expected = contenders[BASELINE](x)
        for form, module in contenders.items():
            error = ((module(x) - expected).abs().max() / expected.abs().max()).item()
            assert (error < 1e-5) == (form != "linear"), f"{form}: {error:.1e}"


def inference(module: nn.Module, x: Tensor) -> Callable[[], object]:
    def call() -> None:
        with torch.inference_mode():
            module(x)

    return call


def training_step(module: nn.Module, x: Tensor) -> Callable[[], object]:
    def call() -> None:
        module.zero_grad()
        x.grad = None
        module(x).square().mean().backward()

    return call


def measure(models: Sequence[str], batch_size: int, seconds: float) -> list[dict[str, object]]:
    """One row for each subject, task and form; all take turns, a matrix product that rates the machine among them."""
    subjects: dict[str, tuple[dict[str, nn.Module], Tensor]] = {}
    for rows, columns, dim in MAPS:
        # a layer inside a network passes a gradient on
        x = torch.randn(batch_size, rows, columns, dim, requires_grad=True)
        subjects[f"layer {rows}x{columns}x{dim}"] = layers(dim), x
    for name in models:
        subjects[name] = networks(name), torch.randn(batch_size, 3, 224, 224)
    calls: dict[tuple[str, str, str], Callable[[], object]] = {}
    for subject, (contenders, x) in subjects.items():
        check_equal(contenders, x)
        for form, module in contenders.items():
            calls[subject, "inference", form] = inference(module, x)
            if form != "deploy":
                calls[subject, "forward and backward", form] = training_step(module, x)
    a, b = torch.randn(2, GEMM_SIDE, GEMM_SIDE)
    durations = interleave({**calls, "gemm": lambda: a @ b}, seconds=seconds)
    machine = dataclasses.asdict(describe_machine(torch.device("cpu")))
    machine["gemm_gflops"] = round(2e-9 * GEMM_SIDE**3 / statistics.median(durations["gemm"]), 1)
    median = {key: statistics.median(durations[key]) for key in calls}
    return [
        {
            "subject": subject,
            "task": task,
            "form": form,
            "batch_size": batch_size,
            "images_per_second": batch_size / each,
            "p50_ms": 1e3 * each,
            "speed_up": median[subject, task, BASELINE] / each,
            "calls": len(durations[subject, task, form]),
            **machine,
        }
        for (subject, task, form), each in median.items()
    ]


def table(rows: list[dict[str, object]]) -> Table:
    columns = ("subject", "task", "form", "images/s", "p50 ms", "speed-up", "calls")
    first = rows[0]
    result = Table(
        *columns,
        title=f"batch {first['batch_size']}, {first['cpu']}, {first['threads']} threads, torch {first['torch']}, "
        f"{first['date']}, GEMM {first['gemm_gflops']} GFLOP/s",
        title_justify="left",
    )
    for row in rows:
        numbers = (f"{row['images_per_second']:.1f}", f"{row['p50_ms']:.1f}", f"{row['speed_up']:.2f}")
        result.add_row(str(row["subject"]), str(row["task"]), str(row["form"]), *numbers, str(row["calls"]))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["cyclemlp_b1", "cyclemlp_b2"])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, help="CPU threads; PyTorch decides if left out")
    parser.add_argument("--seconds", type=float, default=10.0, help="time for each contender, in all its turns")
    parser.add_argument("--csv", type=Path, help="where to write the rows")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    rows = measure(args.models, args.batch_size, args.seconds)
    Console(width=120).print(table(rows))
    if args.csv:
        with args.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
