"""Deploy forms on a CUDA GPU: dtypes, batch sizes and runtimes.

    python benchmarks/cuda_speed.py --csv cuda.csv --dtype float32 tf32 bfloat16 float16 --batch-size 1 16 256

Each model is a process of its own, so that several are compiled side by side; when the last is ready they are measured
one after another, each with its runtimes, dtypes, batch sizes and matrix products taking turns. Compiling takes most of
the time; ``--compiled-batch-size`` limits it, ``--at-once`` the memory.
"""

import argparse
import csv
import multiprocessing
import tempfile
import threading
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from visionmlp.bench import bench as module
from visionmlp.bench.bench import bench, write_csv, write_rows
from visionmlp.errors import InvalidConfig
from visionmlp.files import beside
from visionmlp.measure.timing import interleave, open_device

MODELS = (
    *("repmlpnet_t224", "resmlp_s24", "mlpmixer_b16", "asmlp_t", "hiremlp_t", "vip_s7", "cyclemlp_b1", "dynamixer_s"),
    "sparsemlp_moe_s",
)
RUNTIMES = ("eager", "cuda-graphs", "compile", "compile-cuda-graphs")
PATIENCE = 600
"""Seconds after which a process measures although others are not ready."""


def measured(model: str, arguments: argparse.Namespace, ready: Any, alone: Any, path: Path) -> None:
    """One model's rows, as a CSV file."""
    entries = module._entries

    def chosen(contender, batch_size, dtypes, runtimes, training):
        for entry in entries(contender, batch_size, dtypes, runtimes, training):
            if "compile" not in entry.runtime or batch_size in arguments.compiled_batch_size:
                yield entry

    measuring = False

    def in_turn(calls, **options):
        nonlocal measuring
        try:
            ready.wait(PATIENCE)
        except threading.BrokenBarrierError:
            print(f"{model}: some processes are not ready and may disturb", flush=True)
        alone.acquire()
        measuring = True
        return interleave(calls, **options)

    module._entries, module.interleave = chosen, in_turn
    try:
        result = bench(
            [model],
            forms=("deploy",),
            device=arguments.device,
            dtypes=arguments.dtype,
            batch_sizes=arguments.batch_size,
            runtimes=arguments.runtime,
            seconds=arguments.seconds,
        )
        for name, reason in result.failures.items():
            print(f"{name}: {reason}", flush=True)
        write_csv(result, path)
        print(f"measured {model}", flush=True)
    finally:
        if measuring:
            alone.release()
        else:
            ready.abort()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="MODEL")
    parser.add_argument("--dtype", nargs="+", default=["bfloat16"])
    parser.add_argument("--runtime", nargs="+", default=RUNTIMES, choices=RUNTIMES)
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1, 16, 256])
    parser.add_argument("--compiled-batch-size", type=int, nargs="+", help="default: all")
    parser.add_argument("--seconds", type=float, default=1.0, help="time for each contender")
    parser.add_argument("--at-once", type=int, default=5, help="models that are held at a time, each in up to 20 GB")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--csv", type=Path)
    arguments = parser.parse_args()
    arguments.compiled_batch_size = arguments.compiled_batch_size or arguments.batch_size

    try:
        open_device(arguments.device)
    except InvalidConfig as error:
        raise SystemExit(str(error)) from error
    context, rows = multiprocessing.get_context("spawn"), []
    for start in range(0, len(arguments.models), arguments.at_once):
        models = arguments.models[start : start + arguments.at_once]
        ready, alone = context.Barrier(len(models)), context.Lock()
        with tempfile.TemporaryDirectory() as folder:
            paths = {model: Path(folder) / f"{model}.csv" for model in models}
            processes = [
                context.Process(target=measured, args=(model, arguments, ready, alone, path))
                for model, path in paths.items()
            ]
            for process in processes:
                process.start()
            for process in processes:
                process.join()
            rows += [row for path in paths.values() if path.exists() for row in csv.DictReader(path.open())]
    if not rows:
        raise SystemExit("nothing was measured")
    Console(width=160).print(_table(rows, arguments.runtime))
    if arguments.csv:
        with beside(arguments.csv, force=True) as partial:
            write_rows(rows, partial)


def _table(rows: list[dict[str, str]], runtimes: list[str]) -> Table:
    """Images per second of each runtime, and what the fastest makes of the matrix products' rate."""
    table = Table("model", "dtype", "batch", *runtimes, "GEMM eff. %", title="images/s")
    groups: dict[tuple[str, str, str], dict[str, dict[str, str]]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["dtype"], row["batch_size"]), {})[row["runtime"]] = row
    for key, found in groups.items():
        speeds = [f"{float(found[name]['images_per_second']):.0f}" if name in found else "" for name in runtimes]
        best = max(float(row["gemm_efficiency"]) for row in found.values())
        table.add_row(*key, *speeds, f"{100 * best:.1f}")
    return table


if __name__ == "__main__":
    main()
