"""The generated parts of the pages under ``docs/families``: tables of variants and options, and the influence figure.

A page is written by hand around them. A part stands between ``<!-- generated: NAME -->`` and ``<!-- end -->``; a test
compares it with what this module makes, so a table cannot be older than the code.
"""

import ast
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from visionmlp.errors import DataError
from visionmlp.measure.catalog import catalog
from visionmlp.models.backbone import Backbone
from visionmlp.models.config import BackboneConfig
from visionmlp.models.registry import create_model, list_models, published_weights, variant
from visionmlp.models.stage import Stage
from visionmlp.ops.layout import to_channels_first
from visionmlp.report.plots import influence_maps

_PART = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill_page(text: str, parts: Mapping[str, str]) -> str:
    """A page with its generated parts replaced.

    Args:
        text: the page.
        parts: contents by name.

    Raises:
        DataError: if the page asks for a part that nobody makes, or lacks one.
    """
    asked = [match[2] for match in _PART.finditer(text)]
    if sorted(asked) != sorted(parts):
        raise DataError(f"the page has the generated parts {', '.join(asked) or 'none'}, not {', '.join(parts)}")
    return _PART.sub(lambda match: f"{match[1]}\n{parts[match[2]].strip()}\n\n{match[3]}", text)


def page_parts(prefix: str) -> dict[str, str]:
    """The generated parts of a family's page.

    Args:
        prefix: what its models' names begin with, such as ``"cyclemlp"``.
    """
    return {
        "variants": variants_table(prefix),
        "weights": weights_table(prefix),
        "options": options_table(prefix),
    }


def variants_table(prefix: str) -> str:
    """Markdown: parameters and multiply-accumulates counted here, and what the paper states, quoted."""
    lines = [
        "| model | image | params | MACs | paper: params | paper: MACs | paper: top-1 | quoted from |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for entry in catalog(family=prefix):
        cells = [
            f"`{entry.name}`",
            "x".join(map(str, entry.img_size)),
            f"{entry.params / 1e6:.2f} M",
            f"{entry.macs / 1e9:.2f} G",
            "" if entry.paper_params is None else f"{entry.paper_params / 1e6:g} M",
            "" if entry.paper_macs is None else f"{entry.paper_macs / 1e9:g} G",
            "" if entry.paper_top1 is None else f"{entry.paper_top1:.1f} %",
            entry.source,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def weights_table(prefix: str) -> str:
    """Markdown: the weights that the authors published, their accuracy and licence as they state them."""
    lines = ["| weights | top-1 | licence | where | |", "|---|---|---|---|---|"]
    for name in list_models(prefix):
        for weights in published_weights(name):
            where = f"`{weights.url}`" if weights.url else f"by hand, from the links on `{weights.page}`"
            top1 = "" if weights.top1 is None else f"{weights.top1:g} %"
            lines.append(f"| `{name}.{weights.tag}` | {top1} | {weights.licence} | {where} | {weights.note} |")
    return "\n".join(lines) if len(lines) > 2 else "None were published."


def options_table(prefix: str) -> str:
    """Markdown: every field of the family's configuration, its default (of the class), and its documentation."""
    config = type(variant(list_models(prefix, test=True)[0]).config)
    lines = ["| option | default | meaning |", "|---|---|---|"]
    documentation = field_documentation(config)
    for field in dataclasses.fields(config):
        default = field.default if field.default is not dataclasses.MISSING else "required"
        shown = f'"{default}"' if isinstance(default, str) else str(default)
        lines.append(f"| `{field.name}` | `{shown}` | {documentation[field.name].replace('|', chr(92) + '|')} |")
    return "\n".join(lines)


def field_documentation(config: type[BackboneConfig]) -> dict[str, str]:
    """The string behind each field of a configuration class and of its bases, as one line.

    Raises:
        DataError: for a field without one.
    """
    documentation: dict[str, str] = {}
    for owner in reversed(config.__mro__):
        if not dataclasses.is_dataclass(owner):
            continue
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        assert isinstance(definition, ast.ClassDef)
        for statement, follower in zip(definition.body, definition.body[1:], strict=False):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                text = follower.value if isinstance(follower, ast.Expr) else None
                if not (isinstance(text, ast.Constant) and isinstance(text.value, str)):
                    raise DataError(f"{owner.__name__}.{statement.target.id} has no documentation")
                documentation[statement.target.id] = " ".join(text.value.split())
    return documentation


def influence(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """How much each input position moves the output's middle position.

    Args:
        function: maps (B, C, H, W) to (B, C', H', W').
        x: inputs; the result is averaged over them.

    Returns:
        (H, W): the norm, over channels, of a gradient whose direction among the output's channels is random.
    """
    x = x.detach().requires_grad_()
    y = function(x)
    middle = y[:, :, y.shape[2] // 2, y.shape[3] // 2]
    direction = torch.randn(middle.shape, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((middle * direction).sum(), x)
    return gradient.square().sum(1).mean(0).sqrt()


def draw_influence(name: str, path: Path, *, images: int = 4) -> Path:
    """Draw what one position sees: through one spatial mixer, two blocks, four blocks, and the network.

    The blocks are those of the stage that holds most of them; the weights are fresh.

    Args:
        name: model.
        path: PNG file to write.
        images: random images to average over.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_model(name, num_classes=0).eval()
        _widen_residuals(model)
        stages = cast("list[Stage]", list(model.stages))
        index = max(range(len(stages)), key=lambda i: len(stages[i].blocks))
        pixels = torch.randn(images, model.in_chans, *model.config.img_size)
        with torch.no_grad():
            x = model.stem(pixels)
            for stage in stages[:index]:
                x = stage(x)
            x = stages[index].downsample(x)
        blocks = list(stages[index].blocks)
        panels = {
            "one spatial mixer": _mixer_influence(blocks[0], x, model),
            "two blocks": _influence(nn.Sequential(*blocks[:2]), x, model),
            "four blocks": _influence(nn.Sequential(*blocks[:4]), x, model),
            "network, pixels": influence(lambda image: _last_map(model, image), pixels[:1]),
        }
    return influence_maps(panels, path)


def _widen_residuals(model: Backbone) -> None:
    """LayerScale starts near zero in deep models; the figure is about where mixing reaches, not how soon."""
    for module in model.modules():
        for name, value in module.named_parameters(recurse=False):
            if name == "gamma":
                nn.init.ones_(value)


def _mixer_influence(block: nn.Module, x: Tensor, model: Backbone) -> Tensor:
    parts: Any = block
    return _influence(lambda inputs: parts.spatial(parts.norm1(inputs)), x, model)


def _influence(function: Callable[[Tensor], Tensor], x: Tensor, model: Backbone) -> Tensor:
    if model.layout == "BCHW":
        return influence(function, x)
    return influence(lambda maps: function(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), x.permute(0, 3, 1, 2))


def _last_map(model: Backbone, image: Tensor) -> Tensor:
    return to_channels_first(model.forward_features(image), model.layout)
