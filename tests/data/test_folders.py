"""Class folders as people have them."""

import os
import warnings
from pathlib import Path

import pytest
from PIL import Image
from timm.data import create_dataset

from visionmlp.data.decode import decode
from visionmlp.data.folders import FolderSource
from visionmlp.data.sources import ImageSource, open_evaluation_data, open_training_data
from visionmlp.errors import DataError, UnreadableImage

from .test_sources import write_images


def decoded(source: ImageSource, index: int) -> Image.Image:
    return decode(source.read(index), "RGB", warn=print)


@pytest.mark.parametrize("suffix", ["webp", "WebP", "bmp", "tif", "TIFF", "gif", "jfif", "JPEG", "ppm", "jp2"])
def test_a_class_of_any_still_format_counts(tmp_path: Path, suffix: str) -> None:
    write_images(tmp_path, {"train/cat": 2, "train/dog": 2, "train/owl": 0, "val/cat": 1, "val/owl": 0})
    for folder in ("train", "val"):
        Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / folder / "owl" / f"x.{suffix}")
    train, evaluation = open_training_data(str(tmp_path))
    assert train.class_names == ["cat", "dog", "owl"]
    assert [train.label(index) for index in range(len(train))] == [0, 0, 1, 1, 2]
    assert decoded(train, 4).getextrema()[0][0] in (8, 9, 10)
    assert [evaluation.label(index) for index in range(len(evaluation))] == [0, 2]


@pytest.mark.parametrize(
    ("files", "words"), [((), ""), (("1.heic", "2.heic", "3"), r" \(its files: .heic, no suffix\)")]
)
def test_a_class_folder_without_an_image_is_refused_in_training_and_named_in_evaluation(
    tmp_path: Path, files: tuple[str, ...], words: str
) -> None:
    write_images(tmp_path, {"train/cat": 2, "train/dog": 2, "train/owl": 0, "val/cat": 1, "val/owl": 0})
    for name in files:
        (tmp_path / "train/owl" / name).touch()
    with pytest.raises(DataError, match=rf"train: no image in class folder 'owl'{words}; .* fill or remove it"):
        open_training_data(str(tmp_path))
    Image.new("L", (8, 8)).save(tmp_path / "train/owl/x.png")
    for open_it in (lambda: open_training_data(str(tmp_path))[1], lambda: open_evaluation_data(str(tmp_path))):
        with pytest.warns(UserWarning, match="val: no image in class folder 'owl'"):
            assert len(open_it()) == 1


def test_a_class_folder_that_is_a_dead_link_is_refused_in_training(tmp_path: Path) -> None:
    write_images(tmp_path, {"train/cat": 2, "train/dog": 2, "val/cat": 1})
    (tmp_path / "train/owl").symlink_to("/nowhere/owl")
    with pytest.raises(DataError, match="no image in class folder 'owl'"), pytest.warns(UserWarning, match="nowhere"):
        open_training_data(str(tmp_path))


def test_the_class_is_the_first_level_and_one_line_says_so(tmp_path: Path) -> None:
    write_images(tmp_path, {"cat/part2": 1, "cat": 1, "dog/part1/a": 2})
    with pytest.warns(UserWarning, match="3 of 4 images lie below their class folder, such as in cat/part2") as lines:
        source = FolderSource(tmp_path)
    assert len(lines) == 1
    assert source.class_names == ["cat", "dog"]
    assert source.labels.tolist() == [0, 0, 1, 1]


def test_hidden_folders_are_no_classes_and_one_line_says_so(tmp_path: Path) -> None:
    write_images(
        tmp_path, {"cat": 1, "dog": 1, ".ipynb_checkpoints": 1, "dog/.ipynb_checkpoints": 1, "__MACOSX/cat": 1}
    )
    with pytest.warns(UserWarning, match=r"left out hidden names \(3, ") as lines:
        source = FolderSource(tmp_path)
    assert len(lines) == 1
    assert (source.class_names, source.labels.tolist()) == (["cat", "dog"], [0, 1])


def test_clean_folders_say_nothing(tmp_path: Path) -> None:
    write_images(tmp_path, {"train/cat": 1, "train/dog": 1, "val/cat": 1})
    (tmp_path / "train/.DS_Store").touch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_training_data(str(tmp_path))


def test_names_that_a_natural_sort_takes_for_equal_are_classes_of_their_own(tmp_path: Path) -> None:
    names = ["01", "1", "Cat", "cat", "²", os.fsdecode(b"\xe9")]
    write_images(tmp_path, {f"train/{name}": 1 for name in names} | {f"val/{name}": 1 for name in names})
    train, evaluation = open_training_data(str(tmp_path))
    assert train.class_names == evaluation.class_names == names
    assert [evaluation.label(index) for index in range(6)] == list(range(6))
    decoded(train, 5)
    assert train.summary().images_per_class == [1] * 6


def test_a_bad_link_is_a_bad_image(tmp_path: Path) -> None:
    write_images(tmp_path, {"cat": 1, "dog": 1})
    (tmp_path / "cat/zz.png").symlink_to("gone.png")
    source = FolderSource(tmp_path)
    assert source.name(1) == str(tmp_path / "cat/zz.png")
    with pytest.raises(UnreadableImage, match="no such file"):
        decoded(source, 1)


def test_ordinary_folders_keep_the_order_of_timm(tmp_path: Path) -> None:
    names = ["img_1", "img_10", "IMG_2", "a", "n01_3", "n1_20"]
    folders = ["b", "a10", "A9", "x y", "x-y"]
    for folder in folders:
        write_images(tmp_path, {folder: 3})
        for name in names:
            Image.new("L", (2, 2)).save(tmp_path / folder / f"{name}.png")
    timms = create_dataset("", root=str(tmp_path), search_split=False).reader
    ours = FolderSource(tmp_path)
    assert [(ours.name(index), ours.label(index)) for index in range(len(ours))] == timms.samples
    assert ours.class_names == list(timms.class_to_idx)
