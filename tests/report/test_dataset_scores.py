"""Models on two datasets: pairs, lines, and what cannot be drawn."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from visionmlp.cli import main
from visionmlp.report.dataset_scores import Point, fitted, read_dataset_scatter

VAL, V2 = "/data/imagenet/val", "/data/imagenetv2/"
SCORES = {
    "resmlp_s12": (76.6, 64.4),
    "resmlp_s24": (79.4, 67.9),
    "resmlp_b24_p8": (81.0, 69.0),
    "cyclemlp_b2": (81.6, 70.6),
    "cyclemlp_b3": (82.4, 71.9),
}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write_one(model: str, data: str, top1: float | None, **changes: Any) -> Path:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.json"
        record = {"model": model, "form": "training", "weights": f"{model}.pth", "data": data, "split": "validation"}
        path.write_text(json.dumps({**record, "crops": 1, "crop_pct": 0.9, "top1": top1, **changes}))
        return path

    return write_one


@pytest.fixture
def files(write: Callable[..., Path]) -> list[Path]:
    return [write(model, data, pair[i]) for i, data in enumerate((VAL, V2)) for model, pair in SCORES.items()]


def test_each_model_is_paired_with_itself_and_lines_are_least_squares(files: list[Path]) -> None:
    shuffled = [files[0], *np.random.default_rng(0).permutation(np.array(files[1:], dtype=object))]
    scatter = read_dataset_scatter(shuffled)
    assert (scatter.x_name, scatter.y_name) == ("imagenet/val", "data/imagenetv2")
    assert {point.label: (point.x, point.y) for point in scatter.points} == SCORES
    assert scatter.lines.keys() == {"ResMLP", "all models"}  # CycleMLP has but two
    for name, models in (("ResMLP", list(SCORES)[:3]), ("all models", list(SCORES))):
        x, y = np.array([SCORES[model] for model in models]).T
        slope, intercept = np.linalg.lstsq(np.stack([x, np.ones_like(x)], 1), y, rcond=None)[0]
        assert scatter.lines[name] == pytest.approx((slope, intercept))
    turned = read_dataset_scatter(shuffled, x_data="/data/imagenetv2")
    assert {point.label: (point.y, point.x) for point in turned.points} == SCORES
    assert fitted([Point("", "", 1.0, y) for y in (1.0, 2.0, 3.0)]) is None


def test_the_command_draws_it(files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "v2.png"
    assert main(["compare", *map(str, files), "--output", str(output)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ResMLP: y = 1.0")
    assert lines[-1] == f"wrote {output}: top1 on data/imagenetv2 against imagenet/val, 5 models"
    pixels = np.asarray(Image.open(output).convert("RGB")).reshape(-1, 3)
    for colour in ((0, 0x72, 0xB2), (0xD5, 0x5E, 0), (0x66, 0x66, 0x66)):  # two families and the line of all
        assert (pixels == colour).all(1).sum() > 50
    assert main(["compare", *map(str, files), "--output", str(output)]) == 2
    assert "exists" in capsys.readouterr().err


def test_two_checkpoints_of_one_model_are_two_points(write: Callable[..., Path]) -> None:
    files = [
        write("resmlp_s12", data, 70.0 + i, weights=f"runs/{run}/model.safetensors")
        for i, data in enumerate((VAL, V2))
        for run in ("a", "b")
    ]
    labels = [point.label for point in read_dataset_scatter(files).points]
    assert labels == [f"resmlp_s12 (training, {run}/model.safetensors)" for run in ("a", "b")]


def test_what_cannot_be_drawn_is_one_line(
    files: list[Path], write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    third, again = write("resmlp_s12", "sketch", 30.0), write("resmlp_s12", VAL, 70.0)
    ten, unscored = write("resmlp_s12", V2, 70.0, crops=10), write("resmlp_s12", V2, None, real=70.0)
    (tmp_path / "other.json").write_text('{"protocol": "knn"}')
    (tmp_path / "broken.json").write_text("{")
    for words, message in (
        (files[:5], "these are on 1: /data/imagenet/val (validation)"),
        ([*files, third], "these are on 3"),
        ([*files, again], "is a second score of resmlp_s12 on /data/imagenet/val (validation)"),
        (
            files[:-1],
            "cyclemlp_b3 (training form, cyclemlp_b3.pth, 1 crop, crop_pct 0.9) has no score on /data/imagenetv2",
        ),
        ([files[0], ten], "evaluate it there in the same way"),
        ([files[0], unscored], "has no metric 'top1'; there are real"),
        ([*files, "--metric", "ece"], "has no metric 'ece'; there are top1"),
        ([*files, "--x-data", "val"], "no dataset 'val'"),
        ([*files, tmp_path / "other.json"], "holds no scores of a classifier"),
        ([*files, tmp_path / "broken.json"], "is not JSON"),
        ([*files, tmp_path / "none.json"], "cannot read"),
        ([*files, tmp_path], "is a file of scores; give only run folders, or only such files"),
        ([tmp_path, tmp_path / "x", "--x-data", "val"], "--x-data is about eval.json"),
        ([*files, "--output", tmp_path / "v2.html"], "must end in .png"),
    ):
        assert main(["compare", *map(str, words)]) == 2
        error = capsys.readouterr().err
        assert message in error, error
        assert error.count("\n") == 1
    assert not Path("comparison.png").exists()
