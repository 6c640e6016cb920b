"""What a run shows: a bar with speed and remaining time in a terminal, plain lines elsewhere."""

import datetime
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column


class ProgressReport:
    """Shows a run on standard error.

    Args:
        steps: of the whole run.
        done: steps done in earlier sessions.
        quiet: show nothing, for processes other than the first.
    """

    def __init__(self, *, steps: int, done: int, quiet: bool) -> None:
        self.steps, self.done, self.first = steps, done, done
        self.console = Console(stderr=True, quiet=quiet, soft_wrap=True, highlight=False)
        self.started = time.monotonic()
        self.bar = Progress(
            BarColumn(bar_width=16),
            TextColumn("{task.completed:.0f}/{task.total:.0f}", table_column=Column(no_wrap=True)),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[text]}", table_column=Column(no_wrap=True, overflow="crop")),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
        )
        self.task = self.bar.add_task("", total=steps, completed=done, text="")

    def __enter__(self) -> "ProgressReport":
        if not self.bar.disable:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self.bar.disable:  # older versions of rich print an empty line all the same
            self.bar.stop()

    def advance(self, step: int) -> None:
        """A step is done."""
        self.done = step
        self.bar.update(self.task, completed=step)

    def logged(self, *, epoch: int, loss: float, lr: float, speed: str) -> None:
        """A line of train.csv."""
        text = f"epoch {epoch}  loss {loss:.4f}  lr {lr:.2e}  {speed}"
        self.bar.update(self.task, text=text)
        if not self.console.is_terminal:
            per_step = (time.monotonic() - self.started) / max(1, self.done - self.first)
            left = datetime.timedelta(seconds=round(per_step * (self.steps - self.done)))
            self.console.print(f"step {self.done}/{self.steps}  {text}  left {left}")

    def evaluated(self, *, step: int, epoch: int, metrics: dict[str, float], best: bool) -> None:
        """A line of metrics.csv."""
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        self.console.print(f"step {step}  epoch {epoch}  {numbers}{'  (best)' if best else ''}")

    def note(self, text: str) -> None:
        """Any other line."""
        self.console.print(text, markup=False)
