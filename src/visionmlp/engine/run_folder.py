"""The folder of a run: configuration, environment and tables. Files are written beside and renamed, rows are appended.

A table has at most one row for a step. What a resumed run will do again is cut off first, so that after any crash the
tables are those of a run that was never interrupted.
"""

import contextlib
import csv
import dataclasses
import datetime
import io
import json
import math
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import yaml

from visionmlp.engine.config import TrainingConfig
from visionmlp.errors import InvalidConfig, Note, RunFolderError
from visionmlp.files import remove_leftovers, write_beside, writing

PACKAGES = ("visionmlp", "torch", "torchvision", "timm", "lightning-fabric", "numpy", "pillow")

_PARTS = ("nodes", "devices", "accumulate")
"""Options that divide the images of a step."""


class Table:
    """A CSV file with a column ``step``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row; the first one decides the columns."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(row), lineterminator="\n")
        if not self.path.exists():
            writer.writeheader()
        writer.writerow(row)
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(text.getvalue())

    def rows(self) -> list[dict[str, float]]:
        """All complete rows; cells that are not numbers are left out."""
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        # a kill while writing leaves a line without its end
        rows = csv.DictReader(line for line in lines if line.endswith("\n"))
        return [{name: float(cell) for name, cell in row.items() if _is_number(cell)} for row in rows]

    def cut(self, step: int) -> None:
        """Drop rows behind a step, and an incomplete last line."""
        if not self.path.exists():
            return
        header, *lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True) or [""]
        position = header.strip().split(",").index("step") if header.endswith("\n") else 0
        kept = [line for line in lines if line.endswith("\n") and int(line.split(",")[position]) <= step]
        if kept:
            write_beside(self.path, (header + "".join(kept)).encode())
        else:
            self.path.unlink()


class DataRecord(Protocol):
    """What a run is trained and evaluated on, small enough to stand in its folder."""

    def to_plain(self) -> dict[str, Any]:
        """Plain JSON, for ``data.json``."""
        ...

    def change_since(self, before: Any) -> str | None:
        """What is different from an earlier `to_plain`, in one clause; None if nothing is.

        Raises:
            TypeError, KeyError, ValueError: if ``before`` is none of these.
        """
        ...


TOKENIZER = "tokenizer.model"
"""What a run on text writes beside its first checkpoint."""


class RunFolder:
    """Paths and files of a run.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.train = Table(path / "train.csv")
        self.metrics = Table(path / "metrics.csv")
        self.router = Table(path / "router.csv")
        """Only of models with routed experts."""
        self.tables = (self.train, self.metrics, self.router)
        self.checkpoints = path / "checkpoints"
        self.model = path / "model.safetensors"
        self.confusion = path / "confusion.csv"
        self.bad_images = path / "bad_images.txt"

    def create(self, config: TrainingConfig, data: DataRecord) -> None:
        """Make the folder and write what is known before training.

        Args:
            config: all options.
            data: what the run must find as it was when it is resumed.

        Raises:
            RunFolderError: if it holds anything but a run that never began, or cannot be written.
        """
        with writing(self.path):
            if self.path.exists() and not (self.path.is_dir() and self._never_began()):
                raise RunFolderError(
                    f"{self.path} exists already; continue its run with --resume, or give another --output"
                )
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        self._remove_leftovers()
        write_beside(self.path / "config.yaml", yaml.safe_dump(config.to_plain(), sort_keys=False).encode())
        self._write_data(data)
        self._write_sessions([environment()])

    def reopen(self, config: TrainingConfig, data: DataRecord) -> None:
        """Check that the folder holds a run of this configuration on this data.

        Raises:
            RunFolderError: if there is nothing to resume.
            InvalidConfig: naming the first option, or the first fact about the data, that has changed.
        """
        before = type(config).from_plain(self.read_config()).to_plain()
        now = config.to_plain()
        free = {field.name for field in dataclasses.fields(config) if field.metadata["may_change"]}
        for name, value in now.items():
            if name not in free and value != before[name]:
                raise InvalidConfig(
                    f"{self.path} was started with {name} = {before[name]}, not {value}; "
                    "resume with the same value, or give another --output"
                )
        parts = [f"{name} = {before[name]}, not {now[name]}" for name in _PARTS if before[name] != now[name]]
        if parts:
            text = (
                f"{self.path} was started with {' and '.join(parts)}: images and batch are the same, but what is drawn "
                "for each part (dropout, drop-path, mixing) is not, nor are unsynchronised BatchNorms"
            )
            warnings.warn(Note(text), stacklevel=2)
        self._check_data(data)
        self._remove_leftovers()
        self._write_sessions([*self.read_sessions(), environment()])

    def cut(self, step: int) -> dict[str, int]:
        """Drop the rows behind a step from all tables; the last step that each had before, by its name."""
        last = {table.path.stem: int(rows[-1]["step"]) for table in self.tables if (rows := table.rows())}
        for table in self.tables:
            table.cut(step)
        return last

    def read_config(self) -> dict[str, Any]:
        """Contents of ``config.yaml``.

        Raises:
            RunFolderError: if there is none.
        """
        try:
            config = yaml.safe_load((self.path / "config.yaml").read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise RunFolderError(f"nothing to resume in {self.path}: it has no config.yaml") from error
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise RunFolderError(f"cannot read {self.path / 'config.yaml'}: {error}") from error
        if not isinstance(config, dict):
            raise RunFolderError(f"{self.path / 'config.yaml'} holds no options")
        return config

    def read_sessions(self) -> list[dict[str, Any]]:
        """Contents of ``environment.json``: one entry for each time that the run was started or resumed.

        Raises:
            RunFolderError: if it cannot be read.
        """
        path = self.path / "environment.json"
        if not path.exists():
            return []
        try:
            sessions = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(sessions, list):
                raise ValueError("it holds no list")
        except (OSError, ValueError) as error:
            raise RunFolderError(f"cannot read {path}: {error}; repair it, or remove it to go on without") from error
        return sessions

    def _write_data(self, data: DataRecord) -> None:
        write_beside(self.path / "data.json", json.dumps(data.to_plain(), indent=2).encode())

    def _check_data(self, data: DataRecord) -> None:
        path = self.path / "data.json"
        if not path.exists():  # removed, or of version 0.1.0, which did not write it
            self._write_data(data)
            return
        try:
            change = data.change_since(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise RunFolderError(f"cannot read {path}: {error}; repair it, or remove it to go on without") from error
        if change is not None:
            raise InvalidConfig(
                f"{self.path} was started on other data; {change}; restore the data, or give another --output"
            )

    def _remove_leftovers(self) -> None:
        for folder in (self.path, self.checkpoints):
            if folder.is_dir():
                remove_leftovers(folder)

    def _never_began(self) -> bool:
        """Whether the folder is empty, or holds only what a run killed before its first checkpoint leaves."""
        names = {path.name.removeprefix(".").removesuffix(".partial") for path in self.path.iterdir()}
        known = {"checkpoints", "config.yaml", "data.json", "environment.json", "tensorboard", "wandb", "wandb_id.txt"}
        if "config.yaml" in names:  # alone it is somebody's own
            known.add(TOKENIZER)
        return names <= known and not any(self.checkpoints.glob("*.state"))

    def _write_sessions(self, sessions: list[dict[str, Any]]) -> None:
        write_beside(self.path / "environment.json", json.dumps(sessions, indent=2).encode())


def score(row: Mapping[str, float], metric: str, *, lower_is_better: bool = False) -> float:
    """The metric of a row so that higher is better; one that is no number is worse than any other."""
    value = row[metric]
    if math.isnan(value):
        return -math.inf
    return -value if lower_is_better else value


def best_row(rows: Sequence[dict[str, float]], metric: str, *, lower_is_better: bool = False) -> dict[str, float]:
    """The first of the evaluations with the best metric: that of the weights in ``model.safetensors``."""
    return max(rows, key=lambda row: score(row, metric, lower_is_better=lower_is_better))


def environment() -> dict[str, Any]:
    """Code, versions, machine and command of this process."""
    import torch  # here, since reading a folder does not need it

    return {
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": sys.argv,
        "git": _git(),
        "versions": {"python": platform.python_version(), **_versions()},
        "machine": {
            "system": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "cpu_count": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
    }


def _git() -> dict[str, Any] | None:
    """Commit of the working directory's tree, and whether files differ from it; None outside of git."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit, status = git("rev-parse", "HEAD"), git("status", "--porcelain")
    return None if status is None else {"commit": commit, "dirty": bool(status)}


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def _difference(name: str, before: Any, now: Any) -> str:
    """What has changed, in few words: of two lists the first item that differs."""
    if isinstance(before, list) and isinstance(now, list):
        if len(before) != len(now):
            return f"{name} had {len(before)} entries and has {len(now)}"
        place = next(index for index, (old, new) in enumerate(zip(before, now, strict=True)) if old != new)
        return f"{name}[{place}] was {before[place]!r} and is {now[place]!r}"
    return f"{name} was {before!r} and is {now!r}"


def _is_number(cell: str | None) -> bool:
    try:
        float(cell or "")
    except ValueError:
        return False
    return True
