"""Train and evaluate image classifiers."""

# ruff: noqa: RUF009 (option() is a dataclass field)

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import timm.data.auto_augment
import torch
from torch import Tensor, nn

from visionmlp.data import (
    Augmentation,
    BadImageLog,
    Batch,
    EvaluationBatches,
    ImageSource,
    Preprocessing,
    TrainingBatches,
    open_evaluation_data,
    open_training_data,
)
from visionmlp.data.batches import EpochOrder
from visionmlp.data.policy import OnBadImage
from visionmlp.engine import RunFolder, TrainingConfig, fit, launch, on_rank_zero
from visionmlp.engine import evaluate as evaluate_task
from visionmlp.engine.config import about, option
from visionmlp.errors import DataError, InvalidConfig, require
from visionmlp.layers.fusible import is_training_form
from visionmlp.models.backbone import Backbone
from visionmlp.models.checkpoint import (
    CheckpointInfo,
    default_preprocessing,
    load_checkpoint,
    load_model,
    save_checkpoint,
)
from visionmlp.tasks.classify import Classification, Mixing
from visionmlp.tools.report import write_report

if TYPE_CHECKING:
    from lightning_fabric import Fabric

INTERPOLATIONS = ("bilinear", "bicubic", "nearest", "lanczos")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifyConfig(TrainingConfig):
    """Options of a classification run."""

    model: str = dataclasses.field(
        metadata=about("model name; or a run folder or checkpoint of a training form, to continue from", "model")
    )
    model_args: dict[str, Any] = dataclasses.field(
        default_factory=dict,
        metadata=about("fields of the model's family, such as {'kernel_sizes': [1, 3]}", "model"),
    )
    checkpoint: Path | None = option(None, "weights to start from: ours or the authors' (.pth, .npz)", group="model")
    img_size: int | None = option(None, "side of the input in pixels, if not the model's own", group="model")
    drop_path_rate: float | None = option(None, "probability that training skips a residual branch", group="model")
    head_bias: float | None = option(None, "initial bias of the classifier, such as -6.9 for bce_sum", group="model")

    data: str = dataclasses.field(
        metadata=about(
            "folder with train/ and val/ (or valid/, validation/, test/) of class folders; or sklearn/digits, "
            "torch/cifar100, hfds/NAME, wds/NAME",
            "data",
        )
    )
    data_root: Path | None = option(
        None, "where a named dataset lies; a relative folder starts here", group="data", may_change=True
    )
    download: bool = option(
        False, "fetch a named dataset that is not there; otherwise nothing is fetched", group="data", may_change=True
    )
    num_workers: int = option(2, "processes that load images, for each device", group="data", may_change=True)
    on_bad_image: OnBadImage = option(
        "stop", "an image that cannot be read ends the run, or is skipped and named in bad_images.txt", group="data"
    )

    mean: tuple[float, ...] | None = option(None, "of the channels in [0, 1], if not the model's own", group="images")
    std: tuple[float, ...] | None = option(None, "of the channels in [0, 1], if not the model's own", group="images")
    interpolation: Literal["bilinear", "bicubic", "nearest", "lanczos"] | None = option(
        None, "of all resizing, if not the model's own", group="images"
    )
    crop_pct: float | None = option(
        None, "side of evaluation's central crop over the resized side, if not the model's own", group="images"
    )
    crop: Literal["resized", "pad", "center"] = option(
        "resized",
        "training crops: a random area, resized; the image shifted within a border; or as in evaluation",
        group="augmentation",
    )
    crop_scale: tuple[float, float] = option(
        (0.08, 1.0), "least and largest area of a resized crop", group="augmentation"
    )
    crop_ratio: tuple[float, float] = option(
        (3 / 4, 4 / 3), "least and largest aspect ratio of a resized crop", group="augmentation"
    )
    crop_padding: int = option(4, "border of a pad crop, in pixels", group="augmentation")
    hflip: float = option(0.5, "probability of a left-right flip", group="augmentation")
    rotation: float = option(0.0, "largest rotation either way, in degrees", group="augmentation")
    color_jitter: float = option(0.0, "strength of random brightness, contrast, saturation", group="augmentation")
    auto_augment: str | None = option(None, "timm's notation, such as rand-m9-mstd0.5-inc1", group="augmentation")
    erasing: float = option(0.0, "probability of erasing a rectangle", group="augmentation")
    erasing_mode: Literal["const", "rand", "pixel"] = option(
        "pixel", "fill of erased rectangles: zeros, one colour, noise", group="augmentation"
    )
    repeated_augmentation: int = option(
        1, "augmented views of an image within an epoch, which then sees fewer images", group="augmentation"
    )
    mixup: float = option(0.0, "alpha of mixup; 0 is off", group="augmentation")
    cutmix: float = option(0.0, "alpha of cutmix; 0 is off", group="augmentation")
    mix_probability: float = option(1.0, "of mixup or cutmix", group="augmentation")
    mix_switch: float = option(0.5, "probability of cutmix, where mixup is on too", group="augmentation")
    mix_mode: Literal["batch", "pair", "elem"] = option(
        "batch", "what shares a draw of mixup or cutmix", group="augmentation"
    )

    loss: Literal["cross_entropy", "bce", "bce_sum"] = option(
        "cross_entropy", "or sigmoid cross-entropy, averaged or summed over classes", group="optimisation"
    )
    label_smoothing: float = option(0.0, "share of the target that goes to all classes evenly", group="optimisation")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("hflip", "erasing", "mix_probability", "mix_switch"):
            value = getattr(self, name)
            self.require(0 <= value <= 1, f"{name} is a probability, in [0, 1], got {value}")
        for name in ("num_workers", "crop_padding", "rotation", "color_jitter", "mixup", "cutmix"):
            self.require(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")
        self.require(0 <= self.label_smoothing < 1, f"label_smoothing must be in [0, 1), got {self.label_smoothing}")
        self.require(
            self.repeated_augmentation >= 1,
            f"repeated_augmentation must be at least 1, got {self.repeated_augmentation}",
        )
        self.require(
            0 < self.crop_scale[0] <= self.crop_scale[1] <= 1,
            f"crop_scale must be two areas in (0, 1], the smaller first, got {self.crop_scale}",
        )
        self.require(
            0 < self.crop_ratio[0] <= self.crop_ratio[1],
            f"crop_ratio must be two positive ratios, the smaller first, got {self.crop_ratio}",
        )
        self.require(
            self.crop_pct is None or 0 < self.crop_pct <= 1, f"crop_pct must be in (0, 1], got {self.crop_pct}"
        )
        self.require(
            self.interpolation is None or self.interpolation in INTERPOLATIONS,
            f"interpolation must be one of {', '.join(INTERPOLATIONS)}, got {self.interpolation!r}",
        )
        self.require(
            not self.mixing.enabled or self.part_size % 2 == 0,
            f"mixup and cutmix pair images, so batch_size / devices / accumulate must be even, got {self.part_size}",
        )
        if self.auto_augment is not None:
            _check_policy(self.auto_augment)

    @property
    def mixing(self) -> Mixing:
        """Mixup and cutmix."""
        return Mixing(
            mixup=self.mixup,
            cutmix=self.cutmix,
            probability=self.mix_probability,
            switch_probability=self.mix_switch,
            mode=self.mix_mode,
        )

    @property
    def augmentation(self) -> Augmentation:
        """What training does to an image."""
        return Augmentation(
            crop=self.crop,
            crop_scale=self.crop_scale,
            crop_ratio=self.crop_ratio,
            crop_padding=self.crop_padding,
            hflip=self.hflip,
            rotation=self.rotation,
            color_jitter=self.color_jitter,
            auto_augment=self.auto_augment,
            erasing=self.erasing,
            erasing_mode=self.erasing_mode,
        )

    def preprocessing(self, model: Backbone) -> Preprocessing:
        """What evaluation does to an image: the model's own, where nothing else is given."""
        own = default_preprocessing(model)
        given = {name: getattr(self, name) for name in ("mean", "std", "interpolation", "crop_pct")}
        result = Preprocessing(**{**own, **{name: value for name, value in given.items() if value is not None}})
        channels = result.input_size[0]
        for name in ("mean", "std"):
            count = len(getattr(result, name))
            self.require(count == channels, f"{name} needs one number for each of {channels} channels, got {count}")
        return result


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainResult:
    """How a run ended."""

    folder: Path
    """The run folder, with ``model.safetensors`` and ``report.html``."""
    metrics: dict[str, float]
    """``top1``, ``top5`` (percent) and ``loss`` of ``model.safetensors``."""
    best_step: int
    """Step that its weights are of."""
    steps: int
    """Steps of the run."""
    seconds: float
    """Duration of training in this session."""


class Evaluation(TypedDict):
    """A model on a dataset."""

    top1: float
    """Percent."""
    top5: float
    """Percent."""
    loss: float
    """Cross-entropy."""
    images: int
    skipped: int
    """Images that could not be read."""
    confusion: Tensor
    """(K, K), int64: true classes in rows, predictions in columns."""
    class_names: list[str]


def train(config: ClassifyConfig, *, resume: bool = False) -> TrainResult:
    """Train a classifier into a run folder.

    Args:
        config: all options.
        resume: continue the run in ``config.output`` from its newest checkpoint.

    Raises:
        VisionMLPError: for everything that a user can act on.
        KeyboardInterrupt: at SIGINT or SIGTERM, when all is saved.
    """
    require("matplotlib", extra="plots")  # now rather than behind the training
    return launch(config, lambda fabric: _train(fabric, config, resume))


def evaluate(
    model: Backbone,
    info: CheckpointInfo,
    *,
    data: str,
    data_root: Path | None = None,
    split: str = "validation",
    batch_size: int = 64,
    num_workers: int = 0,
    on_bad_image: OnBadImage = "stop",
) -> Evaluation:
    """Evaluate a classifier, in either form, on the device that it is on.

    Args:
        model: from `visionmlp.load_model`.
        info: says how images are prepared, and the names of the classes.
        data: dataset, as in `ClassifyConfig`; a folder may also hold the class folders themselves.
        data_root: as in `ClassifyConfig`.
        split: ``validation``, ``train`` or ``test``.
        batch_size: images at a time.
        num_workers: processes that load images.
        on_bad_image: ``stop`` or ``skip``.

    Raises:
        DataError: if the data cannot be used, or has classes that the model lacks.
    """
    source = open_evaluation_data(data, split=split, root=data_root, class_names=info.class_names)
    if len(source.class_names) > model.num_classes:
        raise DataError(f"{data} has {len(source.class_names)} classes, but the model {model.num_classes}")
    return _evaluate(model, info, source, BadImageLog(on_bad_image), batch_size=batch_size, num_workers=num_workers)


def _evaluate(
    model: Backbone, info: CheckpointInfo, source: ImageSource, log: BadImageLog, *, batch_size: int, num_workers: int
) -> Evaluation:
    preprocessing = Preprocessing(**_tuples(info.preprocessing or default_preprocessing(model)))
    batches = EvaluationBatches(
        source,
        preprocessing.transform(),
        batch_size=batch_size,
        mode=preprocessing.mode,
        bad_images=log,
        num_workers=num_workers,
    )
    like = next(model.parameters())
    task = Classification(model.num_classes)

    def prepare(batch: Batch) -> Batch:
        return batch._replace(images=batch.images.to(like), labels=batch.labels.to(like.device))

    sums = evaluate_task(task, model, batches, prepare=prepare)
    metrics = task.metrics(sums)
    return Evaluation(
        top1=metrics["top1"],
        top5=metrics["top5"],
        loss=metrics["loss"],
        images=int(sums["images"].item()),
        skipped=len(source) - int(sums["images"].item()),
        confusion=sums["confusion"].cpu(),
        class_names=info.class_names or source.class_names,
    )


def read_config(folder: Path) -> ClassifyConfig:
    """The configuration of a run.

    Raises:
        RunFolderError: if there is none.
        InvalidConfig: if it was edited and breaks a rule.
    """
    return ClassifyConfig.from_plain(RunFolder(folder).read_config())


def build_model(config: ClassifyConfig, num_classes: int) -> Backbone:
    """The model of a run before training, a function of the configuration.

    Raises:
        VisionMLPError: for a model that cannot be built or loaded, or a deploy form.
    """
    fields = dict(config.model_args)
    for name in ("img_size", "drop_path_rate"):
        if getattr(config, name) is not None:
            fields[name] = getattr(config, name)
    if "num_classes" in fields:
        raise InvalidConfig("num_classes follows from the data; remove it from model_args")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if Path(config.model).exists():
            model, _ = load_model(config.model, checkpoint=config.checkpoint, **fields)
            if model.num_classes != num_classes:
                model.reset_classifier(num_classes)
        else:
            model, _ = load_model(config.model, checkpoint=config.checkpoint, num_classes=num_classes, **fields)
    if not is_training_form(model):
        raise InvalidConfig(f"{config.model} is a deploy form, which cannot be trained; give its training checkpoint")
    if config.head_bias is not None:
        classifier = model.get_classifier()
        assert isinstance(classifier, nn.Linear)
        nn.init.constant_(classifier.bias, config.head_bias)
    return model


def _train(fabric: "Fabric", config: ClassifyConfig, resume: bool) -> TrainResult:
    # rank 0 first, so that it alone downloads
    sources = on_rank_zero(
        fabric, lambda: open_training_data(config.data, root=config.data_root, download=config.download)
    )
    training_source, evaluation_source = sources
    class_names = training_source.class_names
    model = build_model(config, len(class_names))
    preprocessing = config.preprocessing(model)
    order = EpochOrder(
        len(training_source),
        config.part_size,
        seed=config.seed,
        rank=fabric.global_rank,
        ranks=fabric.world_size,
        repeats=config.repeated_augmentation,
    )
    run = RunFolder(config.output)
    log = BadImageLog(config.on_bad_image, run.bad_images)
    on_gpu = fabric.device.type == "cuda"
    training = TrainingBatches(
        training_source,
        config.augmentation.transform(preprocessing),
        order,
        mode=preprocessing.mode,
        bad_images=log,
        num_workers=config.num_workers,
        pin_memory=on_gpu,
    )
    evaluation = EvaluationBatches(
        evaluation_source,
        preprocessing.transform(),
        batch_size=config.part_size,
        mode=preprocessing.mode,
        bad_images=log,
        rank=fabric.global_rank,
        ranks=fabric.world_size,
        num_workers=config.num_workers,
        pin_memory=on_gpu,
    )
    task = Classification(
        len(class_names), loss=config.loss, label_smoothing=config.label_smoothing, mixing=config.mixing
    )

    def write_weights(path: Path, weights: nn.Module) -> None:
        assert isinstance(weights, Backbone)
        save_checkpoint(path, weights, class_names=class_names, preprocessing=dataclasses.asdict(preprocessing))

    def report() -> None:
        # what is evaluated is the file that is shipped
        shipped, info = load_checkpoint(run.model)
        evaluated = _evaluate(
            shipped.to(fabric.device),
            info,
            evaluation_source,
            log,
            batch_size=config.part_size,
            num_workers=config.num_workers,
        )
        write_report(run.path, confusion=evaluated["confusion"], class_names=class_names)

    # everything above can fail without leaving a trace
    on_rank_zero(fabric, lambda: run.reopen(config) if resume else run.create(config))
    result = fit(
        fabric=fabric,
        model=model,
        task=task,
        training=training,
        evaluation=evaluation,
        config=config,
        run=run,
        write_weights=write_weights,
        resume=resume,
    )
    on_rank_zero(fabric, report)
    return TrainResult(
        folder=config.output,
        metrics=result.metrics,
        best_step=result.best_step,
        steps=result.steps,
        seconds=result.seconds,
    )


def _check_policy(policy: str) -> None:
    try:
        if policy.startswith("rand"):
            timm.data.auto_augment.rand_augment_transform(policy, {})
        elif policy.startswith("augmix"):
            timm.data.auto_augment.augment_and_mix_transform(policy, {})
        else:
            timm.data.auto_augment.auto_augment_transform(policy, {})
    except (AssertionError, ValueError, KeyError, IndexError) as error:
        raise InvalidConfig(
            f"auto_augment {policy!r} is not in timm's notation, such as rand-m9-mstd0.5-inc1 or augmix-m5-w4-d2"
        ) from error


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
