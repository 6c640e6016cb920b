"""The table of variants, and their registration with timm."""

import contextlib
import dataclasses
import difflib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, cast

import timm
import torch
from timm.data import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_INCEPTION_MEAN,
    IMAGENET_INCEPTION_STD,
)
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model, split_model_name_tag

from visionmlp.errors import InvalidConfig, UnknownModel, UnknownOption
from visionmlp.layers.fusible import reparameterize
from visionmlp.models.backbone import Backbone, Form
from visionmlp.models.config import BackboneConfig
from visionmlp.models.pretrained import check_tag, is_hub_model, load_pretrained, resolve
from visionmlp.models.timm_factory import described, feature_options, require_same_classes, saved_state_filter
from visionmlp.models.weights import WEIGHTS, PublishedWeights


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """What a paper states about a variant; quoted, never measured here."""

    params: float | None = None
    """Parameters."""
    macs: float | None = None
    """Multiply-accumulates for one image of the native size."""
    top1: float | None = None
    """ImageNet-1k validation accuracy, percent, single crop, trained on ImageNet-1k without distillation."""
    source: str = ""
    """Paper and table."""


class BackboneFamily(Protocol):
    """Builds a model from a variant name and the family's config."""

    def __call__(self, name: str, config: Any) -> Backbone:
        """The model."""
        ...


@dataclasses.dataclass(frozen=True)
class Variant:
    """One named model: widths, with the counts that they must give beside them."""

    name: str
    config: BackboneConfig
    params: int
    """Parameters of the training form."""
    macs: int
    """Multiply-accumulates of convolutions and matrix products of the training form, one image of the native size."""
    published: Published = Published()
    family: str = ""

    @property
    def img_size(self) -> tuple[int, int]:
        """Native height and width in pixels."""
        return self.config.img_size


IMAGENET = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD, "interpolation": "bicubic"}
"""Preprocessing of most authors, but for ``crop_pct``."""
INCEPTION = {"mean": IMAGENET_INCEPTION_MEAN, "std": IMAGENET_INCEPTION_STD, "interpolation": "bicubic"}
"""Preprocessing of MLP-Mixer's authors, but for ``crop_pct``: values from -1 to 1."""

_VARIANTS: dict[str, tuple[Variant, BackboneFamily]] = {}


def register_family(
    module: str,
    family: str,
    build: BackboneFamily,
    variants: Sequence[Variant],
    preprocessing: dict[str, Any],
    *,
    fixed_input_size: bool = True,
    preprocessing_of: Mapping[str, dict[str, Any]] = MappingProxyType({}),
) -> None:
    """Register a family's variants here and with timm.

    Args:
        module: ``__name__`` of the family file; timm groups models by it.
        family: display name.
        build: model from variant name and config.
        variants: the table.
        preprocessing: ``mean``, ``std``, ``interpolation`` and ``crop_pct`` of the published weights.
        fixed_input_size: whether models take only the size that they are built for.
        preprocessing_of: what is different for a variant, by its name.
    """
    cfgs = {}
    for variant in variants:
        cfg = {
            "input_size": (variant.config.in_chans, *variant.img_size),
            "num_classes": variant.config.num_classes,
            "fixed_input_size": fixed_input_size,
            "pool_size": tuple(side // variant.config.strides[-1] for side in variant.img_size),
            "first_conv": "stem.proj",
            "classifier": "head.fc",
            **preprocessing,
            **preprocessing_of.get(variant.name, {}),
        }
        if variant.name in WEIGHTS:
            cfgs |= {f"{variant.name}.{weights.tag}": cfg | weights.timm_fields() for weights in WEIGHTS[variant.name]}
        else:
            cfgs[variant.name] = cfg
    sys.modules[module].default_cfgs = generate_default_cfgs(cfgs)  # type: ignore[attr-defined]
    for variant in variants:
        variant = dataclasses.replace(variant, family=family)
        _VARIANTS[variant.name] = (variant, build)
        register_model(_entry_point(module, variant, build))


def _entry_point(module: str, variant: Variant, build: BackboneFamily) -> Callable[..., Any]:
    def entry_point(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: dict[str, Any] | None = None,
        cache_dir: str | Path | None = None,
        form: Form = "training",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        feature_cfg: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> Any:
        if form not in ("training", "deploy"):
            raise InvalidConfig(f"form must be 'training' or 'deploy', got {form!r}")
        cfg = resolve(variant.name, pretrained_cfg, pretrained_cfg_overlay)
        by_timm = pretrained and is_hub_model(cfg)
        features_only = bool(fields.get("features_only"))
        if features_only:
            fields["feature_cfg"] = feature_options(
                feature_cfg,
                fields.pop("feature_cls", None),
                out_indices=default_levels(variant.config, fields),
                level_norms=bool(fields.get("feature_norms")),
            )
        built: BackboneConfig = variant.config

        def build_loaded(**config: Any) -> Backbone:
            nonlocal built
            built = _config(variant, config)
            with torch.device(device) if device is not None else contextlib.nullcontext():
                model = build(variant.name, built)
            if pretrained and not by_timm:
                load_pretrained(model, cfg, family=variant.family, cache_dir=cache_dir)
            if form == "deploy":
                if by_timm and not features_only:
                    require_same_classes(cfg, model.num_classes, name=variant.name)
                model = cast("Backbone", reparameterize(model.eval()))
            return model if dtype is None else model.to(dtype)

        model = build_model_with_cfg(
            build_loaded,
            variant.name,
            by_timm,
            # a model need not carry a copy of its weights
            pretrained_cfg=dataclasses.replace(cfg, state_dict=None),  # type: ignore[arg-type]
            pretrained_filter_fn=saved_state_filter(cfg),
            cache_dir=cache_dir,
            **fields,
        )
        named = {**model.pretrained_cfg, "first_conv": cfg.first_conv}
        model.pretrained_cfg = model.default_cfg = described(named, built)
        return model

    entry_point.__name__ = entry_point.__qualname__ = variant.name
    entry_point.__module__ = module
    entry_point.__doc__ = f"{variant.family} {variant.name}; {variant.published.source}"
    return entry_point


def default_levels(config: BackboneConfig, fields: Mapping[str, Any] = MappingProxyType({})) -> tuple[int, ...]:
    """Feature levels of ``features_only``: the stages, or four evenly spaced blocks of a single stage.

    Args:
        config: a configuration of the family.
        fields: what is different from it.
    """
    depths: Any = fields.get("blocks", getattr(config, "blocks", None))
    if isinstance(depths, (tuple, list)) and len(depths) > 1:
        return tuple(range(len(depths)))
    depth: Any = depths[0] if depths else fields.get("depth", getattr(config, "depth", None))
    # what is no depth fails where the configuration is built
    count = depth if isinstance(depth, int) else 1
    return tuple(sorted({max(0, count * quarter // 4 - 1) for quarter in (1, 2, 3, 4)}))


def _config(variant: Variant, fields: Mapping[str, Any]) -> BackboneConfig:
    """The variant's configuration with other values.

    Raises:
        UnknownOption: naming the nearest.
        InvalidConfig: for values that cannot be.
    """
    check_options(variant, fields)
    values = dict(fields)
    if isinstance(size := values.get("img_size"), int):
        values["img_size"] = (size, size)
    # sequences arrive as lists from YAML and JSON; the config is hashable
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return dataclasses.replace(variant.config, **values)


def check_options(variant: Variant, fields: Iterable[str]) -> None:
    """Raise UnknownOption, naming the nearest, for what is no field of a variant's configuration."""
    known = [field.name for field in dataclasses.fields(variant.config)]
    for name in fields:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(known)}"
            raise UnknownOption(f"{variant.name} has no option {name!r}; {hint}")


def list_models(family: str | None = None, *, test: bool = False) -> list[str]:
    """Names of all models, or of one family (case and punctuation do not matter).

    Args:
        family: display name or prefix of the models.
        test: the tiny ``*_test`` variants, one for each family, instead of the published ones.

    Raises:
        UnknownModel: if there is no such family.
    """
    names = [name for name in _VARIANTS if name.endswith("_test") == test]
    if family is None:
        return names
    families = {v.family: name.removesuffix("_test") for name, (v, _) in _VARIANTS.items() if name.endswith("_test")}
    wanted = {display for display, prefix in families.items() if _plain(family) in (_plain(display), _plain(prefix))}
    if not wanted:
        raise UnknownModel(f"no family {family!r}; there are {', '.join(families)}")
    return [name for name in names if _VARIANTS[name][0].family in wanted]


def is_model(name: str) -> bool:
    """Whether a model, or one with weights (``resmlp_s24.dist``), has this name."""
    name, tag = split_model_name_tag(name)
    return name in _VARIANTS and (not tag or tag in {weights.tag for weights in WEIGHTS.get(name, ())})


def published_weights(name: str) -> tuple[PublishedWeights, ...]:
    """What the authors published of a variant; the first is what ``pretrained=True`` takes.

    Raises:
        UnknownModel: with the nearest names.
    """
    return WEIGHTS.get(variant(name).name, ())


def variant(name: str) -> Variant:
    """The table entry of a model; a tag behind its name (``resmlp_s24.dist``) does not matter.

    Raises:
        UnknownModel: with the nearest names.
    """
    name, tag = split_model_name_tag(name)
    if name in _VARIANTS and tag:
        check_tag(name, tag)
    if name not in _VARIANTS:
        raise UnknownModel.of(name, list_models())
    return _VARIANTS[name][0]


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    pretrained: bool = False,
    **fields: Any,
) -> Backbone:
    """Build a model with fresh weights, initialised as its authors do, or with their published weights.

    Args:
        name: one of `list_models`; with a tag of `published_weights` behind a dot, those weights are meant.
        num_classes: outputs of the classifier; 0 leaves it out, ``None`` is the published number (mostly 1000).
            With published weights another number leaves the classifier fresh.
        img_size: side or (height, width) in pixels; ``None`` is the native size.
        pretrained: fetch the authors' weights over the network, or take them from PyTorch's cache.
        **fields: fields of the family's config, and timm's ``features_only`` and ``out_indices``.

    Raises:
        UnknownModel: with the nearest names.
        InvalidConfig: for a field that does not exist or breaks a rule.
        InvalidImageSize: naming sizes that work.
        CheckpointError: if there are no weights to fetch, or they cannot be used; says why and what to do.
    """
    variant(name)
    for option in ("form", "device", "dtype"):
        if option in fields:
            raise UnknownOption(f"{option} is an option of timm.create_model; change the finished model")
    return timm.create_model(  # type: ignore[return-value]
        name, pretrained=pretrained, num_classes=num_classes, img_size=img_size, **fields
    )


def _plain(text: str) -> str:
    return "".join(letter for letter in text.lower() if letter.isalnum())
