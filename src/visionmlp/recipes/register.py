"""All recipes by name, and what they say about themselves. Read for every help text, so nothing here imports torch."""

import dataclasses
import difflib
import inspect
import re
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from visionmlp.engine.config import TrainingConfig
from visionmlp.errors import InvalidConfig
from visionmlp.recipes.detection import (
    asmlp_cascade_1x,
    asmlp_cascade_3x,
    asmlp_mask_rcnn_1x,
    asmlp_mask_rcnn_3x,
    cyclemlp_mask_rcnn,
    cyclemlp_retinanet,
)
from visionmlp.recipes.fine_tuning import (
    dynamixer_transfer,
    mlpmixer_transfer,
    resmlp_resolution,
    resmlp_transfer,
    vip_transfer,
)
from visionmlp.recipes.imagenet import (
    asmlp_imagenet,
    cyclemlp_imagenet,
    dynamixer_imagenet,
    hiremlp_imagenet,
    mlpmixer_imagenet,
    repmlpnet_imagenet,
    resmlp_class_mlp,
    resmlp_imagenet,
    resmlp_layernorm,
    resmlp_sgd,
    vip_imagenet,
)
from visionmlp.recipes.scale import Scale, scaled
from visionmlp.recipes.segmentation import (
    asmlp_upernet,
    cyclemlp_semantic_fpn,
    hiremlp_semantic_fpn,
    hiremlp_upernet,
    repmlpnet_cityscapes,
    resmlp_upernet,
)
from visionmlp.recipes.self_supervised import resmlp_dino, sparsemlp_moco
from visionmlp.recipes.small_images import digits, repmlpnet_cifar100, resmlp_cifar100
from visionmlp.recipes.translation import resmlp_wmt14_ende, resmlp_wmt14_enfr, transformer_wmt14_ende

RecipeFunction = Callable[..., TrainingConfig]

RECIPES: Mapping[str, RecipeFunction] = {
    recipe.__name__: recipe
    for recipe in (
        repmlpnet_imagenet,
        resmlp_imagenet,
        resmlp_layernorm,
        resmlp_class_mlp,
        resmlp_sgd,
        mlpmixer_imagenet,
        asmlp_imagenet,
        hiremlp_imagenet,
        vip_imagenet,
        cyclemlp_imagenet,
        dynamixer_imagenet,
        repmlpnet_cifar100,
        resmlp_cifar100,
        resmlp_transfer,
        mlpmixer_transfer,
        vip_transfer,
        dynamixer_transfer,
        resmlp_resolution,
        resmlp_dino,
        sparsemlp_moco,
        asmlp_upernet,
        hiremlp_upernet,
        hiremlp_semantic_fpn,
        cyclemlp_semantic_fpn,
        repmlpnet_cityscapes,
        resmlp_upernet,
        asmlp_mask_rcnn_1x,
        asmlp_mask_rcnn_3x,
        asmlp_cascade_1x,
        asmlp_cascade_3x,
        cyclemlp_retinanet,
        cyclemlp_mask_rcnn,
        resmlp_wmt14_ende,
        resmlp_wmt14_enfr,
        transformer_wmt14_ende,
        digits,
    )
}
"""Name to function, for ``--recipe``. Arguments without a default are the caller's to give."""

_PARTS = ("Command", "Expected", "Cost", "Source")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Header:
    """A recipe's docstring by its parts, each in one line. It is the one place where a recipe says this."""

    title: str
    """What is trained on what."""
    command: str
    expected: str
    """Result, and who states it."""
    cost: str
    source: str
    """Papers and code; where they disagree, which is followed; what is not published."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Defaults:
    """What a recipe decides."""

    config: TrainingConfig
    """With placeholders in the fields that are to be given."""
    to_give: tuple[str, ...]
    """Fields that the recipe leaves to its caller."""


def recipe_named(name: str) -> RecipeFunction:
    """The function of a recipe.

    Raises:
        InvalidConfig: with the nearest names, if there is none.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(RECIPES)}"
        raise InvalidConfig(f"no recipe {name!r}; {hint}")
    return RECIPES[name]


def config_class(name: str) -> type[TrainingConfig]:
    """The class of a recipe's configuration, whose ``task`` is the recipe's.

    Raises:
        InvalidConfig: for an unknown recipe.
    """
    hint: type[TrainingConfig] = typing.get_type_hints(recipe_named(name))["return"]
    return hint


def defaults_of(name: str, *, model: str | None = None, scale: Scale = "full") -> Defaults:
    """What a recipe decides, for one model and at one scale.

    Args:
        name: of the recipe.
        model: name of the model that values follow which depend on its size; default: the recipe's own.
        scale: see `visionmlp.recipes.scale.scaled`.

    Raises:
        InvalidConfig: for an unknown recipe.
    """
    recipe = recipe_named(name)
    parameters = inspect.signature(recipe).parameters.values()
    placeholders: dict[str, Any] = {p.name: _placeholder(p.annotation) for p in parameters if p.default is p.empty}
    config = scaled(recipe(**placeholders, **({} if model is None else {"model": model})), scale)
    # a smaller scale may need no checkpoint
    to_give = tuple(field for field, value in placeholders.items() if getattr(config, field) == value)
    return Defaults(config=config, to_give=to_give)


def header_of(recipe: RecipeFunction) -> Header:
    """The parts of a recipe's docstring.

    Raises:
        ValueError: if one is missing.
    """
    title, *rest = inspect.cleandoc(recipe.__doc__ or "").split("\n")
    pieces = re.split(rf"^({'|'.join(_PARTS)}): ", "\n".join(rest), flags=re.MULTILINE)
    found = dict(zip(pieces[1::2], pieces[2::2], strict=True))
    if missing := [part for part in _PARTS if part not in found]:
        raise ValueError(f"{getattr(recipe, '__name__', recipe)} does not say {', '.join(missing)}")
    return Header(title=title, **{part.lower(): " ".join(found[part].split()) for part in _PARTS})


def _placeholder(annotation: Any) -> Any:
    return Path() if annotation is Path else ""
