"""A run that learns a backbone without classes, scored by nearest neighbours."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors.torch import save_file
from torch import nn

from visionmlp.data import BadImageLog, Preprocessing
from visionmlp.data.summary import RunData
from visionmlp.data.views import Views
from visionmlp.engine import RunFolder, Task, fit
from visionmlp.engine.launch import agree, as_launched, launch, on_rank_zero
from visionmlp.errors import require
from visionmlp.files import whole_file
from visionmlp.models.backbone import Backbone
from visionmlp.models.checkpoint import save_checkpoint
from visionmlp.tasks.building import build_backbone, evaluation_batches, open_data, synchronise, training_batches
from visionmlp.tasks.definition import TrainResult
from visionmlp.tasks.protocols.knn import BankThenQueries, closing
from visionmlp.tasks.self_supervised.config import SelfSupervisedConfig
from visionmlp.tasks.self_supervised.figures import write_report

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """What makes a self-supervised method."""

    network: Callable[[Backbone], nn.Module]
    """From a backbone to what is trained; it keeps the backbone as ``backbone``."""
    task: Callable[[int], Task]
    """From the number of classes, which only the metric needs."""
    views: Callable[[Preprocessing], Views]
    """What a batch holds of each image."""
    shipped: str
    """Which of its networks ``model.safetensors`` holds."""


def cosine(start: float, end: float, step: int, steps: int) -> float:
    """Of ``steps`` values, the first is ``start``; ``end`` would be the one behind the last."""
    return end + (start - end) * (1 + math.cos(math.pi * step / steps)) / 2


def train(config: SelfSupervisedConfig, method: Method, *, resume: bool) -> TrainResult:
    """Train a backbone into a run folder.

    Args:
        config: all options.
        method: what is trained, and how.
        resume: continue the run in ``config.output`` from its newest checkpoint.

    Raises:
        VisionMLPError: for everything that a user can act on.
        KeyboardInterrupt: at SIGINT or SIGTERM, when all is saved.
    """
    require("matplotlib", extra="plots")  # now rather than behind the training
    config = as_launched(config)
    return launch(config, lambda fabric: _train(fabric, config, method, resume))


def _train(fabric: "Fabric", config: SelfSupervisedConfig, method: Method, resume: bool) -> TrainResult:
    # rank 0 first, so that it alone downloads
    training_source, evaluation_source = on_rank_zero(fabric, lambda: open_data(config))
    backbone = agree(fabric, lambda: build_backbone(config, num_classes=0))
    preprocessing = config.preprocessing(backbone)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed + 1)  # the backbone has drawn from the seed itself
        network = method.network(backbone)
    synchronise(network, config, fabric)
    run = RunFolder(config.output)
    log = BadImageLog(config.on_bad_image, run.bad_images)
    training = training_batches(config, fabric, training_source, method.views(preprocessing), preprocessing, log)
    bank = evaluation_batches(config, fabric, training_source, preprocessing, log)
    queries = evaluation_batches(config, fabric, evaluation_source, preprocessing, log)

    def keep_best(weights: nn.Module, _metric: Any) -> None:
        save_checkpoint(
            run.model,
            cast("Backbone", weights),
            preprocessing=preprocessing.to_saved(),
            task=config.task,
            network=method.shipped,
        )

    with closing(training, bank, queries):
        result = fit(
            fabric=fabric,
            model=network,
            task=method.task(len(training_source.class_names)),
            training=training,
            evaluation=BankThenQueries(bank, queries),
            config=config,
            run=run,
            write_weights=_write_weights,
            keep_best=keep_best,
            data=RunData(training=training_source.summary(), evaluation=evaluation_source.summary()),
            resume=resume,
        )
    on_rank_zero(fabric, lambda: write_report(run.path))
    return TrainResult.of(result, config, rank=fabric.global_rank)


def _write_weights(path: Path, network: nn.Module) -> None:
    """Backbone and heads, for resuming."""
    tensors: Mapping[str, torch.Tensor] = network.state_dict()
    with whole_file(path) as partial:
        save_file({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, partial)
