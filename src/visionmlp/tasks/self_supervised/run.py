"""A run that learns a backbone without classes, scored by nearest neighbours."""

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from visionmlp.data import Preprocessing
from visionmlp.data.summary import RunData
from visionmlp.data.views import Views
from visionmlp.engine import RunFolder, Task
from visionmlp.engine.launch import agree, on_rank_zero
from visionmlp.models.backbone import Backbone
from visionmlp.models.checkpoint import save_checkpoint
from visionmlp.tasks.building import build_backbone, evaluation_batches, open_data, synchronise, training_batches
from visionmlp.tasks.definition import TrainResult
from visionmlp.tasks.protocols.knn import BankThenQueries
from visionmlp.tasks.running import Prepared, bad_images_of, launched_config, run_training, write_state
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
    config = launched_config(config)
    return run_training(config, lambda fabric, run: _prepared(fabric, config, method, run), write_report, resume=resume)


def _prepared(fabric: "Fabric", config: SelfSupervisedConfig, method: Method, run: RunFolder) -> Prepared:
    log = bad_images_of(config, run)
    # rank 0 first, so that it alone downloads
    training_source, evaluation_source = on_rank_zero(fabric, lambda: open_data(config))
    backbone = agree(fabric, lambda: build_backbone(config, num_classes=0))
    preprocessing = config.preprocessing(backbone)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed + 1)  # the backbone has drawn from the seed itself
        network = method.network(backbone)
    synchronise(network, config, fabric)
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

    return Prepared(
        model=network,
        task=method.task(len(training_source.class_names)),
        training=training,
        evaluation=BankThenQueries(bank, queries),
        data=RunData(training=training_source.summary(), evaluation=evaluation_source.summary()),
        write_weights=write_state,
        keep_best=keep_best,
        opened=(training, bank, queries),
    )
