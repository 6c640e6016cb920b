"""Models whose first parts rest while the others train."""

from torch import nn

from visionmlp.errors import InvalidConfig
from visionmlp.models.backbone import Backbone


def freeze(model: nn.Module, *, levels: int, stem: bool = True) -> None:
    """Let the first parts of a model rest, in place, as in fine-tuning with little data or small batches.

    Their weights take no gradients, their norms keep their statistics, their drop-path and dropout are off, and
    ``model.train()`` does not wake them. What rested before and is not named now trains again: ``levels=0, stem=False``
    lets everything train. Norms of feature levels, the last norm and the classifier always train.

    Args:
        model: a backbone, or a network with one in it.
        levels: how many feature levels rest: stages with their down-sampling, or blocks of a network of one stage.
        stem: whether the stem rests; it must if a level does.

    Raises:
        InvalidConfig: for a number of levels that the model does not have, or without a backbone to freeze.
    """
    backbones = [module for module in model.modules() if isinstance(module, Backbone)]
    if len(backbones) != 1:
        raise InvalidConfig(f"freeze takes a network with one backbone, got {len(backbones)}; give it the backbone")
    (backbone,) = backbones
    points = backbone.feature_points
    if not 0 <= levels <= len(points):
        raise InvalidConfig(f"{backbone.name} has {len(points)} levels to freeze, got {levels}")
    if levels and not stem:
        raise InvalidConfig("levels rest on the stem, whose gradients would pass them for nothing; give stem=True")
    parts = ["stem"] if stem else []
    for stage, last in dict(points[:levels]).items():
        parts.append(f"stages.{stage}.downsample")
        parts += [f"stages.{stage}.blocks.{block}" for block in range(last + 1)]
    for name in backbone.resting:
        backbone.get_submodule(name).requires_grad_(True).train(backbone.training)
    for name in parts:
        backbone.get_submodule(name).requires_grad_(False)
    backbone.resting = tuple(parts)
    backbone.train(backbone.training)
