"""The input pipeline of a run that `run_training` could start, measured in its own training loop."""

import contextlib
import copy
import dataclasses
import itertools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from visionmlp.bench.input_pipeline import InputBenchmark, InputMeasurement, measure_speeds
from visionmlp.data.loading import EvaluationLoader, TrainingLoader
from visionmlp.engine import RunFolder, fit
from visionmlp.engine.launch import launch
from visionmlp.engine.task import EpochData
from visionmlp.measure.timing import describe_machine
from visionmlp.tasks.image_config import ImageTrainingConfig
from visionmlp.tasks.running import Prepared

if TYPE_CHECKING:
    from lightning_fabric import Fabric

ImageConfigT = TypeVar("ImageConfigT", bound=ImageTrainingConfig)


def measure_prepared(
    config: ImageConfigT,
    prepare: "Callable[[Fabric, ImageConfigT, RunFolder], Prepared]",
    size_of: Callable[[Any], tuple[int, int]],
    *,
    num_workers: Sequence[int],
    steps: int,
) -> InputBenchmark:
    """Train shortly with each number of workers; nothing is left behind.

    Args:
        config: of the run; its ``output`` and ``num_workers`` are not used.
        prepare: the run's own.
        size_of: the network, to height and width of the images that it takes.
        num_workers: processes that load images; several are several rows.
        steps: batches of each measurement.

    Raises:
        VisionMLPError: for everything that training would refuse.
    """

    def measure(fabric: "Fabric") -> InputBenchmark:
        with tempfile.TemporaryDirectory() as folder:
            rows = [_row(fabric, config, prepare, size_of, count, steps, Path(folder) / "run") for count in num_workers]
        return InputBenchmark(machine=describe_machine(fabric.device), measurements=rows)

    try:
        return launch(config, measure)
    except KeyboardInterrupt:
        # the loop's own says how to resume
        raise KeyboardInterrupt("stopped before everything was measured") from None


def _row(
    fabric: "Fabric",
    config: ImageConfigT,
    prepare: "Callable[[Fabric, ImageConfigT, RunFolder], Prepared]",
    size_of: Callable[[Any], tuple[int, int]],
    num_workers: int,
    steps: int,
    output: Path,
) -> InputMeasurement:
    config = dataclasses.replace(config, num_workers=num_workers)
    output.mkdir(exist_ok=True)  # where bad images are noted
    prepared = prepare(fabric, config, RunFolder(output))
    with contextlib.ExitStack() as stack:
        for opened in prepared.opened:
            if opened is not None:
                stack.callback(opened.close)
        # the loop ends with an evaluation, which is not measured
        evaluation = list(itertools.islice(prepared.evaluation, 1))
        if isinstance(prepared.evaluation, EvaluationLoader):
            prepared.evaluation.close()  # its workers would read on beside those that are measured

        def train(batches: EpochData, count: int) -> None:
            with tempfile.TemporaryDirectory() as folder:
                fit(
                    fabric=fabric,
                    model=copy.deepcopy(prepared.model),
                    task=prepared.task,
                    training=batches,
                    evaluation=evaluation,
                    config=short(config, Path(folder) / "run", count),
                    run=RunFolder(Path(folder) / "run"),
                    write_weights=lambda *_: None,
                    keep_best=lambda *_: None,
                    data=prepared.data,
                    quiet=True,
                )

        assert isinstance(prepared.training, TrainingLoader)
        speeds = measure_speeds(prepared.training, train, batch_size=config.part_size, steps=steps)
    height, width = size_of(prepared.model)
    return InputMeasurement(
        model=config.model,
        data=config.data,
        height=height,
        width=width,
        batch_size=config.part_size,
        num_workers=num_workers,
        steps=steps,
        **dataclasses.asdict(speeds),
    )


def short(config: ImageConfigT, output: Path, batches: int) -> ImageConfigT:
    """Training for so many batches that writes and evaluates at its end only."""
    never = 10**9
    return dataclasses.replace(
        config,
        output=output,
        max_steps=-(-batches // config.accumulate),
        log_every=never,
        eval_every=never,
        save_every=None,
        # weights that hardly move, so that no model diverges
        lr=1e-6,
        min_lr=0.0,
        warmup_epochs=0.0,
    )
