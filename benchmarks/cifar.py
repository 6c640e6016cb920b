"""What the experiments on CIFAR-100 share: a subset of it, and one run of ``visionmlp train`` at a time."""

import csv
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def subset(data: Path, to: Path, per_class: int) -> Path:
    """A folder of links to the first images of every training class and to all of the test images."""
    if not to.exists():
        for folder in sorted((data / "train").iterdir()):
            (to / "train" / folder.name).mkdir(parents=True)
            for image in sorted(folder.iterdir())[:per_class]:
                (to / "train" / folder.name / image.name).symlink_to(image.resolve())
        (to / "val").symlink_to((data / "val").resolve())
    return to


def train(arguments: Sequence[str], output: Path) -> list[dict[str, str]]:
    """Train with one thread, or continue, or do nothing if the run has ended; returns the rows of metrics.csv."""
    if not (output / "report.html").exists():
        command = [sys.executable, "-m", "visionmlp", *arguments]
        if output.exists():
            command = [sys.executable, "-m", "visionmlp", "train", "--resume", "--output", str(output)]
        with output.with_name(f"{output.name}.log").open("a") as log:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            subprocess.run(command, check=True, stdout=log, stderr=log, env=environment)
    with (output / "metrics.csv").open() as table:
        return list(csv.DictReader(table))
