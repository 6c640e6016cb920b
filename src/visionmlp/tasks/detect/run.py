"""Train detectors."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from visionmlp.data.loading import EpochOrder, EvaluationLoader, TrainingLoader
from visionmlp.engine import RunFolder
from visionmlp.engine.launch import agree
from visionmlp.errors import DataError, require
from visionmlp.models.backbone import Backbone
from visionmlp.models.dense_network import save_dense
from visionmlp.models.detector import Detector, create_detector
from visionmlp.models.freezing import freeze
from visionmlp.tasks.building import build_dense_network, synchronise
from visionmlp.tasks.definition import TrainResult
from visionmlp.tasks.detect.annotations import AnnotatedSet, Categories, DetectionData, note
from visionmlp.tasks.detect.config import DetectConfig
from visionmlp.tasks.detect.dataset import open_set
from visionmlp.tasks.detect.figures import Pictures, write_report
from visionmlp.tasks.detect.metrics import CocoMetric
from visionmlp.tasks.detect.samples import AnnotatedImages, ForTraining, collate, for_evaluation, mode_of
from visionmlp.tasks.detect.task import Detection
from visionmlp.tasks.running import Prepared, bad_images_of, config_of_run, launched_config, run_training

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def train(config: DetectConfig, *, resume: bool = False) -> TrainResult:
    """Train a detector into a run folder.

    Args:
        config: all options.
        resume: continue the run in ``config.output`` from its newest checkpoint.

    Raises:
        VisionMLPError: for everything that a user can act on.
        KeyboardInterrupt: at SIGINT or SIGTERM, when all is saved.
    """
    require("faster_coco_eval", extra="detection")  # now rather than behind the training
    config = launched_config(config)
    return run_training(config, lambda fabric, run: prepared(fabric, config, run), write_report, resume=resume)


def read_config(folder: Path) -> DetectConfig:
    """See `config_of_run`."""
    return config_of_run(folder, DetectConfig)


def open_data(config: DetectConfig) -> tuple[AnnotatedSet, AnnotatedSet]:
    """The images of a run, to train and to evaluate on, with the same categories.

    Raises:
        DataError: if they are not there or cannot be used, or without masks for a head that learns them.
    """
    training = open_set(config.data, "train", root=config.data_root, annotations=config.train_annotations)
    evaluation = open_set(
        config.data,
        "validation",
        root=config.data_root,
        annotations=config.val_annotations,
        known=(training.categories, str(training.source)),
    )
    if config.masks:
        for part in (training, evaluation):
            if not part.has_outlines:
                raise DataError(f"{part.source} has boxes only, but {config.head} learns masks; use faster_rcnn")
        training = training.for_masks()
        training.require_objects()
    if config.empty_images == "leave_out":
        with_objects = training.with_objects()
        if left_out := len(training.images) - len(with_objects.images):
            note(f"{training.source}: left out {left_out} images without objects; --empty-images keep trains on them")
        training = with_objects
    training, evaluation = (part.first(config.max_images) for part in (training, evaluation))
    for part in (training, evaluation):
        config.require(
            any(image.objects for image in part.images),
            f"the first {config.max_images} images of {part.source} have no object; give more max_images, or none",
        )
    return training, evaluation


def build_network(config: DetectConfig, categories: Categories) -> Detector:
    """The detector of a run before training, a function of the configuration.

    Raises:
        VisionMLPError: for a network that cannot be built or loaded.
    """
    network = build_dense_network(config, lambda backbone: _with_head(config, backbone, categories), categories.names)
    freeze(network, levels=max(config.frozen_stages, 0), stem=config.frozen_stages >= 0)
    return network


def _with_head(config: DetectConfig, backbone: Backbone, categories: Categories) -> Detector:
    channels = backbone.in_chans
    for name in ("mean", "std"):
        given = getattr(config, name)
        config.require(
            given is None or len(given) == channels, f"{name} needs one number for each of {channels} channels"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed + 1)  # the backbone has drawn from the seed itself
        return create_detector(
            backbone,
            head=config.head,
            num_classes=len(categories.names),
            definition=config.definition,
            settings={**config.settings, "detections_per_img": config.max_detections},
            min_size=config.min_size,
            max_size=config.max_size,
            image_mean=config.mean,
            image_std=config.std,
            fpn_channels=config.fpn_channels,
            tile_overlap=config.tile_overlap,
        )


def prepared(fabric: "Fabric", config: DetectConfig, run: RunFolder) -> Prepared:
    """What a run starts with; see `run_training`."""
    log = bad_images_of(config, run)
    training_set, evaluation_set = agree(fabric, lambda: open_data(config))
    categories = training_set.categories
    network = agree(fabric, lambda: build_network(config, categories))
    synchronise(network, config, fabric)
    readers = [
        AnnotatedImages(
            part, mode=mode_of(network.backbone.in_chans), masks=masks, exif_orientation=config.exif_orientation
        )
        for part, masks in ((training_set, config.masks), (evaluation_set, False))
    ]
    common: dict[str, Any] = {
        "collate": collate,
        "bad_images": log,
        "num_workers": config.num_workers,
        "pin_memory": fabric.device.type == "cuda",
    }
    order = EpochOrder(
        len(training_set.images),
        config.part_size,
        seed=config.seed,
        rank=fabric.global_rank,
        ranks=fabric.world_size,
    )
    training = TrainingLoader(readers[0], ForTraining(config.augmentation), order, **common)
    evaluation = EvaluationLoader(
        readers[1],
        for_evaluation,
        batch_size=config.part_size,
        rank=fabric.global_rank,
        ranks=fabric.world_size,
        **common,
    )

    def write_weights(path: Path, weights: nn.Module) -> None:
        save_dense(path, weights, class_names=categories.names, preprocessing=saved_of(config, categories))

    def keep_best(weights: nn.Module, metric: CocoMetric) -> None:
        write_weights(run.model, weights)
        metric.write_classes(run.path / "classes.csv")

    return Prepared(
        model=network,
        task=Detection(evaluation_set, masks=config.masks, max_detections=config.max_detections),
        training=training,
        evaluation=evaluation,
        data=DetectionData(training=training_set.summary(), evaluation=evaluation_set.summary()),
        write_weights=write_weights,
        keep_best=keep_best,
        show=Pictures(run.path, readers[1], config.pictures),
        opened=(training, evaluation),
    )


def saved_of(config: DetectConfig, categories: Categories) -> dict[str, Any]:
    """What a checkpoint keeps beside names and weights; the network itself normalises and resizes."""
    return {"category_ids": list(categories.ids), "exif_orientation": config.exif_orientation}
