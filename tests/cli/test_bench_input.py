"""``bench --data`` through ``main([...])``."""

import csv
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.tasks.detect.scenes import make_scenes
from tests.tasks.segment.trees import camvid_tree
from visionmlp.cli import main


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("input") / "photos"
    for split, count in (("train", 9), ("val", 1)):
        for name in ("cat", "dog"):
            for number in range(count):
                path = root / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
    return root


def words(photos: Path, *more: str) -> list[str]:
    return ["bench", "resmlp_test", "--data", str(photos), "--batch-size", "4", "--steps", "5", *more]


def test_a_table_a_file_and_json(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    output = tmp_path / "input.csv"
    options = ("--accelerator", "cpu", "--auto-augment", "rand-m5-inc1", "--num-workers")
    assert main(words(photos, *options, "0", "1", "--csv", str(output), "--accumulate", "2")) == 0
    captured = capsys.readouterr()
    assert "waiting %" in captured.out
    assert "resmlp_test, 32x32, batch 2" in captured.out
    assert captured.err == f"wrote {output}\n"
    rows = list(csv.DictReader(output.open()))
    assert [(row["num_workers"], row["batch_size"], row["steps"]) for row in rows] == [("0", "2", "5"), ("1", "2", "5")]
    for row in rows:
        assert 0 <= float(row["waiting"]) < 1
        for name in ("loader", "step", "training"):
            assert float(row[f"{name}_images_per_second"]) > 0
    assert float(rows[0]["waiting"]) > 0
    assert main(words(photos, *options, "0", "--csv", str(output))) == 2
    assert "exists; give another" in capsys.readouterr().err
    assert main(words(photos, *options, "0", "--json")) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["model"], row["data"], row["num_workers"]) == ("resmlp_test", str(photos), 0)
    assert [path.name for path in tmp_path.iterdir()] == ["input.csv"]  # no run


@pytest.mark.parametrize("task", ["segment", "detect"])
def test_dense_tasks(task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if task == "segment":
        data = camvid_tree(tmp_path / "data", train=4, val=1)
        options = ["--head", "semantic_fpn", "--head-channels", "8", "--neck-channels", "8", "--crop-size", "32", "40"]
    else:
        data = tmp_path / "data"
        make_scenes(data, "train", 5, seed=0)
        make_scenes(data, "val", 3, seed=1)
        options = ["--fpn-channels", "8", "--min-size", "32", "40", "--max-size", "64"]
    common = [
        "bench",
        "cyclemlp_test",
        "--data",
        str(data),
        "--task",
        task,
        "--batch-size",
        "2",
        "--accelerator",
        "cpu",
    ]
    assert main([*common, *options, "--accelerator", "cpu", "--steps", "5", "--num-workers", "0", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["height"], row["width"]) == ((32, 40) if task == "segment" else (40, 64))
    assert min(row[f"{name}_images_per_second"] for name in ("loader", "step", "training")) > 0


def test_tasks_without_it_say_so(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(photos, "--task", "dino")) == 2
    assert "does not measure task dino" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--steps", "4"), "steps must be at least 5"),
        (("--num-workers", "-1"), "num-workers needs one or more numbers, none of them negative"),
        (("--form", "deploy"), "unknown option --form"),
        (("--batch-size", "64"), "a batch of 64 images is larger than the dataset of 18"),
        (("--crop", "wide"), "--crop takes resized or pad or center"),
        (("--auto-augment", "nonsense"), "auto_augment"),
    ],
)
def test_wrong_words_are_one_line(
    photos: Path, more: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(photos, "--accelerator", "cpu", *more)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_help_is_about_what_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "resmlp_s12", "--data", "photos", "--help"]) == 0
    text = capsys.readouterr().out
    for part in ("--auto-augment", "--num-workers", "--steps", "waiting %", "--img-size"):
        assert part in text
    for part in ("--runtime", "--output", "--lr ", "--save-every", "--devices"):
        assert part not in text
    assert main(["bench", "--help"]) == 0
    assert "bench MODEL --data FOLDER --help" in " ".join(capsys.readouterr().out.split())
