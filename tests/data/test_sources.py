"""What can be trained on, and what each bad dataset says."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visionmlp.data.decode import decode
from visionmlp.data.named import DigitsSource
from visionmlp.data.sources import ImageSource, open_evaluation_data, open_training_data
from visionmlp.errors import DataError


def write_images(root: Path, folders: dict[str, int], size: int = 8) -> Path:
    """``{"train/cat": 3}`` writes three images; each has its own grey value."""
    value = 0
    for folder, count in folders.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            value += 1
            Image.new("RGB", (size, size), (value, value, value)).save(root / folder / f"{number:03d}.png")
    return root


def brightest(source: ImageSource, index: int) -> int:
    return np.asarray(decode(source.read(index), "RGB", warn=pytest.fail)).max()


def test_folder_classes_are_those_of_train_whatever_validation_holds(tmp_path: Path) -> None:
    write_images(tmp_path, {"train/a": 1, "train/b": 2, "train/c10": 1, "train/c9": 1, "valid/b": 2, "valid/c9": 1})
    train, evaluation = open_training_data(str(tmp_path))
    assert train.class_names == evaluation.class_names == ["a", "b", "c9", "c10"]
    assert [evaluation.label(i) for i in range(len(evaluation))] == [1, 1, 2]
    assert brightest(train, 2) == 3
    assert train.name(2).endswith("train/b/001.png")


@pytest.mark.parametrize("name", ["val", "valid", "validation", "test"])
def test_every_name_of_the_evaluation_folder(tmp_path: Path, name: str) -> None:
    write_images(tmp_path, {"train/a": 2, "train/b": 2, f"{name}/a": 3})
    assert len(open_training_data(str(tmp_path))[1]) == 3


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ({"val/a": 1}, "no sub-folder train or training"),
        ({"train/a": 1, "train/b": 1}, "no sub-folder val or valid or validation or test"),
        ({"train/a": 1, "train/b": 1, "val": 0}, "no images in .*val; it must hold one sub-folder"),
        ({"train/a": 2, "val/a": 2}, r"one class only \(a\)"),
        ({"train/a": 1, "train/b": 1, "val/zebra": 1}, "class folder 'zebra'"),
        ({"train": 2, "train/a": 1, "val/a": 1}, "images lie directly in .*train"),
        ({"train/a/x": 1, "train/b/x": 1, "val/x": 1}, "class folder 'x', which is none of the 2 classes"),
    ],
)
def test_each_bad_folder_is_named(tmp_path: Path, folders: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_training_data(str(write_images(tmp_path, folders)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("no/such/folder", "is no folder and .* no dataset name"),
        ("torch/cifar1000", "unknown dataset 'torch/cifar1000'; torch/ has cifar10"),
        ("torch/cifar100", "needs data_root"),
        ("tfds/cifar100", "cannot be resumed exactly"),
        ("wds/imagenet", "needs data_root"),
    ],
)
def test_each_bad_name_is_explained(data: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_training_data(data)


def test_a_torchvision_dataset_is_not_downloaded_unasked(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"torch/cifar100 is not in .*; set download"):
        open_training_data("torch/cifar100", root=tmp_path)
    assert not list(tmp_path.iterdir())


def test_evaluation_data_may_be_the_class_folders_themselves(tmp_path: Path) -> None:
    write_images(tmp_path, {"b": 1, "c": 2})
    source = open_evaluation_data(str(tmp_path), class_names=["a", "b", "c"])
    assert [source.label(i) for i in range(3)] == [1, 2, 2]
    with pytest.raises(DataError, match="unknown split"):
        open_evaluation_data(str(tmp_path), split="trian")


def test_digits_are_split_once_and_for_all() -> None:
    train, held_out = DigitsSource("train"), DigitsSource("validation")
    assert (len(train), len(held_out)) == (1437, 360)
    assert not set(train.rows) & set(held_out.rows)
    counts = np.bincount([held_out.label(i) for i in range(360)])
    assert counts.min() >= 35  # stratified
    assert counts.max() <= 37
    assert (train.pixels.min(), train.pixels.max()) == (0, 255)
    assert held_out.rows[:4].tolist() == DigitsSource("test").rows[:4].tolist()


def test_shards_are_random_access(tmp_path: Path) -> None:
    for split, shard, labels in (("train", 0, [0, 1]), ("train", 1, [2]), ("val", 0, [1])):
        with tarfile.open(tmp_path / f"tiny-{split}-{shard:04d}.tar", "w") as archive:
            for number, label in enumerate(labels):
                image = io.BytesIO()
                Image.new("L", (4, 4), 10 * label + shard).save(image, "png")
                for extension, content in (("cls", str(label).encode()), ("png", image.getvalue())):
                    member = tarfile.TarInfo(f"{shard}{number}.{extension}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    train, evaluation = open_training_data("wds/tiny", root=tmp_path)
    assert [train.label(i) for i in range(len(train))] == [0, 1, 2]
    assert [brightest(train, i) for i in (2, 0, 1)] == [21, 0, 10]
    assert train.name(2).endswith("tiny-train-0001.tar:10")
    assert len(evaluation) == 1
