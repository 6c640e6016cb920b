"""Figures show what they are given."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from visionmlp.errors import RunFolderError
from visionmlp.report import plots
from visionmlp.report.plots import kernel_rows, router_curves, run_curves
from visionmlp.report.plots import learning_curves as curves_of
from visionmlp.tasks.classify.figures import confusion_matrix

TRAINING = [{"step": float(s), "loss": 2 / s, "lr": 0.1 / s} for s in range(1, 9)]
EVALUATION = [{"step": float(s), "loss": 3 / s, "top1": 10.0 * s} for s in (4, 8)]


def learning_curves(training: list[dict[str, float]], evaluation: list[dict[str, float]], path: Path) -> Path:
    return curves_of(training, evaluation, path, metric="top1", title="Top-1")


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


@pytest.mark.filterwarnings("error::UserWarning", "ignore::DeprecationWarning")
def test_names_that_the_font_lacks_are_no_warning(tmp_path: Path) -> None:
    drawn = curves_of(TRAINING, EVALUATION, tmp_path / "a.png", metric="top1", title="\u6b63\u7b54\u7387")
    assert pixels(drawn).size


def test_learning_curves_follow_the_rows(tmp_path: Path) -> None:
    full = pixels(learning_curves(TRAINING, EVALUATION, tmp_path / "a.png"))
    assert full.shape[1] > full.shape[0] > 300
    fewer = pixels(learning_curves(TRAINING, EVALUATION[:1], tmp_path / "b.png"))
    third = full.shape[1] // 3
    assert (full[:, third : 2 * third] != fewer[:, third : 2 * third]).any()  # accuracy
    learning_curves([], EVALUATION, tmp_path / "c.png")  # a run shorter than an interval
    nothing = {"step": 6.0, "loss": math.nan, "top1": math.nan}
    with_nan = pixels(learning_curves(TRAINING, [EVALUATION[0], nothing, EVALUATION[1]], tmp_path / "d.png"))
    assert np.array_equal(full, with_nan)
    learning_curves(TRAINING, [nothing], tmp_path / "e.png")


def test_router_curves_show_every_load(tmp_path: Path) -> None:
    def rows(load: float) -> list[dict[str, float]]:
        loads = {"load0": load, "load1": 1 - load, "overflow": 0.1, "entropy": 0.9}
        routers = {f"block{b}.{k}.{n}": v for b in (2, 3) for k in ("token", "channel") for n, v in loads.items()}
        return [{"step": float(s), "balance": 0.01 / s, **routers} for s in range(1, 9)]

    even = pixels(router_curves(rows(0.5), tmp_path / "a.png"))
    uneven = pixels(router_curves(rows(0.8), tmp_path / "b.png"))
    changed = (even != uneven).any(2)
    height, width = changed.shape
    for panel in range(4):
        assert changed[: height // 2, panel * width // 4 : (panel + 1) * width // 4].sum() > 100
    assert not changed[height * 6 // 10 :].any()  # overflow, entropy and balance are the same
    alone = [{name: value for name, value in row.items() if "block3" not in name} for row in rows(0.5)]
    assert pixels(router_curves(alone, tmp_path / "c.png")).shape == even.shape  # one line of panels


def test_confusion_shades_by_share_of_the_row(tmp_path: Path) -> None:
    sharp = pixels(confusion_matrix(torch.eye(3).long() * 5, ["a", "b", "c"], tmp_path / "a.png"))
    scaled = pixels(confusion_matrix(torch.eye(3).long() * 5, ["a", "b", "c"], tmp_path / "b.png"))
    mixed = pixels(confusion_matrix(torch.ones(3, 3).long(), ["a", "b", "c"], tmp_path / "c.png"))
    dark = [(image.sum(2) < 250).mean() for image in (sharp, scaled, mixed)]
    assert dark[0] == dark[1] > 2 * dark[2]
    confusion_matrix(torch.zeros(2, 2).long(), ["a", "b"], tmp_path / "empty.png")
    confusion_matrix(torch.eye(100).long(), [str(i) for i in range(100)], tmp_path / "many.png")


def test_kernel_rows_show_the_injected_pattern(tmp_path: Path) -> None:
    grid = (4, 6)
    before = torch.randn(24, 24, generator=torch.Generator().manual_seed(0)) * 0.01
    after = before + torch.eye(24)
    image = pixels(kernel_rows(before, after, grid, tmp_path / "k.png", positions=3))
    red = (image[:, :, 0] > 80) & (image[:, :, 1] < 60) & (image[:, :, 2] < 90)
    width = image.shape[1]
    scale = int(width * 0.92)  # the colour bar is behind it
    left, right = red[:, : width * 46 // 100].sum(), red[:, width * 46 // 100 : scale].sum()
    assert right > 1000
    assert left < right / 20


def test_a_figure_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"cannot write .*curves.png: No such file or directory"):
        learning_curves(TRAINING, EVALUATION, tmp_path / "missing" / "curves.png")


def test_one_evaluation_is_a_dot_that_shows(tmp_path: Path) -> None:
    row, nothing = [{"step": 4.0, "knn": 50.0}], [{"step": 4.0, "knn": math.nan}]
    for name, rows in (("one", row), ("none", nothing)):
        run_curves({"a": (TRAINING, rows), "b": (TRAINING, nothing)}, tmp_path / f"{name}.png", metric="knn")
    one, none = pixels(tmp_path / "one.png"), pixels(tmp_path / "none.png")
    blue = (np.abs(one - [0, 0x72, 0xB2]).max(2) < 8)[: one.shape[0] * 8 // 10, one.shape[1] // 2 :]
    assert blue.sum() > 30
    assert one.shape == none.shape


def test_a_legend_names_what_is_drawn_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    legends: list[list[str]] = []
    monkeypatch.setattr(
        plots, "save", lambda figure, path: legends.append([t.get_text() for t in _texts(figure.axes[0])]) or path
    )
    learning_curves(TRAINING, EVALUATION, tmp_path / "a.png")
    learning_curves(TRAINING, [{"step": 4.0, "top1": 3.0}], tmp_path / "b.png")
    assert legends == [["training", "held out"], []]


def _texts(axes: Any) -> list[Any]:
    legend = axes.get_legend()
    return [] if legend is None else legend.get_texts()


@pytest.mark.parametrize("values", [[100.0], [0.0, 100.0], [97.0, 99.5], [1.0, 2.0]])
def test_a_percent_axis_holds_its_values_and_no_tick_beyond_100(values: list[float]) -> None:
    low, high = plots._percent_limits(values)
    assert low <= min(values) <= max(values) < high <= 104
    assert high - 100 < 0.05 * (high - low)
