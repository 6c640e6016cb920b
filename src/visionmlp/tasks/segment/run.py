"""Train segmentation networks."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from safetensors.torch import save_file
from torch import nn

from visionmlp.data import BadImageLog
from visionmlp.engine import RunFolder, fit
from visionmlp.engine.launch import agree, as_launched, launch, on_rank_zero
from visionmlp.errors import require
from visionmlp.files import whole_file
from visionmlp.models.dense_network import save_dense
from visionmlp.tasks.building import synchronise
from visionmlp.tasks.definition import TrainResult
from visionmlp.tasks.segment.building import (
    build_network,
    crop_size_of,
    evaluation_batches,
    loss_of,
    open_data,
    preparation_of,
    shown_numbers,
    training_batches,
)
from visionmlp.tasks.segment.config import SegmentConfig
from visionmlp.tasks.segment.figures import write_classes, write_pictures, write_report
from visionmlp.tasks.segment.layouts import SegmentData
from visionmlp.tasks.segment.metrics import SegmentationMetric
from visionmlp.tasks.segment.task import Segmentation

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def train(config: SegmentConfig, *, resume: bool = False) -> TrainResult:
    """Train a segmentation network into a run folder.

    Args:
        config: all options.
        resume: continue the run in ``config.output`` from its newest checkpoint.

    Raises:
        VisionMLPError: for everything that a user can act on.
        KeyboardInterrupt: at SIGINT or SIGTERM, when all is saved.
    """
    require("matplotlib", extra="plots")  # now rather than behind the training
    config = as_launched(config)
    return launch(config, lambda fabric: _train(fabric, config, resume))


def read_config(folder: Path) -> SegmentConfig:
    """The configuration of a run.

    Raises:
        RunFolderError: if there is none.
        InvalidConfig: if it was edited and breaks a rule.
    """
    return SegmentConfig.from_plain(RunFolder(folder).read_config())


def _train(fabric: "Fabric", config: SegmentConfig, resume: bool) -> TrainResult:
    training_pairs, evaluation_pairs = on_rank_zero(fabric, lambda: open_data(config))
    classes = training_pairs.classes
    network = agree(fabric, lambda: build_network(config, classes.count))
    synchronise(network, config, fabric)
    preparation = agree(fabric, lambda: preparation_of(config, network, classes))
    run = RunFolder(config.output)
    log = BadImageLog(config.on_bad_image, run.bad_images)
    crop = crop_size_of(config, network.backbone)
    training = training_batches(config, fabric, training_pairs, crop, preparation, log)
    evaluation = evaluation_batches(
        evaluation_pairs,
        preparation.transform(),
        exif_orientation=config.exif_orientation,
        batch_size=config.eval_batch_size,
        num_workers=config.num_workers,
        log=log,
        rank=fabric.global_rank,
        ranks=fabric.world_size,
    )
    shown = shown_numbers(config.pictures, len(evaluation_pairs))
    task = Segmentation(classes.count, loss=loss_of(config), inference=preparation.inference, shown=shown)

    def write_weights(path: Path, weights: nn.Module) -> None:
        tensors = cast("dict[str, Any]", weights.state_dict())
        with whole_file(path) as partial:
            save_file({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, partial)

    def keep_best(weights: nn.Module, metric: SegmentationMetric) -> None:
        save_dense(run.model, weights, class_names=classes.names, preprocessing=preparation.to_saved())
        write_classes(run.path / "classes.csv", metric, classes.names)

    def show(step: int, metric: SegmentationMetric) -> None:
        write_pictures(run.path, step, metric, evaluation_pairs, exif_orientation=config.exif_orientation)

    with contextlib.ExitStack() as stack:
        for opened in (training, evaluation):
            stack.callback(opened.close)
        result = fit(
            fabric=fabric,
            model=network,
            task=task,
            training=training,
            evaluation=evaluation,
            config=config,
            run=run,
            write_weights=write_weights,
            keep_best=keep_best,
            data=SegmentData(training=training_pairs, evaluation=evaluation_pairs),
            show=show if shown else None,
            resume=resume,
        )
    on_rank_zero(fabric, lambda: write_report(run.path))
    return TrainResult.of(result, config, rank=fabric.global_rank)
