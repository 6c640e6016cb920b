"""Full-size models through every export format: how long, how large, and how far from PyTorch.

    python benchmarks/export_all.py                       the smallest of each family, deploy form, float32
    python benchmarks/export_all.py --all --form training --output exports.csv

Each file is made with random weights and checked by its runtime at batch 1 and 5, as `visionmlp export` does.
"""

import argparse
import csv
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

import visionmlp
from visionmlp.deploy.export import export_model
from visionmlp.deploy.formats import DTYPES, SUFFIXES
from visionmlp.errors import VisionMLPError
from visionmlp.models.checkpoint import load_model
from visionmlp.models.registry import variant

COLUMNS = ("model", "format", "dtype", "form", "seconds", "MiB", "error, batch 1", "error, batch 5", "limit", "failure")


def smallest_of_each_family() -> list[str]:
    """By multiply-accumulates; of equal ones the first."""
    smallest: dict[str, str] = {}
    for name in visionmlp.list_models():
        entry = variant(name)
        if entry.img_size < (224, 224):
            continue
        best = smallest.setdefault(entry.family, name)
        if entry.macs < variant(best).macs:
            smallest[entry.family] = name
    return list(smallest.values())


def measure(name: str, format: str, dtype: str, form: str) -> dict[str, str]:
    """One export."""
    row = dict.fromkeys(COLUMNS, "") | {"model": name, "format": format, "dtype": dtype, "form": form}
    with tempfile.TemporaryDirectory() as folder:
        model, info = load_model(name)
        start = time.perf_counter()
        try:
            report = export_model(model, info, Path(folder) / f"m{SUFFIXES[format]}", form=form, dtype=dtype)
        except VisionMLPError as error:
            return row | {"failure": str(error)}
        row["seconds"] = f"{time.perf_counter() - start:.1f}"
        row["MiB"] = f"{sum(path.stat().st_size for path in report.files) / 2**20:.1f}"
        for check in report.checks:
            row[f"error, batch {check.batch}"] = f"{check.error:.1e}"
            row["limit"] = f"{check.limit:.0e}"
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="names; default: the smallest of each family")
    parser.add_argument("--all", action="store_true", help="every model")
    parser.add_argument("--format", nargs="+", choices=list(SUFFIXES), default=["onnx", "openvino", "pt2"])
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bf16", "fp16"], default=["float32"])
    parser.add_argument("--form", nargs="+", choices=["deploy", "training"], default=["deploy"])
    parser.add_argument("--output", type=Path, help="also write the table as CSV")
    options = parser.parse_args()
    names = options.models or (visionmlp.list_models() if options.all else smallest_of_each_family())
    rows = []
    for name in names:
        for form in options.form:
            for format in options.format:
                for dtype in options.dtype:
                    if dtype in DTYPES[format]:
                        rows.append(measure(name, format, dtype, form))
                        print(*rows[-1].values(), sep="  ", file=sys.stderr, flush=True)
    table = Table(*COLUMNS)
    for row in rows:
        table.add_row(*row.values())
    Console(width=200).print(table)
    if options.output:
        with options.output.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
    return 1 if any(row["failure"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
