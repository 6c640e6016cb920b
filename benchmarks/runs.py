"""What the experiments share: one run of ``visionmlp train`` after the other, each of which may be interrupted."""

import argparse
import csv
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import visionmlp


def command_line(description: str | None) -> argparse.ArgumentParser:
    """The options of every experiment on imagenette."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="imagenette as train/ and val/ of class folders")
    parser.add_argument("--work", type=Path, required=True, help="run folders")
    return parser


def train(arguments: Sequence[str], output: Path, *, threads: int) -> list[dict[str, float]]:
    """Train, or continue, or do nothing if the run has ended; returns the rows of metrics.csv.

    Args:
        arguments: of ``visionmlp train``, without the run folder.
        output: run folder; what the run prints goes to a ``.log`` beside it.
        threads: of the process.
    """
    if not (output / "report.html").exists():
        command = [sys.executable, "-m", "visionmlp", "train", *arguments, "--output", str(output)]
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
