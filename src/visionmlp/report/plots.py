"""Figures: curves, routers, confusion matrix, matrix rows, influence, speed. The only file that imports matplotlib.

Figures are drawn without pyplot, so no display and no global state is needed. Colours are told apart without colour
vision: Okabe and Ito's blue and vermilion for lines, one hue by lightness for counts, blue-white-red for signs.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from visionmlp.errors import RunFolderError, require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, VERMILION, GREY = "#0072B2", "#D55E00", "#666666"
_STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
}
_NAMED_CLASSES, _COUNTED_CLASSES = 40, 20

Rows = Sequence[Mapping[str, float]]


def learning_curves(training: Rows, evaluation: Rows, path: Path) -> Path:
    """Loss, accuracy and learning rate over steps.

    Args:
        training: rows with ``step``, ``loss`` and ``lr``.
        evaluation: rows with ``step``, ``loss`` and ``top1`` (percent).
        path: PNG file to write.

    Raises:
        MissingExtra: if matplotlib is not installed.
        RunFolderError: if the file cannot be written.
    """
    with _style():
        figure = _figure(9.6, 2.9)
        loss, accuracy, rate = figure.subplots(1, 3)
        loss.plot(*_line(training, "loss"), color=BLUE, label="training")
        loss.plot(*_line(evaluation, "loss"), color=VERMILION, linestyle="--", label="held out")
        loss.set(title="Loss", xlabel="step", ylim=(0, None))
        loss.legend()
        steps, top1 = _line(evaluation, "top1")
        accuracy.plot(steps, top1, color=VERMILION, marker="o" if len(steps) < 2 else "")
        accuracy.set(title="Top-1 accuracy, held out (%)", xlabel="step", ylim=_accuracy_limits(top1))
        if top1:
            best = int(np.argmax(top1))
            accuracy.plot(steps[best], top1[best], "o", color=VERMILION, markersize=5)
            accuracy.annotate(
                f"{top1[best]:.2f}",
                (steps[best], top1[best]),
                xytext=(0, -8),
                textcoords="offset points",
                ha="right" if best > len(top1) / 2 else "left",
                va="top",
                color=VERMILION,
                fontweight="bold",
            )
        rate.plot(*_line(training, "lr"), color=GREY)
        rate.set(title="Learning rate", xlabel="step", ylim=(0, None))
        rate.yaxis.set_major_formatter("{x:g}")
        return _save(figure, path)


def router_curves(rows: Rows, path: Path) -> Path:
    """How routers of experts chose while training: load of each expert, overflow, entropy, balance loss.

    Args:
        rows: rows of ``router.csv``: ``step``, ``balance``, and for each router, named ``block.kind``, the columns
            ``load0`` and so on (shares of the choices), ``overflow`` (share) and ``entropy`` (1 is undecided).
        path: PNG file to write.

    Raises:
        MissingExtra: if matplotlib is not installed.
        RunFolderError: if the file cannot be written.
    """
    routers = [name.removesuffix(".overflow") for name in rows[0] if name.endswith(".overflow")]
    columns = min(4, len(routers))
    lines = -(-len(routers) // columns)
    with _style():
        figure = _figure(9.6, 2.1 * lines + 2.5)
        cells = figure.add_gridspec(lines + 1, 12, height_ratios=[*[1] * lines, 1.15])
        span = 12 // columns
        looks = _router_looks(routers)
        for index, router in enumerate(routers):
            line, column = divmod(index, columns)
            axes = figure.add_subplot(cells[line, column * span : (column + 1) * span])
            _loads(axes, rows, router, colour=looks[router]["color"])
            if column == 0:
                axes.set_ylabel("load (% of choices)")
        overflow, entropy, balance = (figure.add_subplot(cells[lines, i : i + 4]) for i in (0, 4, 8))
        for router, look in looks.items():
            overflow.plot(*_line(rows, f"{router}.overflow", factor=100), **look)
            entropy.plot(*_line(rows, f"{router}.entropy"), **look)
        overflow.set(title="Choices without a place (%)", xlabel="step", ylim=(0, None))
        entropy.set(title="Entropy of the gates (1: undecided)", xlabel="step", ylim=(0, 1.03))
        entropy.legend(fontsize=7, ncols=2 if len(routers) > 4 else 1)
        balance.plot(*_line(rows, "balance"), color=GREY)
        balance.set(title="Balance loss, as added", xlabel="step", ylim=(0, None))
        balance.ticklabel_format(axis="y", scilimits=(-2, 4))
        return _save(figure, path)


def _router_looks(routers: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A colour for each kind of router, a line style for each block."""
    blocks = list(dict.fromkeys(router.rpartition(".")[0] for router in routers))
    kinds = list(dict.fromkeys(router.rpartition(".")[2] for router in routers))
    return {
        router: {
            "color": (BLUE, VERMILION)[kinds.index(router.rpartition(".")[2]) % 2],
            "linestyle": ("-", "--", ":", "-.")[blocks.index(router.rpartition(".")[0]) % 4],
            "linewidth": 1.3,
            "label": router,
        }
        for router in routers
    }


def _loads(axes: "Axes", rows: Rows, router: str, *, colour: str) -> None:
    loads = [_line(rows, name, factor=100) for name in rows[0] if name.startswith(f"{router}.load")]
    even = 100 / len(loads)
    for steps, shares in loads:  # experts are alike, and so are their lines
        axes.plot(steps, shares, color=colour, linewidth=0.9, alpha=0.65)
    axes.axhline(even, color="black", linestyle=":", linewidth=1.2)
    largest = max(2 * even, *(share for _, shares in loads for share in shares))
    axes.set(title=router, ylim=(0, min(100, 1.05 * largest)))
    text = f"{len(loads)} experts; dotted: even"
    axes.text(0.98, 0.97, text, ha="right", va="top", fontsize=7, color=GREY, transform=axes.transAxes)


def confusion_matrix(confusion: Tensor, class_names: Sequence[str], path: Path) -> Path:
    """True classes in rows, predictions in columns; shade is the share of the row.

    Args:
        confusion: counts (K, K).
        class_names: K names; left out where there is no room.
        path: PNG file to write.

    Raises:
        MissingExtra: if matplotlib is not installed.
        RunFolderError: if the file cannot be written.
    """
    counts = confusion.double().numpy()
    shares = counts / counts.sum(1, keepdims=True).clip(min=1)
    classes = len(counts)
    side = min(9.0, max(4.2, 0.38 * classes))
    with _style(**{"axes.grid": False}):
        figure = _figure(side + 0.9, side)
        axes: Axes = figure.subplots()
        # the square root lifts rare mistakes out of the background
        image = axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1)
        if classes <= _NAMED_CLASSES:
            # of folders, whose names need not be UTF-8, nor formulas for all their $
            names = [name.encode(errors="backslashreplace").decode() for name in class_names]
            tilted = max(map(len, names)) > 3
            turn, side_of_turn = (40, "right") if tilted else (0, "center")
            axes.set_xticks(range(classes), names, rotation=turn, ha=side_of_turn, parse_math=False)
            axes.set_yticks(range(classes), names, parse_math=False)
        if classes <= _COUNTED_CLASSES:
            for row, column in np.argwhere(counts > 0):
                colour = "white" if shares[row, column] > 0.4 else "black"
                axes.text(column, row, f"{counts[row, column]:.0f}", ha="center", va="center", color=colour, fontsize=8)
        correct = 100 * counts.trace() / max(counts.sum(), 1)
        axes.set(
            title=f"{correct:.2f} % of {counts.sum():.0f} held-out images are right", xlabel="predicted", ylabel="true"
        )
        axes.spines[:].set_visible(False)
        bar = figure.colorbar(image, ax=axes, fraction=0.045, pad=0.03, label="share of the true class")
        ticks = (0, 0.01, 0.1, 0.25, 0.5, 1)
        bar.set_ticks([share**0.5 for share in ticks], labels=[f"{100 * share:g} %" for share in ticks])
        return _save(figure, path)


def kernel_rows(
    before: Tensor,
    after: Tensor,
    grid: tuple[int, int],
    path: Path,
    *,
    positions: int = 4,
    titles: tuple[str, str] = ("fully-connected weights as trained", "after Locality Injection"),
) -> Path:
    """Rows of a token-mixing matrix as images: what one output position takes from all input positions.

    Each small image belongs to the output position with the black frame. A convolution that was merged into the matrix
    shows as a bright pattern around it. Both halves share one scale.

    Args:
        before: (N, N), without the convolutions.
        after: (N, N), with them merged in.
        grid: height and width of the map, N = height x width.
        path: PNG file to write.
        positions: output positions to show along each side.
        titles: of the two halves.

    Raises:
        MissingExtra: if matplotlib is not installed.
        RunFolderError: if the file cannot be written.
    """
    height, width = grid
    rows = _spread(height, positions)
    columns = _spread(width, positions)
    maps = [matrix.detach().double().cpu().numpy().reshape(height, width, height, width) for matrix in (before, after)]
    limit = float(np.quantile(np.abs(maps[1][np.ix_(rows, columns)]), 0.995)) or 1.0
    image: Any = None
    with _style(**{"axes.grid": False, "axes.spines.top": True, "axes.spines.right": True, "axes.linewidth": 0.5}):
        figure = _figure(9.6, 4.4 * len(rows) / len(columns) * height / width + 0.2)
        left, right, scale = figure.subfigures(1, 3, wspace=0.03, width_ratios=(1, 1, 0.17))  # type: ignore[misc]
        for half, kernels, title in zip((left, right), maps, titles, strict=True):
            half.suptitle(title, fontsize=10, fontweight="bold")
            for axes, (i, j) in zip(
                half.subplots(len(rows), len(columns), squeeze=False).flat,
                [(i, j) for i in rows for j in columns],
                strict=True,
            ):
                image = axes.imshow(kernels[i, j], cmap="RdBu_r", vmin=-limit, vmax=limit)
                axes.add_patch(_frame(i, j))
                axes.set_xticks([])
                axes.set_yticks([])
        scale.colorbar(image, cax=scale.add_axes((0.1, 0.2, 0.2, 0.6)), label="weight", extend="both")
        return _save(figure, path)


def influence_maps(panels: Mapping[str, Tensor], path: Path, *, decades: float = 3.0) -> Path:
    """Maps of how much each position moves one output position, side by side on one logarithmic scale.

    Args:
        panels: non-negative maps (H, W) by title; each is shown relative to its largest value. Zeros stay white.
        path: PNG file to write.
        decades: powers of ten below the largest value that are told apart.

    Raises:
        MissingExtra: if matplotlib is not installed.
        RunFolderError: if the file cannot be written.
    """
    image: Any = None
    with _style(**{"axes.grid": False, "axes.spines.top": True, "axes.spines.right": True}):
        figure = _figure(9.6, 2.75)
        all_axes = figure.subplots(1, len(panels), squeeze=False).flat
        for axes, (title, values) in zip(all_axes, panels.items(), strict=True):
            relative = (values / values.max()).detach().double().cpu().numpy()
            logarithm = np.log10(np.where(relative > 0, relative, np.nan))
            image = axes.imshow(np.maximum(logarithm, -decades), cmap="viridis", vmin=-decades, vmax=0)
            height, width = relative.shape
            axes.set(title=f"{title} ({height} x {width})")
            axes.set_xticks([])
            axes.set_yticks([])
        bar = figure.colorbar(image, ax=list(figure.axes), fraction=0.02, pad=0.01, label="influence, relative")
        ticks = [-power for power in range(int(decades) + 1)]
        bar.set_ticks(ticks, labels=["1" if power == 0 else f"$10^{{{power}}}$" for power in ticks])
        return _save(figure, path)


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
    with _style():
        height = 1.2 + 0.35 * len(rows) if panels == [_bar_panel] else 5.0
        figure = _figure(max(7.2, 5.8 * len(panels)), height)
        looks = _contender_looks(rows)
        figure.supxlabel(stamp, x=0.01, ha="left", fontsize=6.5, color=GREY)
        all_axes = list(figure.subplots(1, len(panels), squeeze=False).flat)
        # labels are placed where the others leave room, so the panel that has them comes last
        for axes, panel in reversed(list(zip(all_axes, panels, strict=True))):
            panel(axes, rows, looks)
        return _save(figure, path, metadata={"Description": stamp})


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


def _style(**changes: Any) -> Any:
    return require("matplotlib", extra="plots").rc_context({**_STYLE, **changes})


def _figure(width: float, height: float) -> "Figure":
    return require("matplotlib.figure", extra="plots").Figure(figsize=(width, height), dpi=160, layout="constrained")


def _frame(row: int, column: int) -> Any:
    patches = require("matplotlib.patches", extra="plots")
    return patches.Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="black", linewidth=1.0)


def _line(rows: Rows, name: str, *, factor: float = 1.0) -> tuple[list[float], list[float]]:
    chosen = [(row["step"], factor * row[name]) for row in rows if name in row]
    return [step for step, _ in chosen], [value for _, value in chosen]


def _accuracy_limits(values: Sequence[float]) -> tuple[float, float]:
    """Room for the curve, but not so much zoom that noise looks like progress."""
    low = min(values, default=0.0)
    return (max(0.0, low - 0.1 * (100 - low) - 2), 103.0 if max(values, default=0.0) > 80 else max(values) * 1.1 + 1)


def _spread(size: int, count: int) -> list[int]:
    """``count`` positions along a side, evenly, away from the border where there is room."""
    count = min(count, size)
    return [int((k + 0.5) * size / count) for k in range(count)]


def _save(figure: "Figure", path: Path, *, metadata: Mapping[str, str] | None = None) -> Path:
    partial = path.with_name(f".{path.name}.partial")
    try:
        figure.savefig(partial, format="png", facecolor="white", metadata=dict(metadata or {}))
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise RunFolderError(f"cannot write {path}: {error.strerror or error}") from error
    return path
