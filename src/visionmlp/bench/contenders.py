"""What a benchmark measures: our models in their forms and with their heads, timm's of the same architecture, and peers
of like cost."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

from visionmlp.deploy.networks import exportable
from visionmlp.errors import InvalidConfig, InvalidImageSize, VisionMLPError
from visionmlp.layers.fusible import is_training_form, reparameterize
from visionmlp.models.backbone import Backbone
from visionmlp.models.checkpoint import CheckpointInfo, load_model, path_of
from visionmlp.models.dense import dense_features
from visionmlp.models.dense_network import DenseInfo, dense_backbone, is_dense, load_dense
from visionmlp.models.registry import is_model, variant
from visionmlp.models.segmenter import create_segmenter

Form = Literal["training", "deploy"]
Comparison = Literal["timm", "peers"]
Head = Literal["classifier", "levels", "upernet", "semantic_fpn"]
"""On a backbone; "levels" is none, but its feature levels, as heads for dense prediction take them."""

_CLASSES = 150
"""Of a segmentation head that no checkpoint brings: ADE20K's."""

TIMM_MODELS = {
    "resmlp_s12": "resmlp_12_224",
    "resmlp_s24": "resmlp_24_224",
    "resmlp_s36": "resmlp_36_224",
    "resmlp_b24": "resmlp_big_24_224",
    **{f"mlpmixer_{size}": f"mixer_{size}_224" for size in ("s32", "s16", "b32", "b16", "l32", "l16")},
}
"""timm's model of the same architecture."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Peer:
    """A well-known model of another kind, and what a paper states about it."""

    name: str
    """timm's name."""
    family: str
    side: int
    """Height and width that the accuracy was measured at."""
    top1: float
    """ImageNet-1k validation accuracy, percent, single crop, trained on ImageNet-1k alone."""
    source: str
    """Where that stands."""
    fixed_size: bool = False
    """Whether timm must be told the image size when it builds the model."""


PEERS = (
    Peer(
        name="resnet50",
        family="ResNet",
        side=224,
        top1=78.5,
        source="DynaMixer (arXiv 2201.12083), Table 3",
    ),
    Peer(
        name="regnety_040",
        family="RegNetY",
        side=224,
        top1=80.0,
        source="DynaMixer (arXiv 2201.12083), Table 3",
    ),
    Peer(
        name="deit_small_patch16_224",
        family="DeiT",
        side=224,
        top1=79.8,
        source="DynaMixer (arXiv 2201.12083), Table 3",
        fixed_size=True,
    ),
    Peer(
        name="swin_tiny_patch4_window7_224",
        family="Swin",
        side=224,
        top1=81.3,
        source="DynaMixer (arXiv 2201.12083), Table 3",
        fixed_size=True,
    ),
    Peer(
        name="efficientnet_b3",
        family="EfficientNet",
        side=300,
        top1=81.6,
        source="DynaMixer (arXiv 2201.12083), Table 3",
    ),
)
"""Convolutional networks and transformers of a cost like that of the small vision MLPs.

Accuracies are those that one of our papers compares itself with; other trainings of the same networks give others.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contender:
    """One model in one form at one image size, in evaluation mode on the CPU, in the dtype of its weights."""

    model: str
    """Name, with the file that it comes from."""
    family: str
    head: str = "classifier"
    """See `Head`."""
    form: str
    """training, deploy, timm for timm's model of the same architecture, or peer."""
    module: nn.Module
    input_size: tuple[int, int, int]
    """(C, H, W) of one image."""
    classes: int
    paper_top1: float | None = None
    """ImageNet-1k top-1 that a paper states for this model at this size; None for a user's own weights."""


def model_contenders(
    reference: str,
    *,
    forms: Sequence[Form],
    side: int | None = None,
    with_timm: bool = False,
    head: Head = "classifier",
) -> list[Contender]:
    """The contenders that a model gives.

    Args:
        reference: name, run folder or checkpoint file. One of a segmentation network brings its head.
        forms: which forms; a deploy checkpoint has no training form.
        side: height and width of the images; None is the model's own. A model that takes that size as it is does;
            any other is built for it, its token matrices resized if they come from a file, or with another head than a
            classifier cuts images into windows without overlap.
        with_timm: also timm's model, where timm has the architecture.
        head: what stands on the backbone.

    Raises:
        VisionMLPError: if it cannot be loaded, or cannot take that size.
    """
    path = path_of(reference)
    if head != "classifier" or (path is not None and is_dense(path)):
        return _dense_contenders(reference, forms=forms, side=side, head=head)
    model, info = load_model(reference)
    if side is not None and not _takes(model, side):
        model, info = load_model(reference, img_size=(side, side))
    height, width = (side, side) if side is not None else model.config.img_size
    modules: dict[str, nn.Module] = {}
    if "training" in forms and is_training_form(model):
        modules["training"] = model
    if "deploy" in forms:
        modules["deploy"] = reparameterize(model)
    if with_timm and model.name in TIMM_MODELS:
        modules["timm"] = _timm_twin(model)
    return [
        Contender(
            model=TIMM_MODELS[model.name] if form == "timm" else _label(reference, info),
            family=variant(model.name).family,
            form=form,
            module=module.eval(),
            input_size=(model.config.in_chans, height, width),
            classes=model.num_classes,
            paper_top1=_paper_top1(reference, (height, width)),
        )
        for form, module in modules.items()
    ]


def _dense_contenders(reference: str, *, forms: Sequence[Form], side: int | None, head: Head) -> list[Contender]:
    path = path_of(reference)
    if path is not None and is_dense(path):
        loaded, info = load_dense(path)
        network, label = exportable(loaded, reference), _label(reference, info)
        if head not in ("classifier", info.options.get("head")):
            raise InvalidConfig(f"{reference} has a head, {info.options.get('head')}; leave {head} out")
        backbone, classes, head = loaded.backbone, network.num_classes, info.options["head"]
    else:
        # a name with the norms that the family's dense backbones have
        backbone = dense_backbone(reference) if is_model(reference) else dense_backbone(load_model(reference)[0])
        label = backbone.name if is_model(reference) else f"{backbone.name} ({reference})"
        windows = backbone.input_sizes == "fixed" and side is not None and not _takes(backbone, side)
        overlap, classes = 0 if windows else None, 0 if head == "levels" else _CLASSES
        if head == "levels":
            network = dense_features(backbone, pyramid=False, tile_overlap=overlap)
        else:
            network = create_segmenter(backbone, head=head, num_classes=classes, tile_overlap=overlap)  # type: ignore[arg-type]
    size = (side, side) if side is not None else backbone.config.img_size
    modules: dict[str, nn.Module] = {}
    if "training" in forms and is_training_form(network):
        modules["training"] = network.eval()
    if "deploy" in forms:
        modules["deploy"] = reparameterize(network.eval())
    return [
        Contender(
            model=label,
            family=variant(backbone.name).family,
            head=head,
            form=form,
            module=module,
            input_size=(backbone.in_chans, *size),
            classes=classes,
        )
        for form, module in modules.items()
    ]


def peer_contender(peer: Peer, side: int | None = None) -> Contender:
    """A peer with fresh weights, at its own size or another.

    Raises:
        InvalidImageSize: if it cannot take that size.
    """
    import timm

    size = peer.side if side is None else side
    options: dict[str, Any] = {"img_size": size} if peer.fixed_size else {}
    try:
        module: Any = timm.create_model(peer.name, **options)
    except (AssertionError, ValueError, RuntimeError) as error:
        raise InvalidImageSize(f"{peer.name} cannot be built for {size}x{size}: {error}") from error
    return Contender(
        model=peer.name,
        family=peer.family,
        form="peer",
        module=module.eval(),
        input_size=(3, size, size),
        classes=module.num_classes,
        paper_top1=peer.top1 if size == peer.side else None,
    )


def gather(
    models: Sequence[str],
    *,
    forms: Sequence[Form],
    sides: Sequence[int | None],
    compare: Sequence[Comparison],
    heads: Sequence[Head] = ("classifier",),
) -> tuple[list[Contender], dict[str, VisionMLPError]]:
    """The contenders of a run, and by model and size what kept the others from it.

    Raises:
        InvalidConfig: if there are none, and nothing kept them.
        VisionMLPError: if a model cannot be loaded at all.
    """
    contenders: list[Contender] = []
    refused: dict[str, VisionMLPError] = {}
    for side in sides:
        for reference, head in itertools.product(models, heads):
            try:
                contenders += model_contenders(
                    reference, forms=forms, side=side, with_timm="timm" in compare, head=head
                )
            except (InvalidImageSize, InvalidConfig) as error:
                if side is None:
                    raise
                refused[f"{reference} at {side}x{side}"] = error
        for peer in PEERS if "peers" in compare else ():
            try:
                contenders.append(peer_contender(peer, side))
            except InvalidImageSize as error:
                refused[f"{peer.name} at {side}x{side}"] = error
    if not contenders and not refused:
        raise InvalidConfig("nothing to measure: none of the models has one of the forms, or timm's twin")
    return contenders, refused


def _takes(model: Backbone, side: int) -> bool:
    try:
        model.image_rule.check(torch.empty(1, model.config.in_chans, side, side, device="meta"))
    except InvalidImageSize:
        return False
    return True


def _label(reference: str, info: CheckpointInfo | DenseInfo) -> str:
    return info.model if info.model == reference else f"{info.model} ({reference})"


def _paper_top1(reference: str, size: tuple[int, int]) -> float | None:
    if not is_model(reference) or variant(reference).img_size != size:
        return None
    return variant(reference).published.top1


def _timm_twin(model: Backbone) -> nn.Module:
    import timm

    return timm.create_model(
        TIMM_MODELS[model.name],
        num_classes=model.num_classes,
        in_chans=model.config.in_chans,
        img_size=model.config.img_size,
    )
