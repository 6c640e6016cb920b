"""Figures of a benchmark: accuracy against speed, and sweeps over batch and image size."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionmlp.errors import require
from visionmlp.report.plots import GREY, new_figure, save, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def speed_figure(rows: Sequence[Mapping[str, Any]], path: Path, *, stamp: str) -> Path:
    """What a benchmark shows: accuracy against speed, and the sweeps over batch and image size that it holds.

    Accuracy is what papers state; where two or more models have one, each is drawn once, in the fastest form and
    runtime measured at the largest batch. With neither sweep nor accuracies, images/s are drawn as bars.

    Args:
        rows: measurements, see `visionmlp.bench.bench.Measurement`.
        path: PNG file to write.
        stamp: machine and date, for the footer and the file's metadata.

    Raises:
        MissingExtra: if matplotlib is not installed.
        RunFolderError: if the file cannot be written.
    """
    rows = [row for row in rows if row["task"] == "inference"] or list(rows)
    panels = _speed_panels(rows)
    with style():
        height = 1.2 + 0.35 * len(rows) if panels == [_bar_panel] else 5.0
        figure = new_figure(max(7.2, 5.8 * len(panels)), height)
        looks = _contender_looks(rows)
        figure.supxlabel(stamp, x=0.01, ha="left", fontsize=6.5, color=GREY)
        all_axes = list(figure.subplots(1, len(panels), squeeze=False).flat)
        # labels are placed where the others leave room, so the panel that has them comes last
        for axes, panel in reversed(list(zip(all_axes, panels, strict=True))):
            panel(axes, rows, looks)
        return save(figure, path, metadata={"Description": stamp})


def _speed_panels(rows: Sequence[Mapping[str, Any]]) -> list[Callable[..., None]]:
    """The panels that the rows can fill."""
    panels: list[Callable[..., None]] = []
    if len({row["model"] for row in rows if row["paper_top1"] is not None}) > 1:
        panels.append(_accuracy_panel)
    if len({row["batch_size"] for row in rows}) > 1:
        panels.append(_batch_panel)
    if _sweep_over_size(rows):
        panels.append(_size_panel)
    return panels or [_bar_panel]


_FAMILY_LOOKS = tuple(
    zip(
        # Okabe and Ito's colours but yellow, which is too light for lines
        2 * ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000"),
        ("o", "s", "^", "D", "v", "P", "X", "p", "<", ">", "h", "*", "d", "8"),
        strict=True,
    )
)


def _contender_looks(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Colour and marker of each family."""
    families = list(dict.fromkeys(row["family"] for row in rows))
    looks = [_FAMILY_LOOKS[i % len(_FAMILY_LOOKS)] for i in range(len(families))]
    return {
        family: {"color": colour, "marker": marker} for family, (colour, marker) in zip(families, looks, strict=True)
    }


def _accuracy_panel(axes: "Axes", rows: Sequence[Mapping[str, Any]], looks: Mapping[str, Any]) -> None:
    batch = max(row["batch_size"] for row in rows)
    fastest: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        known = row["paper_top1"] is not None and row["batch_size"] == batch and row["dtype"] == rows[0]["dtype"]
        best = fastest.get(row["model"])
        if known and (best is None or row["images_per_second"] > best["images_per_second"]):
            fastest[row["model"]] = row
    points = []
    for row in fastest.values():
        point = (row["images_per_second"], row["paper_top1"])
        peer = row["form"] == "peer"
        axes.plot(*point, linestyle="", markersize=7, markerfacecolor="white" if peer else None, **looks[row["family"]])
        points.append((point, row["model"].partition("_patch")[0], looks[row["family"]]["color"]))
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(require("matplotlib.ticker", extra="plots").LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.margins(0.15, 0.1)
    forms = {row["form"] for row in fastest.values()}
    used = {f"{row['form']}, {row['runtime']}" for row in fastest.values()}
    how = next(iter(used)) if len(used) == 1 else "fastest form and runtime of each"
    axes.set(
        title="Accuracy against speed" + (" (open: other kinds of model)" if "peer" in forms else ""),
        xlabel=f"images/s, measured, batch {batch}, {rows[0]['dtype']}, {how}",
        ylabel="ImageNet-1k top-1 as published (%)",
    )
    _label_points(axes, points)


def _batch_panel(axes: "Axes", rows: Sequence[Mapping[str, Any]], looks: Mapping[str, Any]) -> None:
    least = {row["model"]: row["height"] for row in reversed(rows)}  # of a sweep over sizes, the first
    chosen = [row for row in rows if row["height"] == least[row["model"]]]
    _lines(axes, chosen, looks, x=lambda row: row["batch_size"], y=lambda row: row["images_per_second"])
    axes.set(title="Speed against batch size", xlabel="images per call", ylabel="images/s")


def _size_panel(axes: "Axes", rows: Sequence[Mapping[str, Any]], looks: Mapping[str, Any]) -> None:
    _lines(
        axes,
        _sweep_over_size(rows),
        looks,
        x=lambda row: row["height"],
        y=lambda row: 1e9 / (row["images_per_second"] * row["height"] * row["width"]),
    )
    batch = max(row["batch_size"] for row in rows)
    axes.set(title=f"Cost against image size, batch {batch}", xlabel="side (pixels)", ylabel="ns per pixel")


def _sweep_over_size(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Models measured at two sizes or more, at the largest batch."""
    batch = max(row["batch_size"] for row in rows)
    sizes: dict[str, set[int]] = {}
    for row in rows:
        sizes.setdefault(row["model"], set()).add(row["height"])
    return [row for row in rows if row["batch_size"] == batch and len(sizes[row["model"]]) > 1]


def _lines(axes: "Axes", rows: Sequence[Mapping[str, Any]], looks: Mapping[str, Any], *, x: Any, y: Any) -> None:
    """A line for each contender: colour and marker by family, filling by model, stroke by form, runtime and dtype."""
    ways = _ways(rows)
    strokes = dict(zip(dict.fromkeys(ways), 4 * ("-", "--", ":", "-."), strict=False))
    series: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row, way in zip(rows, ways, strict=True):
        series.setdefault((row["model"], way), []).append(row)
    siblings: dict[str, list[str]] = {}
    for (model, way), members in series.items():
        family = members[0]["family"]
        others = siblings.setdefault(family, [])
        first = model not in others
        if first:
            others.append(model)
        axes.plot(
            [x(row) for row in sorted(members, key=x)],
            [y(row) for row in sorted(members, key=x)],
            linestyle=strokes[way],
            fillstyle=("full", "none", "left", "right", "top", "bottom")[others.index(model) % 6],
            label=model.partition("_patch")[0] if first else None,
            **looks[family],
        )
    if len(strokes) > 1:
        for way, stroke in strokes.items():
            axes.plot([], [], linestyle=stroke, color=GREY, label=way or "as built")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted({x(row) for row in rows}))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.set_ylim(0, 1.06 * max(y(row) for row in rows))
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0), handlelength=3)


def _ways(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """How each row was run, in words, as far as that varies; our forms only, since others have no choice of form."""
    ours = ("training", "deploy")
    forms = {row["form"] for row in rows} & set(ours)
    varying = [name for name in ("runtime", "dtype") if len({row[name] for row in rows}) > 1]
    return [
        ", ".join([row["form"]] * (len(forms) > 1 and row["form"] in ours) + [row[name] for name in varying])
        for row in rows
    ]


def _bar_panel(axes: "Axes", rows: Sequence[Mapping[str, Any]], looks: Mapping[str, Any]) -> None:
    labels = [row["model"] + (f", {way}" if way else "") for row, way in zip(rows, _ways(rows), strict=True)]
    speeds = [row["images_per_second"] for row in rows]
    bars = axes.barh(range(len(rows)), speeds, color=[looks[row["family"]]["color"] for row in rows], height=0.7)
    axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
    axes.set_yticks(range(len(rows)), labels)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.12)
    axes.set(title=f"Speed, batch {rows[0]['batch_size']}", xlabel="images/s")


def _label_points(axes: "Axes", points: Sequence[tuple[tuple[float, float], str, str]]) -> None:
    """Names beside points, each where it covers least of the others."""
    figure: Any = axes.figure
    figure.draw_without_rendering()  # settles the layout, so that places in pixels are known
    boxes = require("matplotlib.transforms", extra="plots").Bbox
    half = 0.05 * figure.dpi
    centres = [axes.transData.transform(point) for point, _, _ in points]
    taken = [boxes.from_extents(x - half, y - half, x + half, y + half) for x, y in centres]
    places = [
        (8, 0),
        (-8, 0),
        (0, 9),
        (0, -9),
        (7, 8),
        (-7, 8),
        (7, -8),
        (-7, -8),
        (0, 18),
        (0, -18),
        (12, 14),
        (12, -14),
    ]
    for point, name, colour in points:
        options = []
        for order, (right, up) in enumerate(places):
            text = axes.annotate(
                name,
                point,
                xytext=(right, up),
                textcoords="offset points",
                ha="left" if right > 0 else "right" if right < 0 else "center",
                va="bottom" if up > 0 else "top" if up < 0 else "center",
                fontsize=7,
                color=colour,
            )
            box = text.get_window_extent()
            inside = boxes.intersection(box, axes.bbox)
            hidden = box.width * box.height - (inside.width * inside.height if inside else 0.0)
            covered = sum(
                both.width * both.height for other in taken if (both := boxes.intersection(box, other)) is not None
            )
            options.append((covered + hidden, order, text, box))
        *_, best, box = min(options, key=lambda each: each[:2])
        for _, _, text, _ in options:
            if text is not best:
                text.remove()
        taken.append(box)
