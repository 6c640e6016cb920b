"""The table of models, and the counts behind it: parameters and multiply-accumulates."""

import copy
import dataclasses
import difflib
import fnmatch
from typing import Any

import torch
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from visionmlp.errors import UnknownModel
from visionmlp.models.registry import create_model, list_models, variant


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


def count_params(model: nn.Module) -> int:
    """Parameters; one that is used in several places counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, input_size: tuple[int, int, int]) -> int:
    """Multiply-accumulates of all matrix products and convolutions for one image (C, H, W).

    Counted by ``torch.utils.flop_counter`` on the meta device, so nothing is computed; halved, since it counts a
    multiply-accumulate as two operations. The model is not changed.
    """
    memo: dict[int, Any] = {id(p): nn.Parameter(p.to("meta"), requires_grad=False) for p in model.parameters()}
    memo |= {id(b): b.to("meta") for b in model.buffers()}
    shadow = copy.deepcopy(model, memo).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        shadow(torch.empty(1, *input_size, device="meta", dtype=next(shadow.parameters()).dtype))
    return counter.get_total_flops() // 2


def catalog(pattern: str = "", *, family: str | None = None) -> list[CatalogEntry]:
    """The models whose name contains ``pattern`` or, with wildcards, matches it.

    Raises:
        UnknownModel: if none does, with the nearest names.
    """
    wildcard = pattern if any(letter in pattern for letter in "*?[") else f"*{pattern}*"
    available = list_models(family)
    names = [name for name in available if fnmatch.fnmatchcase(name, wildcard)]
    if not names:
        near = difflib.get_close_matches(pattern, available, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(available)}"
        raise UnknownModel(f"no model matches {pattern!r}; {hint}")
    return [_entry(name) for name in names]


def _entry(name: str) -> CatalogEntry:
    with torch.device("meta"):
        model = create_model(name)
    entry, published = variant(name), variant(name).published
    return CatalogEntry(
        name=name,
        family=entry.family,
        params=count_params(model),
        macs=count_macs(model, (model.config.in_chans, *model.config.img_size)),
        img_size=model.config.img_size,
        paper_params=published.params,
        paper_macs=published.macs,
        paper_top1=published.top1,
        source=published.source,
    )


def catalog_table(entries: list[CatalogEntry]) -> Table:
    """Entries as a table; counts are measured, the columns under "paper" are quoted."""
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
    return [dataclasses.asdict(entry) for entry in entries]


def count_text(count: float) -> str:
    """A count in the unit that suits it: ``26.57 k``, ``38.29 M``, ``2.81 G``."""
    for unit, symbol in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= unit:
            return f"{count / unit:.2f}{symbol}"
    return f"{count:.0f}"


def _scaled(value: float | None, unit: float, digits: int) -> str:
    return "" if value is None else f"{value / unit:.{digits}f}"


def _quoted(value: float | None, unit: float) -> str:
    """As many digits as the paper gives."""
    return "" if value is None else f"{value / unit:g}"
