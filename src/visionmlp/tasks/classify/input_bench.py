"""The input pipeline of a classification run, measured in its own training loop."""

import contextlib
import dataclasses
import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from visionmlp.bench.input_pipeline import InputBenchmark, InputMeasurement, measure_speeds
from visionmlp.data import BadImageLog
from visionmlp.data.summary import RunData
from visionmlp.engine import RunFolder, fit
from visionmlp.engine.launch import launch
from visionmlp.engine.task import EpochData
from visionmlp.measure.timing import describe_machine
from visionmlp.tasks.building import evaluation_batches, open_data, training_batches
from visionmlp.tasks.classify.config import ClassifyConfig
from visionmlp.tasks.classify.run import build_model, open_task
from visionmlp.tasks.input_bench import short

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def measure_input(config: ClassifyConfig, *, num_workers: Sequence[int], steps: int) -> InputBenchmark:
    """Train shortly with each number of workers; nothing is left behind.

    Args:
        config: of the run; its ``output`` and ``num_workers`` are not used.
        num_workers: processes that load images; several are several rows.
        steps: batches of each measurement.

    Raises:
        VisionMLPError: for everything that training would refuse.
    """
    try:
        return launch(config, lambda fabric: _measure(fabric, config, num_workers, steps))
    except KeyboardInterrupt:
        # the loop's own says how to resume
        raise KeyboardInterrupt("stopped before everything was measured") from None


def _measure(fabric: "Fabric", config: ClassifyConfig, num_workers: Sequence[int], steps: int) -> InputBenchmark:
    source, held_out = open_data(config)
    preprocessing = config.preprocessing(build_model(config, len(source.class_names)))
    transform = config.augmentation.transform(preprocessing)
    log = BadImageLog(config.on_bad_image)
    data = RunData(training=source.summary(), evaluation=held_out.summary())
    # the loop ends with an evaluation, which is not measured
    alone = dataclasses.replace(config, num_workers=0)
    evaluation = list(itertools.islice(evaluation_batches(alone, fabric, held_out, preprocessing, log), 1))

    def train(batches: EpochData, count: int) -> None:
        task, distillation = open_task(fabric, config, preprocessing, source)
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            if distillation is not None:
                stack.callback(distillation.close)
            fit(
                fabric=fabric,
                model=build_model(config, len(source.class_names)),
                task=task,
                training=batches,
                evaluation=evaluation,
                config=short(config, Path(folder) / "run", count),
                run=RunFolder(Path(folder) / "run"),
                write_weights=lambda *_: None,
                keep_best=lambda *_: None,
                data=data,
                quiet=True,
            )

    rows = []
    for workers in num_workers:
        speeds = measure_speeds(
            training_batches(
                dataclasses.replace(config, num_workers=workers),
                fabric,
                source,
                transform,
                preprocessing,
                log,
                repeats=config.repeated_augmentation,
            ),
            train,
            batch_size=config.part_size,
            steps=steps,
        )
        _, height, width = preprocessing.input_size
        rows.append(
            InputMeasurement(
                model=config.model,
                data=config.data,
                height=height,
                width=width,
                batch_size=config.part_size,
                num_workers=workers,
                steps=steps,
                **dataclasses.asdict(speeds),
            )
        )
    return InputBenchmark(machine=describe_machine(fabric.device), measurements=rows)
