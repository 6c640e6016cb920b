"""What the experiments share: runs of ``visionmlp train``, several at a time, each of which may be interrupted."""

import argparse
import concurrent.futures
import csv
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
import yaml

import visionmlp

Run = tuple[Sequence[str], Path]
"""Arguments of ``visionmlp train`` without the run folder, and that folder."""


def command_line(description: str | None) -> argparse.ArgumentParser:
    """The options of every experiment."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="what the runs train on")
    parser.add_argument("--work", type=Path, required=True, metavar="FOLDER", help="of the run folders")
    parser.add_argument("--no-train", action="store_true", help="write the page of those runs that have ended")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads of each run")
    return parser


def train_all(runs: Iterable[Run], args: argparse.Namespace) -> None:
    """Train, or continue, what has not ended; nothing with ``--no-train``."""
    if args.no_train:
        return
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda run: train(*run, threads=args.threads), runs))


def device() -> torch.device:
    """What runs train on here."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def machines(folders: Iterable[Path]) -> str:
    """What runs were trained on, as their folders tell."""
    described = set()
    for folder in folders:
        for start in json.loads((folder / "environment.json").read_text()):
            parts = start["machine"]
            where = parts["gpus"][0] if parts["gpus"] else f"{parts['cpu_count']} CPU cores"
            described.add(f"{where}, torch {start['versions']['torch']}")
    return "; ".join(sorted(described))


def ended(folder: Path) -> bool:
    """Whether a run has trained to its last epoch and was evaluated."""
    if not (folder / "metrics.csv").exists():
        return False
    epochs = yaml.safe_load((folder / "config.yaml").read_text())["epochs"]
    rows = read(folder / "metrics.csv")
    return bool(rows) and rows[-1]["epoch"] >= epochs


def minutes(folder: Path, amount: int) -> float:
    """What training takes at its median speed.

    Args:
        folder: of the run.
        amount: images or tokens that it saw, whichever its table counts.
    """
    rows = read(folder / "train.csv")
    (column,) = (name for name in rows[0] if name.endswith("_per_second"))
    return amount / statistics.median(row[column] for row in rows) / 60


def train(arguments: Sequence[str], output: Path, *, threads: int) -> list[dict[str, float]]:
    """Train, or continue, or do nothing if the run has ended; returns the rows of metrics.csv.

    Args:
        arguments: of ``visionmlp train``, without the run folder.
        output: run folder; what the run prints goes to a ``.log`` beside it.
        threads: of the process.
    """
    if not ended(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        options = [*arguments, "--output", str(output), "--threads", str(threads)]
        command = [sys.executable, "-m", "visionmlp", "train", *options]
        if (output / "config.yaml").exists():
            command = [sys.executable, "-m", "visionmlp", "train", "--resume", "--output", str(output)]
        with output.with_name(f"{output.name}.log").open("a") as log:
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            subprocess.run(command, check=True, stdout=log, stderr=log, env=environment)
    return read(output / "metrics.csv")


def read(path: Path) -> list[dict[str, float]]:
    """The rows of a run's table."""
    with path.open() as table:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(table)]


def deploy_error(run: Path) -> float:
    """Largest difference of the deploy form's logits in float32, relative to the largest logit."""
    model, _ = visionmlp.load_model(run)
    images = torch.randn(8, 3, *model.config.img_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model(images)
        error = (visionmlp.reparameterize(model)(images) - expected).abs().max() / expected.abs().max()
    return error.item()


def fill_part(page: Path, name: str, text: str) -> None:
    """Replace what stands between a page's markers of a name; a page without them gets the part at its end."""
    part = re.compile(rf"(<!-- generated: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    written = page.read_text()
    if not part.search(written):
        written += f"\n## {name.capitalize()}\n\n<!-- generated: {name} -->\n<!-- end -->\n"
    page.write_text(part.sub(lambda match: f"{match[1]}\n{text}\n{match[2]}", written))
