"""A dataset with every fault is reported, each fault by its name."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.tasks.detect.scenes import make_scenes
from tests.tasks.segment.trees import camvid_tree
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
    assert "the same pixels in several splits: 1" in out
    assert "60 x 40" in out


def test_a_folder_of_classes_alone(data: Path, capsys) -> None:
    assert main(["check-data", str(data / "val"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["splits"]["images"]["images"] == 2


def test_a_dataset_that_is_not_there_is_one_line(tmp_path: Path, capsys) -> None:
    assert main(["check-data", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_objects_of_coco(tmp_path: Path, capsys) -> None:
    make_scenes(tmp_path, "train", 4, seed=0)
    make_scenes(tmp_path, "val", 2, seed=1)
    content = json.loads((tmp_path / "train.json").read_text())
    first, second, third = (tmp_path / image["file_name"] for image in content["images"][:3])
    second.write_bytes(first.read_bytes())
    third.write_bytes(third.read_bytes()[:60])
    assert main(["check-data", str(tmp_path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["task"] == "detect"
    train, val = report["splits"]["train.json"], report["splits"]["val.json"]
    assert (train["images"], val["images"], train["counted"]) == (4, 2, "objects")
    assert train["without_classes"] == [str(tmp_path / content["images"][3]["file_name"])]
    used = {image["id"] for image in content["images"][:2]}
    objects = [one for one in content["annotations"] if one["image_id"] in used and not one.get("iscrowd")]
    assert sum(train["per_class"].values()) == len(objects) > 0
    assert list(train["broken"]) == [str(third)]
    assert report["duplicates"] == report["contradictions"] == [[str(first), str(second)]]
    assert main(["check-data", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "the same pixels with other objects: 1" in out
    assert "train.json: images with nothing of any class: 1" in out


def test_masks(tmp_path: Path, capsys) -> None:
    camvid_tree(tmp_path, train=3, val=2)
    images = tmp_path / "train"
    mask = tmp_path / "train_labels" / "001.png"
    Image.fromarray(np.full((40, 48), 77, np.uint8)).save(mask)
    (images / "002.png").write_bytes((images / "000.png").read_bytes())
    assert main(["check-data", str(tmp_path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["task"] == "segment"
    train = report["splits"]["train"]
    labels = np.stack([np.asarray(Image.open(tmp_path / "train_labels" / f"00{number}.png")) for number in (0, 2)])
    expected = dict(zip(("sky", "road", "car"), np.bincount(labels.ravel())[:3].tolist(), strict=True))
    assert train["per_class"] == expected
    assert list(train["broken"]) == [str(mask)]
    assert "label 77" in train["broken"][str(mask)]
    assert report["contradictions"] == [[str(images / "000.png"), str(images / "002.png")]]

    (tmp_path / "meta.json").unlink()  # now nothing tells the classes, and any value is one
    assert main(["check-data", str(tmp_path), "--json", "--num-workers", "1"]) == 0
    train = json.loads(capsys.readouterr().out)["splits"]["train"]
    assert set(train["per_class"]) == {"0", "1", "2", "3", "77"}
    assert not train["broken"]
    assert main(["check-data", str(tmp_path)]) == 0
    assert f"  77: {40 * 48} pixels\n" in capsys.readouterr().out


def test_what_the_data_is_for(data: Path, tmp_path: Path, capsys) -> None:
    both = tmp_path / "both"
    make_scenes(both, "train", 1, seed=0)
    camvid_tree(both, train=1, val=1)
    assert main(["check-data", str(both)]) == 2
    assert "say which with --task" in capsys.readouterr().err
    assert main(["check-data", str(both), "--task", "segment"]) == 0
    assert "as segment takes it" in capsys.readouterr().out
    for task, words in (("detect", "no data in a layout"), ("translate", "classify, segment, detect")):
        assert main(["check-data", str(data), "--task", task]) == 2
        err = capsys.readouterr().err
        assert words in err
        assert err.count("\n") == 1


def test_classes_are_compared_by_name(tmp_path: Path, capsys) -> None:
    """Each split numbers its own."""
    for number, name in enumerate(("train/a/0.png", "train/b/1.png", "train/c/2.png", "test/b/3.png", "test/c/4.png")):
        picture(tmp_path / name, number)
    for name in ("train/c/same.png", "test/c/same.png"):
        picture(tmp_path / name, 10)
    for name in ("train/a/other.png", "test/b/other.png"):  # number 0 in both
        picture(tmp_path / name, 11)
    assert main(["check-data", str(tmp_path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [Path(names[0]).name for names in report["contradictions"]] == ["other.png"]
    assert len(report["leaks"]) == 2


def test_the_order_of_objects_says_nothing(tmp_path: Path, capsys) -> None:
    make_scenes(tmp_path, "train", 3, seed=0)
    content = json.loads((tmp_path / "train.json").read_text())
    first, second = (tmp_path / image["file_name"] for image in content["images"][:2])
    second.write_bytes(first.read_bytes())
    of_first = [one for one in content["annotations"] if one["image_id"] == 100]
    copies = [{**one, "id": 50 + one["id"], "image_id": 101} for one in of_first[::-1]]
    content["annotations"] = [*of_first, *copies]
    (tmp_path / "train.json").write_text(json.dumps(content))
    assert main(["check-data", str(tmp_path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert len(report["duplicates"]) == 1
    assert report["contradictions"] == []


def test_a_layout_that_only_looks_like_another(data: Path, tmp_path: Path, capsys) -> None:
    (data / "train_labels").mkdir()
    (data / "train_labels" / "a.txt").write_text("0 0.5 0.5 1 1")  # no masks
    assert main(["check-data", str(data), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["task"] == "classify"
    (data / "train.json").write_text("{}")
    assert main(["check-data", str(data)]) == 2
    err = capsys.readouterr().err
    assert "is not COCO's JSON" in err
    assert "--task says otherwise" in err
    assert main(["check-data", str(data), "--task", "classify"]) == 0
    binary = camvid_tree(tmp_path / "binary", train=1, val=1)
    (binary / "classes.json").write_text('{"class_names": ["no", "yes"]}')
    for part in ("train_labels", "val_labels"):
        Image.fromarray(np.array([[0, 255]] * 2, np.uint8).repeat(24, 1).repeat(20, 0)).save(binary / part / "000.png")
    capsys.readouterr()
    assert main(["check-data", str(binary)]) == 2
    assert '"values": [0, 255] into classes.json' in capsys.readouterr().err
    (binary / "classes.json").write_text('{"class_names": ["no", "yes"], "values": [0, 255]}')
    assert main(["check-data", str(binary)]) == 0
    assert main(["check-data", str(tmp_path / "nowhere"), "--task", "segment"]) == 2
    assert "no folder" in capsys.readouterr().err


def test_a_killed_worker_is_one_line(data: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visionmlp.data.check.LabelledSplit.look", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    assert main(["check-data", str(data), "--num-workers", "1"]) == 2
    err = capsys.readouterr().err
    assert "a data worker failed" in err
    assert "Traceback" not in err
