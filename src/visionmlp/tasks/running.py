"""What runs of all tasks have in common: processes, folder, loop, report."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from safetensors.torch import save_file
from torch import nn

from visionmlp.data import BadImageLog
from visionmlp.engine import RunFolder, Task, fit
from visionmlp.engine.checkpoints import WriteWeights
from visionmlp.engine.config import ConfigT, TrainingConfig
from visionmlp.engine.launch import as_launched, launch, on_rank_zero
from visionmlp.engine.loop import KeepBest, ShowEvaluation
from visionmlp.engine.run_folder import DataRecord
from visionmlp.engine.task import EpochData
from visionmlp.errors import require
from visionmlp.files import whole_file
from visionmlp.tasks.definition import TrainResult
from visionmlp.tasks.image_config import ImageTrainingConfig

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Closable(Protocol):
    """What holds processes or files until the run has ended."""

    def close(self) -> None:
        """Let go of them."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """What `visionmlp.engine.fit` needs to be told; the arguments of this name."""

    model: nn.Module
    task: Task
    training: EpochData
    evaluation: Iterable[Any]
    data: DataRecord
    write_weights: WriteWeights
    keep_best: KeepBest
    show: ShowEvaluation | None = None
    opened: Sequence[Closable | None]
    """Closed behind the run."""


Prepare = Callable[["Fabric", RunFolder], Prepared]
"""What a run starts with, from its processes and its folder, which is not made yet."""


def run_training(
    config: TrainingConfig, prepare: Prepare, write_report: Callable[[Path], Any], *, resume: bool
) -> TrainResult:
    """Train into a run folder.

    Args:
        config: all options.
        prepare: called in every process, with the options of `launched_config`.
        write_report: called with the folder behind training.
        resume: continue the run in ``config.output`` from its newest checkpoint.

    Raises:
        VisionMLPError: for everything that a user can act on.
        KeyboardInterrupt: at SIGINT or SIGTERM, when all is saved.
    """

    def train(fabric: "Fabric") -> TrainResult:
        run = RunFolder(config.output)
        prepared = prepare(fabric, run)
        arguments = {field.name: getattr(prepared, field.name) for field in dataclasses.fields(prepared)}
        with contextlib.ExitStack() as stack:
            for opened in arguments.pop("opened"):
                if opened is not None:
                    stack.callback(opened.close)
            result = fit(fabric=fabric, config=config, run=run, resume=resume, **arguments)
        on_rank_zero(fabric, lambda: write_report(run.path))
        return TrainResult.of(result, config, rank=fabric.global_rank)

    return launch(config, train)


def bad_images_of(config: ImageTrainingConfig, run: RunFolder) -> BadImageLog:
    """What happens to images that cannot be read, and where they are noted."""
    return BadImageLog(config.on_bad_image, run.bad_images)


def launched_config(config: ConfigT) -> ConfigT:
    """The options of a run with the processes that it has been started in, if it can be ended too.

    Raises:
        MissingExtra: without matplotlib: now rather than behind the training.
        InvalidConfig: see `as_launched`.
    """
    require("matplotlib", extra="plots")
    return as_launched(config)


def config_of_run(folder: Path, kind: type[ConfigT]) -> ConfigT:
    """The configuration of a run.

    Raises:
        RunFolderError: if there is none.
        InvalidConfig: if it was edited and breaks a rule.
    """
    return kind.from_plain(RunFolder(folder).read_config())


def write_state(path: Path, network: nn.Module) -> None:
    """All tensors of a network, for resuming."""
    tensors: dict[str, Any] = network.state_dict()
    with whole_file(path) as partial:
        save_file({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, partial)
