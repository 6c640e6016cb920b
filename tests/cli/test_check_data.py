"""A dataset with every fault is reported, each fault by its name."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visionmlp.cli import main


def picture(path: Path, seed: int, size: tuple[int, int] = (20, 16)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for number, name in enumerate(("train/cat/a.png", "train/cat/b.png", "train/dog/c.png", "val/cat/d.png")):
        picture(root / name, number)
    picture(root / "train/dog/large.png", 9, (60, 40))
    picture(root / "val/dog/leak.png", 0)  # the pixels of train/cat/a.png, as a dog
    picture(root / "train/cat/twin.png", 1)  # those of b.png
    (root / "train/dog/cut.png").write_bytes((root / "train/dog/c.png").read_bytes()[:200])
    (root / "train/dog/empty.jpg").touch()
    exif = Image.Exif()
    exif[274] = 77
    Image.new("RGB", (8, 8)).save(root / "train/dog/odd.png", exif=exif)
    return root


@pytest.mark.parametrize("workers", [0, 2])
def test_every_fault_is_named(data: Path, workers: int, capsys) -> None:
    assert main(["check-data", str(data), "--json", "--num-workers", str(workers)]) == 0
    report = json.loads(capsys.readouterr().out)
    train, val = report["splits"]["train"], report["splits"]["val"]
    assert (train["images"], val["images"]) == (8, 2)
    assert train["per_class"] == {"cat": 3, "dog": 3}
    assert {Path(name).name for name in train["broken"]} == {"cut.png", "empty.jpg"}
    assert [Path(name).name for name in train["notes"]] == ["odd.png"]
    assert "orientation 77" in next(iter(train["notes"].values()))
    assert train["sides"] == {"smallest": [8, 8], "median": [20, 16], "largest": [60, 40]}
    assert [[Path(name).name for name in names] for names in report["leaks"]] == [["a.png", "leak.png"]]
    assert report["contradictions"] == report["leaks"]
    assert [[Path(name).name for name in names] for names in report["duplicates"]] == [["b.png", "twin.png"]]


def test_the_report_for_people_names_the_same(data: Path, capsys) -> None:
    assert main(["check-data", str(data)]) == 0
    out = capsys.readouterr().out
    assert "train: cannot be read: 2" in out
    assert "the same pixels in training and evaluation: 1" in out
    assert "60 x 40" in out


def test_a_folder_of_classes_alone(data: Path, capsys) -> None:
    assert main(["check-data", str(data / "val"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["splits"]["images"]["images"] == 2


def test_a_dataset_that_is_not_there_is_one_line(tmp_path: Path, capsys) -> None:
    assert main(["check-data", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
