"""Train segmentation networks."""

from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from visionmlp.engine import RunFolder
from visionmlp.engine.launch import agree, on_rank_zero
from visionmlp.models.dense_network import save_dense
from visionmlp.tasks.building import synchronise
from visionmlp.tasks.definition import TrainResult
from visionmlp.tasks.running import Prepared, bad_images_of, config_of_run, launched_config, run_training, write_state
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
    config = launched_config(config)
    return run_training(config, lambda fabric, run: prepared(fabric, config, run), write_report, resume=resume)


def read_config(folder: Path) -> SegmentConfig:
    """See `config_of_run`."""
    return config_of_run(folder, SegmentConfig)


def prepared(fabric: "Fabric", config: SegmentConfig, run: RunFolder) -> Prepared:
    """What a run starts with; see `run_training`."""
    log = bad_images_of(config, run)
    training_pairs, evaluation_pairs = on_rank_zero(fabric, lambda: open_data(config))
    classes = training_pairs.classes
    network = agree(fabric, lambda: build_network(config, classes.count, classes.names))
    synchronise(network, config, fabric)
    preparation = agree(fabric, lambda: preparation_of(config, network, classes))
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

    def keep_best(weights: nn.Module, metric: SegmentationMetric) -> None:
        save_dense(run.model, weights, class_names=classes.names, preprocessing=preparation.to_saved())
        write_classes(run.path / "classes.csv", metric, classes.names)

    def show(step: int, metric: SegmentationMetric) -> None:
        write_pictures(run.path, step, metric, evaluation_pairs, exif_orientation=config.exif_orientation)

    return Prepared(
        model=network,
        task=Segmentation(classes.count, loss=loss_of(config), inference=preparation.inference, shown=shown),
        training=training,
        evaluation=evaluation,
        data=SegmentData(training=training_pairs, evaluation=evaluation_pairs),
        write_weights=write_state,
        keep_best=keep_best,
        show=show if shown else None,
        opened=(training, evaluation),
    )
