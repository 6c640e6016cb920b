"""The table of models, read from ``catalog.json`` without torch; how that file is made; and the counts behind it."""

import copy
import dataclasses
import difflib
import fnmatch
import functools
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionmlp.errors import UnknownModel

if TYPE_CHECKING:
    from rich.table import Table
    from torch import nn

CATALOG = Path(__file__).with_name("catalog.json")
"""All models, in the order of the registry; ``python docs/build.py`` writes it and a test compares it with the code."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CatalogEntry:
    """One model: what is counted here, and what its paper states."""

    name: str
    family: str
    params: int
    """Of the training form."""
    macs: int
    """Multiply-accumulates of the training form, one image."""
    img_size: tuple[int, int]
    """Height and width in pixels."""
    paper_params: float | None
    paper_macs: float | None
    paper_top1: float | None
    """ImageNet-1k validation accuracy in percent."""
    source: str
    """Where the paper's numbers stand."""
    tags: tuple[str, ...]
    """Of its published weights; the first are those of ``pretrained=True``."""


def count_params(model: "nn.Module") -> int:
    """Parameters; one that is used in several places counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: "nn.Module", input_size: tuple[int, int, int]) -> int:
    """Multiply-accumulates of all matrix products and convolutions for one image (C, H, W).

    Counted by ``torch.utils.flop_counter`` on the meta device, so nothing is computed; halved, since it counts a
    multiply-accumulate as two operations. The model is not changed.
    """
    import torch
    from torch import nn
    from torch.utils.flop_counter import FlopCounterMode

    memo: dict[int, Any] = {id(p): nn.Parameter(p.to("meta"), requires_grad=False) for p in model.parameters()}
    memo |= {id(b): b.to("meta") for b in model.buffers()}
    shadow = copy.deepcopy(model, memo).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        shadow(torch.empty(1, *input_size, device="meta", dtype=next(shadow.parameters()).dtype))
    return counter.get_total_flops() // 2


@functools.cache
def read_catalog() -> dict[str, CatalogEntry]:
    """All models by name, the tiny ``*_test`` ones too."""
    rows = json.loads(CATALOG.read_text(encoding="utf-8"))
    return {
        row["name"]: CatalogEntry(**{**row, "img_size": tuple(row["img_size"]), "tags": tuple(row["tags"])})
        for row in rows
    }


def write_catalog() -> None:
    """Write ``catalog.json`` from the registry, whose counts the contract tests assert."""
    from visionmlp.models.registry import list_models, published_weights, variant

    rows = []
    for name in [*list_models(), *list_models(test=True)]:
        entry, published = variant(name), variant(name).published
        row = CatalogEntry(
            name=name,
            family=entry.family,
            params=entry.params,
            macs=entry.macs,
            img_size=entry.img_size,
            paper_params=published.params,
            paper_macs=published.macs,
            paper_top1=published.top1,
            source=published.source,
            tags=tuple(weights.tag for weights in published_weights(name)),
        )
        rows.append(json.dumps(dataclasses.asdict(row)))
    CATALOG.write_text("[\n" + ",\n".join(rows) + "\n]\n", encoding="utf-8")
    read_catalog.cache_clear()


def check_name(reference: str) -> None:
    """Raise UnknownModel for a name that no model has, as `visionmlp.load_model` would, but without importing torch.

    Run folders and files are left to the loader, and so is everything once models are imported: a program may have
    registered its own.
    """
    models = read_catalog()
    name, _, tag = reference.partition(".")
    path = Path(reference)
    if path.exists() or len(path.parts) > 1 or (path.suffix and name not in models):
        return
    if "visionmlp.models.registry" in sys.modules:
        return
    if name not in models:
        raise UnknownModel.of(name, _published(models))
    if tag and tag not in models[name].tags:
        raise UnknownModel.of_weights(name, tag, models[name].tags)


def is_name(word: str) -> bool:
    """Whether a word is the name of a model, perhaps with a tag of its weights."""
    return word.partition(".")[0] in read_catalog()


def catalog(pattern: str = "", *, family: str | None = None) -> list[CatalogEntry]:
    """The models whose name contains ``pattern`` or, with wildcards, matches it.

    Args:
        pattern: text or wildcards.
        family: display name or prefix of the models; case and punctuation do not matter.

    Raises:
        UnknownModel: if none does, with the nearest names, or if there is no such family.
    """
    models = read_catalog()
    wildcard = pattern if any(letter in pattern for letter in "*?[") else f"*{pattern}*"
    available = _published(models)
    if family is not None:
        wanted = _families(models, family)
        available = [name for name in available if models[name].family in wanted]
    names = [name for name in available if fnmatch.fnmatchcase(name, wildcard)]
    if not names:
        near = difflib.get_close_matches(pattern, available, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(available)}"
        raise UnknownModel(f"no model matches {pattern!r}; {hint}")
    return [models[name] for name in names]


def catalog_table(entries: list[CatalogEntry]) -> "Table":
    """Entries as a table; counts are measured, the columns under "paper" are quoted."""
    from rich.table import Table

    title = "params and MACs are counted (training form, one image); the paper's are quoted from the source"
    table = Table(title=title, title_justify="left")
    table.add_column("model", no_wrap=True)
    table.add_column("family", no_wrap=True)
    for heading in ("image", "params M", "MACs G", "paper M", "paper G", "paper top-1 %"):
        table.add_column(heading, justify="right")
    table.add_column("source")
    for entry in entries:
        table.add_row(
            entry.name,
            entry.family,
            "x".join(map(str, entry.img_size)),
            _scaled(entry.params, 1e6, 2),
            _scaled(entry.macs, 1e9, 2),
            _quoted(entry.paper_params, 1e6),
            _quoted(entry.paper_macs, 1e9),
            _scaled(entry.paper_top1, 1.0, 1),
            entry.source,
        )
    return table


def catalog_rows(entries: list[CatalogEntry]) -> list[dict[str, Any]]:
    """Entries for JSON."""
    rows = [dataclasses.asdict(entry) for entry in entries]
    return [{name: value for name, value in row.items() if name != "tags"} for row in rows]


def count_text(count: float) -> str:
    """A count in the unit that suits it: ``26.57 k``, ``38.29 M``, ``2.81 G``."""
    for unit, symbol in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= unit:
            return f"{count / unit:.2f}{symbol}"
    return f"{count:.0f}"


def _published(models: Mapping[str, CatalogEntry]) -> list[str]:
    return [name for name in models if not name.endswith("_test")]


def _families(models: Mapping[str, CatalogEntry], wanted: str) -> set[str]:
    """Display names of a family that is given by that or by the prefix of its models."""
    prefixes = {models[name].family: name.removesuffix("_test") for name in models if name.endswith("_test")}
    found = {display for display, prefix in prefixes.items() if _plain(wanted) in (_plain(display), _plain(prefix))}
    if not found:
        raise UnknownModel(f"no family {wanted!r}; there are {', '.join(prefixes)}")
    return found


def _plain(text: str) -> str:
    return "".join(letter for letter in text.lower() if letter.isalnum())


def _scaled(value: float | None, unit: float, digits: int) -> str:
    return "" if value is None else f"{value / unit:.{digits}f}"


def _quoted(value: float | None, unit: float) -> str:
    """As many digits as the paper gives."""
    return "" if value is None else f"{value / unit:g}"
