"""A run's rows for those who watch runs elsewhere: TensorBoard, Weights & Biases. The tables stay what counts.

A row goes to the loggers before it goes to its table. So after a kill a logger has all that the tables have and at most
one row more, which TensorBoard is told to forget.
"""

import contextlib
import os
import secrets
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol

from visionmlp.engine.config import TrainingConfig
from visionmlp.engine.run_folder import RunFolder
from visionmlp.errors import InvalidConfig, first_line, require
from visionmlp.files import write_beside


class Row(NamedTuple):
    """A row of a table, as loggers take it."""

    table: str
    step: int
    values: dict[str, float]
    """By ``table/column``."""

    @classmethod
    def of(cls, path: Path, row: Mapping[str, Any]) -> "Row":
        """A row of the table at ``path``."""
        values = {f"{path.stem}/{name}": float(value) for name, value in row.items() if name != "step"}
        return cls(path.stem, int(row["step"]), values)


class LogState(NamedTuple):
    """Where a run stands when its loggers are opened."""

    step: int
    """Steps done."""
    rows: Sequence[Row]
    """Of its tables, up to this step."""
    logged: Mapping[str, int]
    """Last step of each table before it was cut to this step."""

    @classmethod
    def of(cls, run: RunFolder, step: int, logged: Mapping[str, int]) -> "LogState":
        """The state of a run whose tables are cut."""
        rows = [Row.of(table.path, row) for table in run.tables for row in table.rows()]
        return cls(step, sorted(rows, key=lambda row: row.step), logged)


class Logger(Protocol):
    """One of them, open."""

    def write(self, row: Row) -> None:
        """Log a row; any exception means that the logger cannot go on."""
        ...

    def close(self, *, failed: bool) -> None:
        """Write what is waiting, and end."""
        ...


class TensorBoardLogger:
    """Event files in the run's folder ``tensorboard``."""

    def __init__(self, run: RunFolder, config: TrainingConfig, state: LogState) -> None:
        del config
        from torch.utils.tensorboard.writer import SummaryWriter

        folder = run.path / "tensorboard"
        first = state.step if any(folder.glob("events.*")) else 0
        # what an earlier session logged of these steps is forgotten, and said again
        self.writer = SummaryWriter(str(folder), purge_step=first)
        for row in state.rows:
            if row.step >= first:
                self.write(row)

    def write(self, row: Row) -> None:
        """See `Logger`."""
        for name, value in row.values.items():
            self.writer.add_scalar(name, value, row.step)
        self.writer.flush()  # a kill shall cost nothing, and a full disk shall show here

    def close(self, *, failed: bool) -> None:
        """See `Logger`."""
        del failed
        self.writer.close()


class WandbLogger:
    """A run of Weights & Biases; its id stands in the run's ``wandb_id.txt``, so that resuming continues it."""

    def __init__(self, run: RunFolder, config: TrainingConfig, state: LogState) -> None:
        wandb: Any = require("wandb", extra="wandb")
        path = run.path / "wandb_id.txt"
        started = path.exists()
        identity = path.read_text(encoding="utf-8").strip() if started else secrets.token_hex(4)
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "visionmlp"),
            name=run.path.name,
            id=identity,
            resume="allow",
            dir=str(run.path),
            config=config.to_plain(),
            settings=wandb.Settings(console="off"),  # which would stand between us and the terminal
        )
        # not W&B's own steps: it drops what comes a second time at a step, as an evaluation does
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")
        self.logged = state.logged if started else {}
        for row in state.rows:
            self.write(row)
        write_beside(path, f"{identity}\n".encode())

    def write(self, row: Row) -> None:
        """See `Logger`."""
        if row.step > self.logged.get(row.table, -1):  # else an earlier session has said it, bit by bit
            self.run.log({"step": row.step, **row.values})

    def close(self, *, failed: bool) -> None:
        """See `Logger`."""
        self.run.finish(exit_code=int(failed))


_LOGGERS: dict[str, Callable[[RunFolder, TrainingConfig, LogState], Logger]] = {
    "tensorboard": TensorBoardLogger,
    "wandb": WandbLogger,
}


def require_loggers(names: Iterable[str]) -> None:
    """Import what the loggers need.

    Raises:
        MissingExtra: naming the first whose package is not installed.
    """
    for name in names:
        require(name, extra=name)


class Loggers:
    """All loggers of a run, in its first process. One that fails is named once and left out from then on.

    Args:
        opened: by name.
    """

    def __init__(self, opened: Mapping[str, Logger]) -> None:
        self.opened = dict(opened)

    @classmethod
    def open(cls, run: RunFolder, config: TrainingConfig, state: LogState, *, resumed: bool) -> "Loggers":
        """Open those of the configuration.

        Args:
            run: the folder.
            config: options of the run.
            state: where it stands.
            resumed: whether training goes on without a logger that cannot be opened.

        Raises:
            InvalidConfig: for one that cannot be opened, if the run is new.
        """
        loggers = cls({})
        for name in config.logger:
            try:
                loggers.opened[name] = _LOGGERS[name](run, config, state)
            except Exception as error:  # of a network, a disk, an account
                if not resumed:
                    loggers.close(failed=True)
                    raise InvalidConfig(
                        f"logger {name} cannot start ({first_line(error)}); repair that, or leave out --logger {name}"
                    ) from error
                loggers.drop(name, error)
        return loggers

    def write(self, path: Path, row: Mapping[str, Any]) -> None:
        """Log a row of the table at ``path``."""
        for name, logger in list(self.opened.items()):
            try:
                logger.write(Row.of(path, row))
            except Exception as error:
                self.drop(name, error)

    def drop(self, name: str, error: Exception) -> None:
        """Go on without a logger."""
        logger = self.opened.pop(name, None)
        warnings.warn(
            f"logger {name} failed ({first_line(error)}); training goes on without it, and train.csv and metrics.csv "
            "have every row",
            stacklevel=2,
        )
        if logger is not None:
            with contextlib.suppress(Exception):
                logger.close(failed=True)

    def close(self, *, failed: bool) -> None:
        """Close all."""
        for name, logger in list(self.opened.items()):
            try:
                logger.close(failed=failed)
            except Exception as error:
                self.drop(name, error)
        self.opened = {}

    def __enter__(self) -> "Loggers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(failed=kind is not None)
