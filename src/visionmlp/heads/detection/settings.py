"""How the public implementations define detectors: what each of them computes, and single changes of it.

The papers' numbers come from mmdet 2.11, which is the default. ``asmlp`` is that with the Cascade head that AS-MLP took
from Swin. ``detectron2`` and ``torchvision`` differ in losses, targets, sampling and results, never in what is meant.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from visionmlp.errors import InvalidConfig, UnknownOption

Head = Literal["retinanet", "faster_rcnn", "mask_rcnn", "cascade_mask_rcnn"]
Definition = Literal["mmdet", "asmlp", "detectron2", "torchvision"]
HEADS: tuple[str, ...] = typing.get_args(Head)
DEFINITIONS: tuple[str, ...] = typing.get_args(Definition)

Stds = tuple[float, float, float, float]


def _of(*heads: str) -> Any:
    """A field that only some heads use."""
    return dataclasses.field(metadata={"heads": heads})


_DENSE = ("retinanet",)
_RCNN = ("faster_rcnn", "mask_rcnn", "cascade_mask_rcnn")
_MASKS = ("mask_rcnn", "cascade_mask_rcnn")
_CASCADE = ("cascade_mask_rcnn",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectionSettings:
    """Everything in which definitions differ, and what users change most."""

    anchor_scale: float
    """Side of the smallest square anchor of a level, in strides."""
    anchor_octaves: int
    """Sizes of anchors on a level, 2 ** (1 / octaves) apart."""
    anchor_ratios: tuple[float, ...]
    """Heights over widths."""
    anchor_rounding: bool
    """Sizes are cut to whole pixels, corners rounded."""
    anchor_strides: Literal["fixed", "divided"]
    """Between positions: 4 to 128 pixels, or the batch's height and width over those of the map, cut to pixels."""
    anchor_padding: Literal["ignored", "negative"]
    """What anchors are that stand in the padding of the batch, beyond the image's own multiple of 32 pixels."""
    anchor_low_quality: Literal["object", "anchor"]
    """An object's best anchor is a positive below the threshold too: of this object, or of that anchor's best one."""
    anchor_low_quality_iou: float
    """The least IoU for that."""
    anchor_box_beta: float
    """Where the smooth L1 loss of anchors turns from quadratic to linear; 0 is L1."""
    box_clamp: Literal["both", "above"]
    """Logarithms of size ratios are cut to log(1000 / 16) above alone, or also to minus that below."""
    background: Literal["last", "first"]
    """Where the background stands among classes. ``first`` also gives it boxes, masks and RetinaNet's outputs, which
    learn nothing, as in torchvision."""
    crowd_iof: float | None
    """Anchors and proposals with at least this share of their area in a crowd are no negatives; None leaves crowds to
    the background. mmdet has this rule switched off by an oversight, so it is on in all definitions."""
    score_thresh: float
    """Detections have a higher score."""
    nms_thresh: float
    """IoU from which the weaker of two detections of a class goes."""
    detections_per_img: int
    """At most."""

    pyramid_from: Literal["input", "output"] = _of(*_DENSE)
    """What P6 is made of: the backbone's last level C5, or the neck's P5."""
    pyramid_relu: bool = _of(*_DENSE)
    """A ReLU between P6 and P7."""
    dense_normaliser: Literal["batch", "image", "moving"] = _of(*_DENSE)
    """The sum of losses is divided by the positives of the batch, at least one an image; each image's by its own, then
    averaged; or by their moving average of momentum 0.9, which starts at 100."""
    dense_candidates: Literal["anchors", "scores"] = _of(*_DENSE)
    """The best 1000 of a level before suppression are anchors with all their classes, or single scores."""

    rpn_post_nms: tuple[int, int] = _of(*_RCNN)
    """Proposals of an image in training and in evaluation."""
    rpn_batch: int = _of(*_RCNN)
    """Anchors of an image that the loss sees, half of them positives where there are as many."""
    rpn_normaliser: Literal["floored", "sampled", "batch"] = _of(*_RCNN)
    """Losses are divided by the anchors that were sampled, positives and negatives of an image counting at least one
    each; by those exactly; or by images times ``rpn_batch``."""
    roi_batch: int = _of(*_RCNN)
    """Proposals of an image that the losses see, a quarter of them positives where there are as many."""
    roi_low_quality: bool = _of(*_RCNN)
    """An object's best proposal above the threshold is its positive even if it overlaps another object more."""
    roi_aligned: bool = _of(*_RCNN)
    """RoIAlign takes pixels as areas, not points: half a pixel is subtracted. Masks' targets too."""
    roi_sampling: int = _of(*_RCNN)
    """Samples per bin and direction in RoIAlign; 0 as many as the bin has positions."""
    roi_box_loss: Literal["smooth_l1", "giou"] = _of(*_RCNN)
    """Of encoded boxes, or one minus generalised IoU of decoded ones."""
    roi_box_beta: float = _of(*_RCNN)
    """As ``anchor_box_beta``, for ``smooth_l1``."""
    roi_box_weight: float = _of(*_RCNN)
    """Of the box loss."""
    box_head: Literal["2fc", "4conv1fc"] = _of(*_RCNN)
    """Two linear layers, or four 3x3 convolutions with BatchNorm and one linear layer."""
    fc_channels: int = _of(*_RCNN)
    """Width of the linear layers."""
    class_agnostic: bool = _of(*_RCNN)
    """One box for a proposal in place of one for each class."""
    stage_ious: tuple[float, ...] = _of(*_RCNN)
    """IoU from which a proposal is a positive, for each stage."""
    stage_stds: tuple[Stds, ...] = _of(*_RCNN)
    """What encoded boxes (x, y, w, h) are divided by, for each stage."""
    stage_weights: tuple[float, ...] = _of(*_RCNN)
    """Of each stage's losses."""

    mask_targets: Literal["thresholded", "soft"] = _of(*_MASKS)
    """A resampled mask as target: cut at 0.5, or as it is."""
    mask_paste: Literal["sampled", "resized"] = _of(*_MASKS)
    """Masks of detections are read at the centres of pixels, or resized to boxes of whole pixels."""

    cascade_resample: bool = _of(*_CASCADE)
    """Later stages sample ``roi_batch`` of the refined boxes and the objects; otherwise they take all as they are."""
    cascade_scores: Literal["logits", "softmax"] = _of(*_CASCADE)
    """What is averaged over stages."""
    cascade_gradient: Literal["whole", "shared"] = _of(*_CASCADE)
    """What a stage returns to the features: its gradient, or that over the number of stages."""
    cascade_masks: Literal["stages", "first"] = _of(*_CASCADE)
    """A mask head for each stage, averaged in evaluation; or one, trained on the first stage's positives."""


_MMDET: dict[str, Any] = {
    "anchor_ratios": (0.5, 1.0, 2.0),
    "anchor_rounding": False,
    "anchor_strides": "fixed",
    "anchor_padding": "ignored",
    "anchor_low_quality": "object",
    "anchor_box_beta": 0.0,
    "box_clamp": "both",
    "background": "last",
    "crowd_iof": 0.5,
    "score_thresh": 0.05,
    "nms_thresh": 0.5,
    "detections_per_img": 100,
    "pyramid_from": "input",
    "pyramid_relu": False,
    "dense_normaliser": "batch",
    "dense_candidates": "anchors",
    "rpn_post_nms": (1000, 1000),
    "rpn_batch": 256,
    "rpn_normaliser": "floored",
    "roi_batch": 512,
    "roi_low_quality": False,
    "roi_aligned": True,
    "roi_sampling": 0,
    "roi_box_loss": "smooth_l1",
    "roi_box_beta": 0.0,
    "roi_box_weight": 1.0,
    "box_head": "2fc",
    "fc_channels": 1024,
    "class_agnostic": False,
    "stage_ious": (0.5,),
    "stage_stds": ((0.1, 0.1, 0.2, 0.2),),
    "stage_weights": (1.0,),
    "mask_targets": "thresholded",
    "mask_paste": "sampled",
    "cascade_resample": True,
    "cascade_scores": "logits",
    "cascade_gradient": "whole",
    "cascade_masks": "stages",
}
_MMDET_CASCADE = {
    "stage_ious": (0.5, 0.6, 0.7),
    "stage_stds": ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067)),
    "stage_weights": (1.0, 0.5, 0.25),
    "rpn_post_nms": (2000, 1000),
    "anchor_box_beta": 1 / 9,
    "roi_box_beta": 1.0,
    "class_agnostic": True,
}
_ASMLP_CASCADE = {
    **_MMDET_CASCADE,
    "box_head": "4conv1fc",
    "class_agnostic": False,
    "roi_box_loss": "giou",
    "roi_box_weight": 10.0,
}
_DETECTRON2 = {
    **_MMDET,
    "anchor_padding": "negative",
    "anchor_low_quality": "anchor",
    "box_clamp": "above",
    "pyramid_relu": True,
    "dense_normaliser": "moving",
    "dense_candidates": "scores",
    "rpn_normaliser": "batch",
}
_DETECTRON2_CASCADE = {
    **_MMDET_CASCADE,
    "anchor_box_beta": 0.0,
    "roi_box_beta": 0.0,
    "stage_stds": tuple((1 / w, 1 / w, 2 / w, 2 / w) for w in (10.0, 20.0, 30.0)),
    "stage_weights": (1.0, 1.0, 1.0),
    "cascade_resample": False,
    "cascade_scores": "softmax",
    "cascade_gradient": "shared",
    "cascade_masks": "first",
}
_TORCHVISION = {
    **_MMDET,
    "anchor_rounding": True,
    "anchor_strides": "divided",
    "anchor_padding": "negative",
    "anchor_low_quality": "anchor",
    "box_clamp": "above",
    "background": "first",
    "pyramid_from": "output",
    "pyramid_relu": True,
    "dense_normaliser": "image",
    "dense_candidates": "scores",
    "rpn_post_nms": (2000, 1000),
    "rpn_normaliser": "sampled",
    "roi_aligned": False,
    "roi_sampling": 2,
    "roi_box_beta": 1 / 9,
    "mask_targets": "soft",
    "mask_paste": "resized",
}
_TORCHVISION_CASCADE = {**_MMDET_CASCADE, "roi_box_beta": 1 / 9}


def _preset(definition: str, head: str) -> dict[str, Any]:
    values = dict({"detectron2": _DETECTRON2, "torchvision": _TORCHVISION}.get(definition, _MMDET))
    if head == "retinanet":
        values.update(anchor_scale=4.0, anchor_octaves=3, anchor_low_quality_iou=0.0)
        if definition == "torchvision":
            values.update(detections_per_img=300)
        return values
    mmdets = definition in ("mmdet", "asmlp")
    values.update(anchor_scale=8.0, anchor_octaves=1, anchor_low_quality_iou=0.3 if mmdets else 0.0)
    if definition == "torchvision":
        values.update(anchor_box_beta=1 / 9)
    if head == "mask_rcnn" and mmdets:
        values.update(roi_low_quality=True)
    if head == "cascade_mask_rcnn":
        cascades = {"asmlp": _ASMLP_CASCADE, "detectron2": _DETECTRON2_CASCADE, "torchvision": _TORCHVISION_CASCADE}
        values.update(cascades.get(definition, _MMDET_CASCADE))
    return values


def settings_of(head: str, definition: str = "mmdet", changes: Mapping[str, Any] | None = None) -> DetectionSettings:
    """The settings of a head as an implementation defines it, and what is changed of them.

    Args:
        head: one of `HEADS`.
        definition: one of `DEFINITIONS`. torchvision has no Cascade: what it shares with Mask R-CNN is torchvision's
            then, the rest mmdet's.
        changes: fields of `DetectionSettings`; lists stand for tuples.

    Raises:
        UnknownOption: for a name that no field has, with the nearest.
        InvalidConfig: for a field that the head does not use, or a value that cannot be.
    """
    for what, value, known in (("head", head, HEADS), ("definition", definition, DEFINITIONS)):
        if value not in known:
            raise InvalidConfig(f"{what} must be one of {', '.join(known)}, got {value!r}")
    fields = {field.name: field for field in dataclasses.fields(DetectionSettings)}
    hints = typing.get_type_hints(DetectionSettings)
    values = _preset(definition, head)
    for name, value in dict(changes or {}).items():
        if name not in fields:
            near = difflib.get_close_matches(name, list(fields), n=3, cutoff=0.4)
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            raise UnknownOption(f"no detection setting {name!r}{hint}")
        if head not in fields[name].metadata.get("heads", HEADS):
            raise InvalidConfig(f"{head} does not use {name}; remove it from settings")
        value = _frozen(value)
        if not _fits(value, hints[name]):
            raise InvalidConfig(f"setting {name} must be {_words(hints[name])}, got {value!r}")
        values[name] = value
    settings = DetectionSettings(**values)
    _check(settings)
    return settings


def _check(settings: DetectionSettings) -> None:
    """Raise for values that cannot be."""
    stages = len(settings.stage_ious)
    shares = ("score_thresh", "nms_thresh", "anchor_low_quality_iou")
    counts = ("anchor_octaves", "detections_per_img", "rpn_batch", "roi_batch", "fc_channels")
    rules = {
        **{f"{name} must be from 0 to 1": 0 <= getattr(settings, name) <= 1 for name in shares},
        **{f"{name} must be at least 1": getattr(settings, name) >= 1 for name in counts},
        "anchor_octaves must be at most 16": settings.anchor_octaves <= 16,
        "there can be at most 16 stages": stages <= 16,
        "anchor_scale must be positive": 0 < settings.anchor_scale < math.inf,
        "anchor_ratios must be positive": min(settings.anchor_ratios, default=0) > 0,
        "box betas must be at least 0": min(settings.anchor_box_beta, settings.roi_box_beta) >= 0,
        "roi_box_weight must be at least 0": settings.roi_box_weight >= 0,
        "crowd_iof must be above 0 and at most 1, or None": settings.crowd_iof is None or 0 < settings.crowd_iof <= 1,
        "rpn_post_nms must be at least 1": min(settings.rpn_post_nms) >= 1,
        "roi_sampling must be at least 0": settings.roi_sampling >= 0,
        "stage_ious must be above 0 and at most 1": stages > 0 and all(0 < iou <= 1 for iou in settings.stage_ious),
        "stage_stds must be positive": all(min(stds) > 0 for stds in settings.stage_stds),
        "stage_weights must be at least 0": min(settings.stage_weights, default=0) >= 0,
        f"stage_ious, stage_stds and stage_weights must have equal lengths, {stages} here": len(settings.stage_stds)
        == len(settings.stage_weights)
        == stages,
    }
    for rule, holds in rules.items():
        if not holds:
            raise InvalidConfig(f"settings: {rule}")


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, (list, tuple)) else value


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a field's type; whole numbers are floats, bools are no numbers."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return isinstance(value, str) and value in args
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, option) for option in args)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if args[-1] is Ellipsis:
            return all(_fits(item, args[0]) for item in value)
        return len(value) == len(args) and all(_fits(item, option) for item, option in zip(value, args, strict=True))
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return type(value) is hint


def _words(hint: Any) -> str:
    """A field's type for people."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return " or ".join(args)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_words(option) for option in args)
    if origin is tuple:
        if args[-1] is Ellipsis:
            return f"a list, each {_words(args[0])}"
        return f"{len(args)} values, each {_words(args[0])}"
    return {float: "a number", int: "a whole number", bool: "true or false", type(None): "null"}[hint]
