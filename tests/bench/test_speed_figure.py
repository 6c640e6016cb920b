"""The figure of a benchmark shows what its rows hold."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from visionmlp.bench.figures import _speed_panels, speed_figure


def row(**changes: Any) -> dict[str, Any]:
    values = {
        "model": "resmlp_s12",
        "family": "ResMLP",
        "form": "deploy",
        "task": "inference",
        "runtime": "eager",
        "dtype": "float32",
        "height": 224,
        "width": 224,
        "batch_size": 1,
        "images_per_second": 20.0,
        "paper_top1": None,
    }
    return {**values, **changes}


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


@pytest.mark.parametrize(
    ("rows", "panels"),
    [
        ([row(), row(model="b")], ["_bar_panel"]),
        ([row(), row(batch_size=8)], ["_batch_panel"]),
        ([row(), row(height=448, width=448)], ["_size_panel"]),
        ([row(paper_top1=76.6), row(model="b", family="B", paper_top1=80.0)], ["_accuracy_panel"]),
        ([row(paper_top1=76.6), row(paper_top1=76.6, runtime="openvino")], ["_bar_panel"]),
        # a peer of another size is no sweep
        ([row(), row(model="b", form="peer", height=300, width=300)], ["_bar_panel"]),
        (
            [row(paper_top1=76.6, batch_size=b) for b in (1, 8)] + [row(model="b", family="B", paper_top1=80.0)],
            ["_accuracy_panel", "_batch_panel"],
        ),
    ],
)
def test_panels_are_those_that_the_rows_can_fill(rows, panels, tmp_path: Path) -> None:
    assert [panel.__name__ for panel in _speed_panels(rows)] == panels
    assert pixels(speed_figure(rows, tmp_path / "a.png", stamp="machine")).shape[0] > 200


def test_figure_carries_the_machine_as_text_and_footer(tmp_path: Path) -> None:
    rows = [row(batch_size=b, images_per_second=10.0 * b) for b in (1, 2)]
    with Image.open(speed_figure(rows, tmp_path / "a.png", stamp="AMD, 2 threads")) as image:
        assert image.info["Description"] == "AMD, 2 threads"
    other = speed_figure(rows, tmp_path / "b.png", stamp="Another machine")
    changed = (pixels(tmp_path / "a.png") != pixels(other)).any(2)
    assert changed[-60:].any()
    assert not changed[: len(changed) // 2].any()


def test_curves_follow_the_rows(tmp_path: Path) -> None:
    def figure(speed: float, name: str, **changes: Any) -> np.ndarray:
        rows = [row(), row(batch_size=2, images_per_second=speed, **changes), row(model="b", family="B", batch_size=2)]
        return pixels(speed_figure(rows, tmp_path / name, stamp=""))

    assert (figure(30.0, "a.png") != figure(25.0, "b.png")).any()
    assert (figure(30.0, "a.png") != figure(30.0, "c.png", runtime="openvino")).any()


def test_training_steps_are_not_drawn_as_inference(tmp_path: Path) -> None:
    rows = [row(), row(batch_size=2, images_per_second=30.0)]
    steps = [row(task="training step", batch_size=b, images_per_second=5.0) for b in (1, 2)]
    with_steps = pixels(speed_figure(rows + steps, tmp_path / "a.png", stamp=""))
    assert (with_steps == pixels(speed_figure(rows, tmp_path / "b.png", stamp=""))).all()


def test_the_fastest_way_at_the_largest_batch_stands_for_a_model(tmp_path: Path) -> None:
    base = [
        row(paper_top1=76.6, images_per_second=20.0),
        row(model="b", family="B", paper_top1=80.0, images_per_second=30.0),
    ]
    slower = row(paper_top1=76.6, images_per_second=10.0, form="training")
    faster = row(paper_top1=76.6, images_per_second=25.0, form="training")

    def accuracy(rows: list[dict[str, Any]], name: str) -> np.ndarray:
        return pixels(speed_figure(rows, tmp_path / name, stamp=""))

    assert (accuracy([*base, slower], "a.png") == accuracy(base, "b.png")).all()
    assert (accuracy([*base, faster], "c.png") != accuracy(base, "d.png")).any()
