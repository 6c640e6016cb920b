"""A recipe made small: the same run with less of everything, for tests and for machines without a GPU."""

import dataclasses
from typing import Any, Literal, TypeVar, get_args

from visionmlp.engine.config import TrainingConfig
from visionmlp.errors import InvalidConfig
from visionmlp.measure.catalog import CatalogEntry, read_catalog
from visionmlp.tasks.detect.config import DetectConfig
from visionmlp.tasks.image_config import ImageTrainingConfig
from visionmlp.tasks.segment.config import SegmentConfig
from visionmlp.tasks.self_supervised.config import SelfSupervisedConfig
from visionmlp.tasks.translate.config import TranslateConfig
from visionmlp.tasks.translate.names import TRANSLATORS

Scale = Literal["smoke", "small", "full"]
SCALES: tuple[str, ...] = get_args(Scale)

ConfigT = TypeVar("ConfigT", bound=TrainingConfig)
ImageConfigT = TypeVar("ImageConfigT", bound=ImageTrainingConfig)

_SMALL_SIZE = 32
# by family: a published model, and widths of 0.3 to 1.5 million parameters at 32 pixels
_SMALL_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "repmlpnet": ("repmlpnet_cifar", {"channels": 32, "blocks": (2, 2), "share_sets": (8, 32)}),
    "resmlp": ("resmlp_s12", {"patch_size": 4, "dim": 96, "depth": 4}),
    "mlpmixer": ("mlpmixer_s16", {"patch_size": 4, "dim": 96, "depth": 4, "token_dim": 48, "channel_dim": 384}),
    "asmlp": ("asmlp_t", {"patch_size": 2, "dim": 32, "blocks": (2, 2, 2)}),
    "hiremlp": (
        "hiremlp_t",
        {"dims": (64, 128), "blocks": (2, 2), "region_sizes": (4, 2), "step_strides": (2, 2), "step_dilations": (2, 1)},
    ),
    "vip": (
        "vip_s14",
        {"patch_size": 4, "dims": (96, 96), "blocks": (2, 2), "segments": (8, 8), "downsample_before": ()},
    ),
    "cyclemlp": ("cyclemlp_b1", {"dims": (64, 128), "blocks": (2, 2), "mlp_ratios": (4, 4)}),
    "dynamixer": (
        "dynamixer_s",
        {"patch_size": 4, "dims": (96, 96), "blocks": (2, 2), "segments": (8, 8), "downsample_before": ()},
    ),
    "sparsemlp": (
        "sparsemlp_moe_s",
        {"patch_size": 4, "dim": 96, "depth": 4, "token_dim": 48, "channel_dim": 384, "sparse_blocks": 2},
    ),
}
# largest values of fields that some tasks have
_SMALL_MOST = {"out_dim": 4096, "hidden_dim": 512, "bottleneck_dim": 128, "projector_hidden": 1024}
_SMOKE_MOST = {
    "out_dim": 64,
    "hidden_dim": 32,
    "bottleneck_dim": 16,
    "local_crops": 2,
    "projector_dim": 16,
    "projector_hidden": 32,
    "knn_k": 5,
    "fpn_channels": 16,
    "max_detections": 10,
    "pictures": 1,
}
# detectors' sizes in pixels, and what they are divided by: a short side of 800 becomes 200 or 64
_DETECTION_PIXELS = ("min_size", "max_size", "crop_resize", "crop_range")
_SMALL_DIVISOR, _SMOKE_DIVISOR = 4.0, 12.5
_SMOKE_REGIONS = {"fc_channels": 16, "roi_batch": 16, "rpn_post_nms": (32, 32)}
"""Settings of heads with regions."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Size:
    """What one scale makes of a run."""

    model: str
    model_args: dict[str, Any]
    pixels: int
    """Side of the images."""
    max_images: int
    epochs: int
    batch_size: int
    most: dict[str, int]
    """Largest values of further fields."""
    divisor: float
    """Of a detector's sizes in pixels."""
    others: dict[str, Any]
    """Fields with a value of their own."""


def scaled(config: ConfigT, scale: Scale) -> ConfigT:
    """A recipe's configuration with less data, width and time; everything else stays, so each part of the run is used.

    ``smoke`` is over in seconds: the family's ``_test`` model, at most 16 images to train and 16 to evaluate, 2 epochs,
    batches of 4. It starts from fresh weights where the recipe starts from published ones, which would not fit.

    ``small`` takes two CPU cores hours on CIFAR-100 or Imagenette: the family's smallest model, narrowed, at 32 pixels
    (a run above its model's own size is as much above it), at most 50,000 images (10,000 for self-supervision), a tenth
    of the epochs, batches of at most 128. A recipe that starts from weights keeps its model and size, for which the
    weights are, and takes at most 2,000 images in batches of at most 32.

    ``full`` is the recipe itself.

    Detectors keep their backbone's size; images are a quarter of the recipe's, or in smoke two twenty-fifths.

    In both, learning rates (also the first and the last) fall linearly with the batch; warm-up, step interval and
    the teacher's warm-up fall with the epochs, and borders of crops with the image; heads and the number of local crops
    have upper limits; a moving average starts quickly.

    Runs on dense prediction start from fresh weights at both scales, with narrow heads. ``smoke`` is 4 steps, ``small``
    a fortieth of the steps on crops whose short side is 128 pixels (64 for families of one size), in batches of at most
    8; images are resized in proportion.

    Translation has the ``_test`` and ``_small`` network of its architecture; ``smoke`` is 4 steps on 16 pairs,
    ``small`` a fortieth of the steps in batches of at most 4096 tokens, with a vocabulary of 8000.

    Args:
        config: of a recipe.
        scale: ``smoke``, ``small`` or ``full``.

    Raises:
        InvalidConfig: for another scale, or a model that has no name in the catalog.
    """
    if scale == "full":
        return config
    if scale not in SCALES:
        raise InvalidConfig(f"scale must be one of {', '.join(SCALES)}, got {scale!r}")
    if isinstance(config, TranslateConfig):
        return _translation(config, scale)  # type: ignore[return-value] (of the same class)
    assert isinstance(config, ImageTrainingConfig)
    name = config.model.partition(".")[0]
    if name not in read_catalog():
        raise InvalidConfig(f"scale {scale} needs the name of a model, not {config.model!r}")
    if isinstance(config, SegmentConfig):
        return _segmentation(config, name, scale)  # type: ignore[return-value] (of the same class)
    return _resized(config, _smoke(config, name) if scale == "smoke" else _small(config, name))


def _translation(config: TranslateConfig, scale: Scale) -> TranslateConfig:
    smoke = scale == "smoke"
    if config.model not in TRANSLATORS:
        raise InvalidConfig(f"scale {scale} needs the name of a model, not {config.model!r}")
    batch, steps = min(128 if smoke else 4096, config.batch_size), config.max_steps or 0
    shorter, fewer = 4 / steps if smoke else 1 / 40, batch / config.batch_size
    return dataclasses.replace(
        config,
        model=f"{config.model.rpartition('_')[0]}_{'test' if smoke else 'small'}",
        vocab_size=270 if smoke else min(8000, config.vocab_size),
        max_pairs=16 if smoke else config.max_pairs,
        batch_size=batch,
        max_steps=round(steps * shorter),
        warmup_steps=None if config.warmup_steps is None else max(1, round(config.warmup_steps * shorter)),
        eval_steps=None if config.eval_steps is None else max(4, round(config.eval_steps * shorter)),
        **{rate: getattr(config, rate) * fewer for rate in ("lr", "warmup_lr", "min_lr")},
        threads=1 if smoke else config.threads,
        log_every=1 if smoke else config.log_every,
    )


def _segmentation(config: SegmentConfig, name: str, scale: Scale) -> SegmentConfig:
    smoke = scale == "smoke"
    family = name.partition("_")[0]
    native = _pixels(config, name)
    narrow, widths = (_tiny(name).name, {}) if smoke else _SMALL_MODELS[family]
    one_size = config.crop_size is None
    side = _tiny(name).img_size[0] if smoke else 64 if one_size else 128
    full = config.crop_size or (native, native)
    closer = side / min(full)
    batch = min(4 if smoke else 8, config.batch_size)
    fewer, steps = batch / config.batch_size, config.max_steps or 0
    shorter = 4 / steps if smoke else 1 / 40
    head = 16 if smoke else 64
    return dataclasses.replace(
        config,
        model=narrow,
        model_args={**widths, **_kinds(config.model_args)},
        checkpoint=None,
        pretrained=False,
        img_size=side if one_size else None,
        max_images=16 if smoke else None,
        out_indices=None,
        crop_size=None if one_size else tuple(round(length * closer) for length in full),  # type: ignore[arg-type]
        resize=None if config.resize is None else tuple(round(length * closer) for length in config.resize),  # type: ignore[arg-type]
        batch_size=batch,
        max_steps=round(steps * shorter),
        warmup_steps=None if config.warmup_steps is None else max(1, round(config.warmup_steps * shorter)),
        eval_steps=None if config.eval_steps is None else max(4, round(config.eval_steps * shorter)),
        pictures=1 if smoke else config.pictures,
        **{rate: getattr(config, rate) * fewer for rate in ("lr", "warmup_lr", "min_lr")},
        head_channels=head,
        auxiliary_channels=head // 2 if config.head == "upernet" else None,
        neck_channels=head if config.head == "semantic_fpn" else None,
        num_workers=0 if smoke else min(2, config.num_workers),
        threads=1 if smoke else config.threads,
        log_every=1 if smoke else config.log_every,
    )


def _smoke(config: ImageTrainingConfig, name: str) -> _Size:
    tiny = _tiny(name)
    return _Size(
        model=tiny.name,
        model_args=_kinds(config.model_args),
        pixels=_enlarged(config, name, tiny.img_size[0]),
        max_images=16,
        epochs=min(2, config.epochs),
        batch_size=min(4, config.batch_size),
        most=_SMOKE_MOST,
        divisor=_SMOKE_DIVISOR,
        others={
            "checkpoint": None,
            "checkpoint_prefix": None,
            "pretrained": False,
            "num_workers": 0,
            "threads": 1,
            "log_every": 1,
        },
    )


def _tiny(name: str) -> CatalogEntry:
    """The family's model for tests."""
    family = read_catalog()[name].family
    return next(entry for entry in read_catalog().values() if entry.family == family and entry.name.endswith("_test"))


def _small(config: ImageTrainingConfig, name: str) -> _Size:
    with_weights = config.pretrained or config.checkpoint is not None
    model, widths = _SMALL_MODELS[name.partition("_")[0]]
    own = _pixels(config, name)
    self_supervised = isinstance(config, SelfSupervisedConfig)
    return _Size(
        model=config.model if with_weights else model,
        model_args=config.model_args if with_weights else {**widths, **_kinds(config.model_args)},
        pixels=own if with_weights else min(own, _enlarged(config, name, _SMALL_SIZE)),
        max_images=2_000 if with_weights else 10_000 if self_supervised else 50_000,
        epochs=max(1, round(config.epochs / 10)),
        batch_size=min(32 if with_weights else 128, config.batch_size),
        most=_SMALL_MOST,
        divisor=_SMALL_DIVISOR,
        others={"num_workers": min(2, config.num_workers)},
    )


def _resized(config: ImageConfigT, size: _Size) -> ImageConfigT:
    shorter, fewer = size.epochs / config.epochs, size.batch_size / config.batch_size
    known = {field.name for field in dataclasses.fields(config)}
    changes: dict[str, Any] = {
        "model": size.model,
        "model_args": size.model_args,
        "img_size": size.pixels,
        "max_images": size.max_images,
        "epochs": size.epochs,
        "batch_size": size.batch_size,
        "accumulate": 1,
        "max_steps": None if config.max_steps is None else max(1, round(config.max_steps * shorter)),
        **{rate: getattr(config, rate) * fewer for rate in ("lr", "warmup_lr", "min_lr")},
        **{time: getattr(config, time) * shorter for time in ("warmup_epochs", "decay_epochs")},
        "decay_milestones": tuple(epoch * shorter for epoch in config.decay_milestones),
        "ema_warmup": config.ema_decay is not None,
        **{name: min(most, getattr(config, name)) for name, most in size.most.items() if name in known},
        **size.others,
    }
    if "warmup_teacher_temperature_epochs" in known:
        epochs: int = getattr(config, "warmup_teacher_temperature_epochs")  # noqa: B009 (not a field of all)
        changes["warmup_teacher_temperature_epochs"] = round(epochs * shorter)
    closer = size.pixels / _pixels(config, config.model.partition(".")[0])
    for name in ("crop_padding", "local_size"):
        if name in known:
            changes[name] = max(1, round(getattr(config, name) * closer))
    if isinstance(config, DetectConfig):
        changes["img_size"] = config.img_size
        if size.divisor == _SMOKE_DIVISOR and config.head != "retinanet":
            changes["settings"] = {**config.settings, **_SMOKE_REGIONS}
        for name in _DETECTION_PIXELS:
            if (given := getattr(config, name)) is not None:
                changes[name] = _divided(given, size.divisor)
    return dataclasses.replace(config, **changes)


def _divided(pixels: int | tuple[int, ...], divisor: float) -> int | tuple[int, ...]:
    if isinstance(pixels, int):
        return round(pixels / divisor)
    return tuple(dict.fromkeys(round(side / divisor) for side in pixels))


def _kinds(model_args: dict[str, Any]) -> dict[str, Any]:
    """Choices among kinds, which any width has; numbers are widths."""
    return {
        name: value
        for name, value in model_args.items()
        if isinstance(value, str | bool) or name in ("kernel_sizes", "embed_kernel", "embed_depthwise")
    }


def _pixels(config: ImageTrainingConfig, name: str) -> int:
    return config.img_size or read_catalog()[name].img_size[0]


def _enlarged(config: ImageTrainingConfig, name: str, pixels: int) -> int:
    """As much above ``pixels`` as the recipe is above its model's own size, to a multiple of 8."""
    ratio = _pixels(config, name) / read_catalog()[name].img_size[0]
    return pixels if ratio <= 1 else 8 * round(pixels * ratio / 8)
