"""Models on two datasets: accuracy on one against accuracy on the other, from the files that ``visionmlp eval`` writes.

ImageNet-V2 against ImageNet's validation images shows how far models fit the latter: ResMLP, Fig. 4.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from visionmlp.errors import InvalidConfig
from visionmlp.files import beside
from visionmlp.measure.catalog import read_catalog
from visionmlp.report.plots import GREY, RUN_COLOURS, new_figure, save, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TITLES = {"top1": "top-1 (%)", "top5": "top-5 (%)", "real": "ReaL (%)", "loss": "loss", "ece": "ECE (%)"}
_IDENTITY = ("model", "form", "weights", "crops", "crop_pct")
"""What makes two scores those of the same model, evaluated in the same way."""
_NEEDED = (*_IDENTITY, "data", "split")
_FITTED = 3
"""Points of a line; two would always lie on it."""
_MARKERS = "os^Dvp"
_LABELLED, _LABEL_POINTS = 40, 8.5


class Line(NamedTuple):
    """A least-squares fit."""

    slope: float
    intercept: float

    def __str__(self) -> str:
        return f"y = {self.slope:.3f} x {'-' if self.intercept < 0 else '+'} {abs(self.intercept):.2f}"


class Point(NamedTuple):
    """A model on both datasets."""

    label: str
    family: str
    x: float
    y: float


class DatasetScatter(NamedTuple):
    """What the figure shows."""

    x_name: str
    y_name: str
    metric: str
    points: list[Point]
    lines: dict[str, Line]
    """By family, where it has three models or more; of several families also ``all models``."""


def write_dataset_scatter(
    files: Sequence[Path], output: Path, *, metric: str | None = None, x_data: str | None = None, force: bool = False
) -> DatasetScatter:
    """Draw a metric on one dataset against the same on the other, with linear fits.

    Args:
        files: ``eval.json`` of ``visionmlp eval --output``, each model on both datasets.
        output: PNG file.
        metric: ``top1`` unless given.
        x_data: dataset of the x axis, as in the files; default: that of the first file.
        force: replace ``output`` if it exists.

    Raises:
        InvalidConfig: for files that are no scores, for other than two datasets, and for a model without a partner.
        OutputError: if the figure cannot be written.
        MissingExtra: if matplotlib is not installed.
    """
    with beside(output, force=force, suffix=".png") as partial:
        scatter = read_dataset_scatter(files, metric=metric, x_data=x_data)
        _draw(scatter, partial)
    return scatter


def read_dataset_scatter(
    files: Sequence[Path], *, metric: str | None = None, x_data: str | None = None
) -> DatasetScatter:
    """The points and lines of `write_dataset_scatter`."""
    metric = metric or "top1"
    records = [_read(file, metric) for file in files]
    datasets = list(dict.fromkeys(_dataset(record) for record in records))
    if len(datasets) != 2:
        names = ", ".join(map(_full, datasets))
        raise InvalidConfig(
            f"scores on two datasets can be drawn against each other, these are on {len(datasets)}: {names}"
        )
    x, y = datasets
    if x_data is not None:
        chosen = [dataset for dataset in datasets if x_data.rstrip("/") in (dataset[0], _full(dataset))]
        if len(chosen) != 1:
            raise InvalidConfig(f"no dataset {x_data!r}; these files have {' and '.join(map(_full, datasets))}")
        x, y = chosen[0], next(dataset for dataset in datasets if dataset != chosen[0])
    scores: dict[tuple[Any, ...], dict[tuple[str, str], float]] = {}
    for file, record in zip(files, records, strict=True):
        of_model = scores.setdefault(tuple(record[name] for name in _IDENTITY), {})
        if _dataset(record) in of_model:
            raise InvalidConfig(
                f"{file} is a second score of {record['model']} on {_full(_dataset(record))}; leave one out"
            )
        of_model[_dataset(record)] = record[metric]
    for identity, of_model in scores.items():
        if missing := [dataset for dataset in datasets if dataset not in of_model]:
            model, form, weights, crops, crop_pct = identity
            raise InvalidConfig(
                f"{model} ({form} form, {weights}, {crops} crop{'s' * (crops != 1)}, crop_pct {crop_pct}) has no score "
                f"on {_full(missing[0])}; evaluate it there in the same way, or leave it out"
            )
    points = _points(scores, x, y)
    x_name, y_name = _axis_names(x, y)
    return DatasetScatter(x_name, y_name, metric, points, _lines(points))


def _read(file: Path, metric: str) -> dict[str, Any]:
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidConfig(f"cannot read {file}: {error.strerror or error}") from error
    except ValueError as error:
        raise InvalidConfig(f"{file} is not JSON; give the eval.json of visionmlp eval --output") from error
    if not isinstance(record, dict) or not all(name in record for name in _NEEDED):
        raise InvalidConfig(f"{file} holds no scores of a classifier; give the eval.json of visionmlp eval --output")
    there = [name for name in _TITLES if isinstance(record.get(name), float | int)]
    if metric not in there:
        raise InvalidConfig(f"{file} has no metric {metric!r}; there are {', '.join(there) or 'none'}")
    return record


def _dataset(record: dict[str, Any]) -> tuple[str, str]:
    return str(record["data"]).rstrip("/"), str(record["split"])


def _full(dataset: tuple[str, str]) -> str:
    return f"{dataset[0]} ({dataset[1]})"


def _axis_names(x: tuple[str, str], y: tuple[str, str]) -> tuple[str, str]:
    """The last two folders, or more where these are the same."""
    short = tuple("/".join(Path(dataset[0]).parts[-2:]).lstrip("/") for dataset in (x, y))
    return (short[0], short[1]) if short[0] != short[1] else (_full(x), _full(y))


def _points(
    scores: dict[tuple[Any, ...], dict[tuple[str, str], float]], x: tuple[str, str], y: tuple[str, str]
) -> list[Point]:
    catalog = read_catalog()
    models = [identity[0] for identity in scores]
    points = []
    for (model, form, weights, *_), of_model in scores.items():
        # of several with one name, what was loaded tells them apart
        label = model if models.count(model) == 1 else f"{model} ({form}, {'/'.join(Path(weights).parts[-2:])})"
        family = catalog[model].family if model in catalog else "others"
        points.append(Point(label, family, of_model[x], of_model[y]))
    return points


def _lines(points: Sequence[Point]) -> dict[str, Line]:
    families = dict.fromkeys(point.family for point in points)
    groups = {family: [point for point in points if point.family == family] for family in families}
    if len(groups) > 1:
        groups["all models"] = list(points)
    return {name: line for name, group in groups.items() if (line := fitted(group)) is not None}


def fitted(points: Sequence[Point]) -> Line | None:
    """The line of least squares in y through three points or more; None for fewer, or if all have the same x."""
    x, y = np.array([point.x for point in points]), np.array([point.y for point in points])
    if len(points) < _FITTED or np.ptp(x) == 0:
        return None
    slope, intercept = np.polyfit(x, y, 1)
    return Line(float(slope), float(intercept))


def _draw(scatter: DatasetScatter, path: Path) -> None:
    families = list(dict.fromkeys(point.family for point in scatter.points))
    with style():
        figure = new_figure(6.4, 5.2)
        axes: Axes = figure.subplots()
        for index, family in enumerate(families):
            points = [point for point in scatter.points if point.family == family]
            colour = RUN_COLOURS[index % len(RUN_COLOURS)]
            line = scatter.lines.get(family)
            axes.plot(
                [point.x for point in points],
                [point.y for point in points],
                linestyle="",
                marker=_MARKERS[index % len(_MARKERS)],
                color=colour,
                label=family if line is None else f"{family}: {line}",
            )
            if line is not None:
                _draw_line(axes, line, points, color=colour)
        if (line := scatter.lines.get("all models")) is not None:
            _draw_line(axes, line, scatter.points, color=GREY, linestyle="--", label=f"all models: {line}")
        title = _TITLES[scatter.metric]
        axes.set(xlabel=f"{title} on {scatter.x_name}", ylabel=f"{title} on {scatter.y_name}")
        axes.set_title(f"{len(scatter.points)} models on two datasets")
        axes.margins(0.22, 0.1)
        if len(scatter.points) <= _LABELLED:
            figure.draw_without_rendering()  # where points are is known behind the layout
            _label(axes, scatter.points, scatter.lines)
        figure.legend(loc="outside lower center", fontsize=8, ncols=1 if len(families) < 4 else 2)
        save(figure, path)


def _draw_line(axes: "Axes", line: Line, points: Sequence[Point], **look: Any) -> None:
    ends = [pick(point.x for point in points) for pick in (min, max)]
    axes.plot(ends, [line.slope * x + line.intercept for x in ends], **{"linewidth": 1.2, "zorder": 1, **look})


def _label(axes: "Axes", points: Sequence[Point], lines: dict[str, Line]) -> None:
    """Names, above the line to the left and below it to the right, and none on another."""
    line = lines.get("all models") or next(iter(lines.values()), None)
    upwards = sorted(points, key=lambda point: point.y)
    left = [p for p in upwards if line is not None and p.y >= line.slope * p.x + line.intercept]
    right = [p for p in upwards if p not in left]
    dots = 72 / axes.figure.dpi
    for side, align, shift in ((left, "right", -5), (right, "left", 5)):
        lowest = -math.inf
        for point in side:
            height = float(axes.transData.transform((point.x, point.y))[1]) * dots
            place = max(height, lowest + _LABEL_POINTS)
            lowest = place
            axes.annotate(
                point.label,
                (point.x, point.y),
                xytext=(shift, place - height),
                textcoords="offset points",
                ha=align,
                va="center",
                fontsize=7,
                parse_math=False,
            )
