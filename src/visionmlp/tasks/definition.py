"""What a task tells the command line about itself."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from visionmlp.engine.config import TrainingConfig
from visionmlp.measure.catalog import check_name

if TYPE_CHECKING:
    from visionmlp.bench.input_pipeline import InputBenchmark
    from visionmlp.data.check import CheckedImages
    from visionmlp.engine import FitResult


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainResult:
    """How a run ended."""

    folder: Path
    """The run folder, with ``model.safetensors`` and ``report.html``."""
    metrics: Mapping[str, float]
    """Of ``model.safetensors``, by the columns of ``metrics.csv``."""
    best_step: int
    """Step that its weights are of."""
    steps: int
    """Steps of the run."""
    seconds: float
    """Duration of training in this session."""
    rank: int = 0
    """Of this process among those that trained together; the first speaks for all."""

    @classmethod
    def of(cls, result: "FitResult", config: TrainingConfig, *, rank: int) -> "TrainResult":
        """What the loop says, and where it was."""
        return cls(
            folder=config.output,
            metrics=result.metrics,
            best_step=result.best_step,
            steps=result.steps,
            seconds=result.seconds,
            rank=rank,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """A model on a dataset."""

    title: str
    """Of the table: model and dataset."""
    columns: Mapping[str, str]
    """The table's one row, by heading."""
    record: Mapping[str, Any]
    """The same for programs, JSON values by name."""
    parts: Sequence[Mapping[str, str]] = ()
    """A second table, such as a row for each class, with the same headings in each."""


class Answer(Protocol):
    """What a model says about one image."""

    @property
    def image(self) -> str:
        """The image as it was named."""
        ...

    @property
    def error(self) -> str | None:
        """Why there is no answer, in one line."""
        ...

    def lines(self) -> Sequence[str]:
        """The answer for people; the image's name goes before the first line."""
        ...

    def rows(self) -> Sequence[Mapping[str, Any]]:
        """The answer as rows of a table, with the task's columns."""
        ...

    def record(self) -> Mapping[str, Any]:
        """The answer for programs, JSON values by name."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataCheck:
    """How ``check-data`` gets at a task's data."""

    recognises: Callable[[Path], bool]
    """Whether a folder is laid out for this task and no other."""
    splits: "Callable[[str, Path | None], Mapping[str, CheckedImages]]"
    """Takes a dataset and where it lies; gives its splits by name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskDefinition:
    """A task as ``visionmlp train``, ``eval`` and ``predict`` know it.

    The module that holds one is imported for the help and for every wrong option, so it imports no torch: what computes
    is imported inside the functions.
    """

    summary: str
    """One line for the help."""
    config: type[TrainingConfig]
    """Options of ``train``, with a field ``model``; its ``task`` is the name in the register."""
    train: Callable[..., TrainResult]
    """Takes a configuration of this class and ``resume=``, whether to continue the run in its output folder."""
    eval_options: type
    """Options of ``eval``, a subclass of `visionmlp.tasks.options.EvalOptions`."""
    evaluate: Callable[[Any], Scores]
    """Takes them."""
    predict_options: type
    """Options of ``predict``, a subclass of `visionmlp.tasks.options.PredictOptions`."""
    predict: Callable[[Any], Iterator[Answer]]
    """Takes them; gives each answer as soon as it is there."""
    answer_columns: Sequence[str]
    """Headings of the table that ``predict --output`` writes; none for a task that writes there itself."""
    measure_input: "Callable[..., InputBenchmark] | None" = None
    """Takes a configuration, ``num_workers=`` and ``steps=``; None for a task whose input ``bench`` cannot measure."""
    data_check: DataCheck | None = None
    """None for a task on data of another's kind, or of text."""
    check_model: Callable[[str], None] = check_name
    """Raises UnknownModel for a model that does not exist, before anything is imported that takes seconds."""
