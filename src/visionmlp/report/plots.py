"""Figures of all tasks: curves, routers, matrix rows, influence; how a figure looks. Only this file imports matplotlib.

Figures are drawn without pyplot, so no display and no global state is needed. Colours are told apart without colour
vision: Okabe and Ito's blue and vermilion for lines, one hue by lightness for counts, blue-white-red for signs.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from visionmlp.errors import RunFolderError, require
from visionmlp.files import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, VERMILION, GREY = "#0072B2", "#D55E00", "#666666"
RUN_COLOURS = (BLUE, VERMILION, "#009E73", "#CC79A7", "#000000", "#E69F00")
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

Rows = Sequence[Mapping[str, float]]


def learning_curves(training: Rows, evaluation: Rows, path: Path, *, metric: str, title: str) -> Path:
    """Loss, the metric and learning rate over steps.

    Args:
        training: rows with ``step``, ``loss`` and ``lr``.
        evaluation: rows with ``step``, the metric, and ``loss`` where there is one. Values that are no numbers are
            left out.
        path: PNG file to write.
        metric: column of the evaluations in percent, of which the largest is the best.
        title: what it is called.

    Raises:
        MissingExtra: if matplotlib is not installed.
        RunFolderError: if the file cannot be written.
    """
    with style():
        figure = new_figure(9.6, 2.9)
        loss, quality, rate = figure.subplots(1, 3)
        _draw(loss, curve(training, "loss"), color=BLUE, label="training")
        if (held_out := curve(evaluation, "loss"))[0]:  # some tasks have no loss there
            _draw(loss, held_out, color=VERMILION, linestyle="--", label="held out")
            loss.legend()
        loss.set(title="Loss" if held_out[0] else "Training loss", xlabel="step", ylim=(0, None))
        steps, values = curve(evaluation, metric)
        _draw(quality, (steps, values), color=VERMILION)
        quality.set(title=title, xlabel="step", ylim=_percent_limits(values))
        if values:
            best = int(np.argmax(values))
            quality.plot(steps[best], values[best], "o", color=VERMILION, markersize=5)
            quality.annotate(
                f"{values[best]:.2f}",
                (steps[best], values[best]),
                xytext=(0, -8),
                textcoords="offset points",
                ha="right" if best > len(values) / 2 else "left",
                va="top",
                color=VERMILION,
                fontweight="bold",
            )
        _draw(rate, curve(training, "lr"), color=GREY)
        rate.set(title="Learning rate", xlabel="step", ylim=(0, None))
        rate.yaxis.set_major_formatter("{x:g}")
        return save(figure, path)


def column_curves(rows: Rows, titles: Mapping[str, str], path: Path) -> Path:
    """Columns of a table over steps, side by side.

    Args:
        rows: with ``step`` and the columns.
        titles: of the columns, by name.
        path: PNG file to write.

    Raises:
        MissingExtra: if matplotlib is not installed.
        RunFolderError: if the file cannot be written.
    """
    with style():
        figure = new_figure(9.6, 2.9)
        for axes, (name, title) in zip(np.atleast_1d(figure.subplots(1, len(titles))), titles.items(), strict=True):
            _draw(axes, curve(rows, name), color=BLUE)
            axes.set(title=title, xlabel="step", ylim=(0, None))
        return save(figure, path)


def run_curves(runs: Mapping[str, tuple[Rows, Rows]], path: Path, *, metric: str) -> Path:
    """Training loss and a metric of several runs over steps.

    Args:
        runs: rows of ``train.csv`` and ``metrics.csv`` by name; at most twelve.
        path: PNG file to write.
        metric: column of the evaluations.

    Raises:
        MissingExtra: if matplotlib is not installed.
        RunFolderError: if the file cannot be written.
    """
    with style():
        longest = max(map(len, runs))
        columns = 4 if longest < 24 else 2 if longest < 60 else 1
        figure = new_figure(9.6, 3.4 + 0.17 * -(-len(runs) // columns))
        loss, quality = figure.subplots(1, 2)
        for index, (name, (training, evaluations)) in enumerate(runs.items()):
            look = {"color": RUN_COLOURS[index % 6], "linestyle": ("-", "--")[index // 6 % 2]}
            printed = _plain(name)
            _draw(loss, curve(training, "loss"), **look, linewidth=1.1)
            _draw(quality, curve(evaluations, metric), **look, label=printed)
        loss.set(title="Training loss", xlabel="step", ylim=(0, None))
        quality.set(title=metric, xlabel="step")
        # names may be long, and curves may be anywhere
        figure.legend(fontsize=7, ncols=columns, loc="outside lower center")
        return save(figure, path)


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
    with style():
        figure = new_figure(9.6, 2.1 * lines + 2.5)
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
            overflow.plot(*curve(rows, f"{router}.overflow", factor=100), **look)
            entropy.plot(*curve(rows, f"{router}.entropy"), **look)
        overflow.set(title="Choices without a place (%)", xlabel="step", ylim=(0, None))
        entropy.set(title="Entropy of the gates (1: undecided)", xlabel="step", ylim=(0, 1.03))
        entropy.legend(fontsize=7, ncols=2 if len(routers) > 4 else 1)
        balance.plot(*curve(rows, "balance"), color=GREY)
        balance.set(title="Balance loss, as added", xlabel="step", ylim=(0, None))
        balance.ticklabel_format(axis="y", scilimits=(-2, 4))
        return save(figure, path)


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
    loads = [curve(rows, name, factor=100) for name in rows[0] if name.startswith(f"{router}.load")]
    even = 100 / len(loads)
    for steps, shares in loads:  # experts are alike, and so are their lines
        axes.plot(steps, shares, color=colour, linewidth=0.9, alpha=0.65)
    axes.axhline(even, color="black", linestyle=":", linewidth=1.2)
    largest = max(2 * even, *(share for _, shares in loads for share in shares))
    axes.set(title=router, ylim=(0, min(100, 1.05 * largest)))
    text = f"{len(loads)} experts; dotted: even"
    axes.text(0.98, 0.97, text, ha="right", va="top", fontsize=7, color=GREY, transform=axes.transAxes)


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
    with style(**{"axes.grid": False, "axes.spines.top": True, "axes.spines.right": True, "axes.linewidth": 0.5}):
        figure = new_figure(9.6, 4.4 * len(rows) / len(columns) * height / width + 0.2)
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
        return save(figure, path)


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
    with style(**{"axes.grid": False, "axes.spines.top": True, "axes.spines.right": True}):
        figure = new_figure(9.6, 2.75)
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
        return save(figure, path)


def attention_maps(panels: Mapping[str, Tensor], path: Path, *, rows: Sequence[str], columns: Sequence[str]) -> Path:
    """What each row takes from each column, side by side, from 0 to 1.

    Args:
        panels: maps (rows, columns) by title.
        path: PNG file to write.
        rows: names, from above.
        columns: names, from the left.

    Raises:
        MissingExtra: if matplotlib is not installed.
        RunFolderError: if the file cannot be written.
    """
    image: Any = None
    with style(**{"axes.grid": False, "axes.spines.top": True, "axes.spines.right": True}):
        figure = new_figure(1.5 + len(panels) * (1.3 + 0.17 * len(columns)), 1.6 + 0.17 * len(rows))
        all_axes = figure.subplots(1, len(panels), squeeze=False).flat
        for axes, (title, values) in zip(all_axes, panels.items(), strict=True):
            image = axes.imshow(values.detach().double().cpu().numpy(), cmap="viridis", vmin=0, vmax=1)
            axes.set(title=title)
            axes.set_xticks(range(len(columns)), [_plain(name) for name in columns], rotation=90, fontsize=7)
            axes.set_yticks(range(len(rows)), [_plain(name) for name in rows], fontsize=7)
        figure.colorbar(image, ax=list(figure.axes), fraction=0.02, pad=0.01, label="share")
        return save(figure, path)


def style(**changes: Any) -> Any:
    """The look of all figures, as a context; ``changes`` are matplotlib's settings."""
    return require("matplotlib", extra="plots").rc_context({**_STYLE, **changes})


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, in inches."""
    return require("matplotlib.figure", extra="plots").Figure(figsize=(width, height), dpi=160, layout="constrained")


def _plain(name: str) -> str:
    """A name that matplotlib neither refuses nor takes for a formula."""
    return name.encode(errors="backslashreplace").decode().replace("$", r"\$")


def _frame(row: int, column: int) -> Any:
    patches = require("matplotlib.patches", extra="plots")
    return patches.Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="black", linewidth=1.0)


def curve(rows: Rows, name: str, *, factor: float = 1.0) -> tuple[list[float], list[float]]:
    """Steps and values of a column, without what is missing or no finite number."""
    chosen = [(row["step"], factor * row[name]) for row in rows if math.isfinite(row.get(name, math.nan))]
    return [step for step, _ in chosen], [value for _, value in chosen]


def _draw(axes: "Axes", points: tuple[list[float], list[float]], **look: Any) -> None:
    """A line, or a dot where there is one point only, which a line would not show."""
    axes.plot(*points, marker="o" if len(points[0]) == 1 else "", **look)


def _percent_limits(values: Sequence[float]) -> tuple[float, float]:
    """Room for the curve, but not so much zoom that noise looks like progress."""
    low, high = min(values, default=0.0), max(values, default=100.0)
    bottom = max(0.0, low - 0.1 * (100 - low) - 2)
    return bottom, 100 + 0.04 * (100 - bottom) if high > 80 else high * 1.1 + 1  # no tick beyond 100


def _spread(size: int, count: int) -> list[int]:
    """``count`` positions along a side, evenly, away from the border where there is room."""
    count = min(count, size)
    return [int((k + 0.5) * size / count) for k in range(count)]


def save(figure: "Figure", path: Path, *, metadata: Mapping[str, str] | None = None) -> Path:
    """Write a figure as PNG, whole or not at all.

    Raises:
        RunFolderError: if it cannot be written.
    """
    with whole_file(path, RunFolderError) as partial, warnings.catch_warnings():
        # names in scripts that matplotlib's font lacks are boxes here, and whole on the page
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from", category=UserWarning)
        figure.savefig(partial, format="png", facecolor="white", metadata=dict(metadata or {}))
    return path
