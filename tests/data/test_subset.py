"""A part of a dataset: even over the classes, the same every time, and noticed when a run is resumed."""

import json
from pathlib import Path

import pytest
import yaml

from tests.data.test_sources import brightest, write_images
from visionmlp.cli import main
from visionmlp.data.sources import open_training_data
from visionmlp.errors import InvalidConfig
from visionmlp.tasks.classify.config import ClassifyConfig


def taken(root: Path, most: int | None) -> list[str]:
    source, _ = open_training_data(str(root), max_images=most)
    return ["/".join(Path(source.name(index)).parts[-2:]) for index in range(len(source))]


def test_classes_share_evenly_and_in_order(tmp_path: Path) -> None:
    write_images(tmp_path, {"train/a": 4, "train/b": 1, "train/c": 3, "val/b": 2})
    everything = taken(tmp_path, None)
    assert taken(tmp_path, 100) == everything
    assert taken(tmp_path, 2) == ["a/000.png", "b/000.png"]
    assert taken(tmp_path, 4) == ["a/000.png", "a/001.png", "b/000.png", "c/000.png"]
    assert taken(tmp_path, 6) == ["a/000.png", "a/001.png", "a/002.png", "b/000.png", "c/000.png", "c/001.png"]
    for most in range(1, 8):
        assert set(taken(tmp_path, most)) < set(taken(tmp_path, most + 1))


def test_labels_pixels_and_names_belong_together(tmp_path: Path) -> None:
    write_images(tmp_path, {"train/a": 3, "train/b": 3, "val/a": 3, "val/b": 5})
    train, evaluation = open_training_data(str(tmp_path), max_images=3)
    assert [train.label(index) for index in range(3)] == [0, 0, 1]
    assert [brightest(train, index) for index in range(3)] == [1, 2, 4]
    assert [brightest(evaluation, index) for index in range(3)] == [7, 8, 10]
    assert train.class_names == evaluation.class_names == ["a", "b"]
    summary, whole = train.summary(), open_training_data(str(tmp_path))[0].summary()
    assert (summary.images, summary.images_per_class, whole.images) == (3, [2, 1], 6)
    assert summary.digest != whole.digest
    assert open_training_data(str(tmp_path), max_images=9)[0].summary() == whole


def test_every_kind_of_dataset_takes_part() -> None:
    train, evaluation = open_training_data("sklearn/digits", max_images=25)
    assert (len(train), len(evaluation)) == (25, 25)
    assert set(train.summary().images_per_class) == {2, 3}


def test_a_run_writes_it_down_and_resumes_only_with_it(tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    words = ["train", "resmlp_test", "--data", "sklearn/digits", "--batch-size", "4", "--epochs", "2"]
    words += ["--num-workers", "0", "--output", str(run), "--max-images", "20"]
    assert main(words) == 0
    assert yaml.safe_load((run / "config.yaml").read_text())["max_images"] == 20
    data = json.loads((run / "data.json").read_text())
    assert [data[part]["images"] for part in ("training", "evaluation")] == [20, 20]
    assert len((run / "train.csv").read_text().splitlines()) > 1
    assert main(["train", "--resume", "--output", str(run)]) == 0
    capsys.readouterr()
    assert main(["train", "--resume", "--output", str(run), "--max-images", "30"]) == 2
    assert "was started with max_images = 20, not 30" in capsys.readouterr().err


def test_a_wrong_number_is_named() -> None:
    with pytest.raises(InvalidConfig, match="max_images must be at least 1, or left out, got 0"):
        ClassifyConfig(model="resmlp_test", data="d", output=Path("o"), max_images=0)
