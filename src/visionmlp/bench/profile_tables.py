"""Profiles as they are printed and written."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Group
from rich.table import Table
from rich.text import Text

from visionmlp.bench.bench import write_rows
from visionmlp.bench.roofline import LayerTime, Profile
from visionmlp.bench.watch import Kind
from visionmlp.measure.catalog import count_text

KINDS: dict[Kind, str] = {
    "product": "matrix products and convolutions",
    "norm": "norms",
    "elementwise": "elementwise work and reductions",
    "movement": "copies",
    "view": "views and allocations",
}
"""What each kind is called in a summary."""
_SHOWN_SHARE = 0.01
"""Rows of less time than this share are summed up in the table."""


def profile_tables(profile: Profile) -> Group:
    """The layers, grouped so that they fit one screen, and below them the sums by kind."""
    return Group(_layer_table(profile), _summary_table(profile))


def _layer_table(profile: Profile) -> Table:
    title = (
        f"{profile.model}, {profile.form} form, {profile.dtype}, {profile.height}x{profile.width}, "
        f"batch {profile.batch_size}, eager\n{profile.machine}\n"
        f"GEMM {profile.gemm}, copy {profile.bandwidth / 1e9:.1f} GB/s"
    )
    table = Table(title=title, title_justify="left")
    for heading in ("layer", "kind", "operations"):
        table.add_column(heading)
    for heading in ("calls", "ms", "share %", "MACs", "GFLOP/s", "MB", "roofline ms", "times over", "fused ms"):
        table.add_column(heading, justify="right")
    groups: dict[tuple[str, Kind], list[LayerTime]] = {}
    for layer in profile.layers:
        groups.setdefault((layer.group, layer.kind), []).append(layer)
    large = {
        key: rows for key, rows in groups.items() if sum(row.seconds for row in rows) >= _SHOWN_SHARE * profile.seconds
    }
    for (group, kind), rows in large.items():
        names = ", ".join(dict.fromkeys(row.operation for row in rows))
        table.add_row(Text(group), kind, Text(names, overflow="ellipsis"), *_numbers(rows, profile))
    rest = [row for key, rows in groups.items() if key not in large for row in rows]
    if rest:
        table.add_row(f"{len(groups) - len(large)} others", "", "", *_numbers(rest, profile))
    return table


def _numbers(rows: Sequence[LayerTime], profile: Profile) -> tuple[str, ...]:
    took, macs, bound = sum(r.seconds for r in rows), sum(r.macs for r in rows), sum(r.bound for r in rows)
    return (
        str(sum(row.calls for row in rows)),
        f"{1e3 * took:.2f}",
        f"{100 * took / profile.seconds:.1f}",
        count_text(macs) if macs else "",
        f"{2 * macs / took / 1e9:.0f}" if macs else "",
        f"{sum(row.bytes for row in rows) / 1e6:.1f}",
        f"{1e3 * bound:.2f}",
        _times(took, bound),
        f"{1e3 * sum(row.fused_bound for row in rows):.2f}",
    )


def _summary_table(profile: Profile) -> Table:
    table = Table()
    table.add_column("where the time goes")
    for heading in ("ms", "share %", "roofline ms", "times over"):
        table.add_column(heading, justify="right")
    for kind, words in KINDS.items():
        rows = [row for row in profile.layers if row.kind == kind]
        _add_sum(table, words, sum(row.seconds for row in rows), sum(row.bound for row in rows), profile.seconds)
    _add_sum(table, "between operations: Python, modules, freeing memory", profile.outside, 0.0, profile.seconds)
    table.add_section()
    _add_sum(table, "all of it", profile.seconds, profile.bound, profile.seconds)
    _add_sum(table, "one call that nobody watches", profile.plain_seconds, profile.bound, profile.seconds)
    fused = "the same, against perfect fusion: products alone, weights read once (fused ms)"
    _add_sum(table, fused, profile.plain_seconds, profile.fused_bound, profile.seconds)
    return table


def _add_sum(table: Table, words: str, took: float, bound: float, whole: float) -> None:
    table.add_row(words, f"{1e3 * took:.2f}", f"{100 * took / whole:.1f}", f"{1e3 * bound:.2f}", _times(took, bound))


def _times(took: float, bound: float) -> str:
    return f"{took / bound:.2f}" if bound else ""


def write_profiles(profiles: Iterable[Profile], path: Path) -> None:
    """One row for each module and operation, with the machine's columns."""
    rows = []
    for profile in profiles:
        about = {
            "model": profile.model,
            "form": profile.form,
            "dtype": profile.dtype,
            "height": profile.height,
            "width": profile.width,
            "batch_size": profile.batch_size,
            "call_seconds": profile.plain_seconds,
            "call_fused_bound": profile.fused_bound,
        }
        rates = {
            "gemm_gflops": round(profile.gemm.best / 1e9, 1),
            "gemm_library": profile.gemm.library,
            "copy_gbytes": round(profile.bandwidth / 1e9, 1),
        }
        rows += [
            {**about, **dataclasses.asdict(layer), **rates, **dataclasses.asdict(profile.machine)}
            for layer in profile.layers
        ]
    write_rows(rows, path)
