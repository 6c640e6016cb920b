"""ReaL labels are found by the number in a file's name, and refused where they do not fit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm.data
from PIL import Image
from timm.data import ImageNetInfo

from visionmlp.data.real_labels import image_number, read_real_labels, real_labels_of
from visionmlp.data.sources import open_evaluation_data
from visionmlp.errors import DataError

PUBLISHED = Path(timm.data.__file__).parent / "_info/imagenet_real_labels.json"
SYNSETS: list[str] = ImageNetInfo().label_names()
NUMBERS = [*range(1, 26), 49_999, 50_000]


@pytest.fixture(scope="module")
def entries() -> list[list[int]]:
    return read_real_labels(PUBLISHED)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, entries: list[list[int]]) -> Path:
    """Images in the folder of their first label; places in the list of files are not their numbers."""
    root = tmp_path_factory.mktemp("val")
    for number in NUMBERS:
        folder = root / SYNSETS[(entries[number - 1] or [0])[0]]
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / f"ILSVRC2012_val_{number:08d}.JPEG")
    return root


def answers(folder: Path, labels: Path = PUBLISHED, outputs: Any = range(1000)) -> dict[int, list[int]]:
    source = open_evaluation_data(str(folder), num_classes=1000, flat=True)
    found = real_labels_of(source, labels, outputs)
    return {image_number(source.name(index)) or 0: answer for index, answer in enumerate(found)}


def test_the_published_file(entries: list[list[int]]) -> None:
    assert len(entries) == 50_000
    assert sum(map(bool, entries)) == 46_837


def test_the_number_in_the_name_decides_in_class_folders_and_flat(
    images: Path, entries: list[list[int]], tmp_path: Path
) -> None:
    expected = {number: entries[number - 1] for number in NUMBERS}
    assert answers(images) == expected
    assert [] in expected.values()
    flat = tmp_path / "val"
    flat.mkdir()
    for path in images.rglob("*.JPEG"):
        shutil.copy(path, flat)
    assert answers(flat) == answers(tmp_path) == expected
    # a model whose outputs are in another order
    backwards = answers(flat, outputs=range(999, -1, -1))
    assert backwards == {number: [999 - label for label in labels] for number, labels in expected.items()}


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("val/n01440764/ILSVRC2012_val_00000293.JPEG", 293),
        ("shard-0001.tar:ILSVRC2012_val_00050000", 50_000),
        ("ILSVRC2012_val_00000001.png", 1),
        ("ILSVRC2012_val_00000000.JPEG", None),
        ("ILSVRC2012_val_00050001.JPEG", None),
        ("ILSVRC2012_val_000002931.JPEG", None),
        ("ILSVRC2012_val_00000001 (copy).JPEG", None),
        ("ILSVRC2012_val_00000001/x.JPEG", None),
        ("ILSVRC2012_test_00000001.JPEG", None),
        ("torch/imagenet[3]", None),
    ],
)
def test_numbers_of_names(name: str, number: int | None) -> None:
    assert image_number(name) == number


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entries: entries[:-1], "has 49999 entries, but ImageNet has 50000 validation images"),
        (lambda _: {"0": [1]}, "holds no list"),
        (lambda entries: [[1000], *entries[1:]], "entry of image 1 is no list of class numbers from 0 to 999"),
        (lambda entries: [*entries[:-1], 3], "entry of image 50000 is no list"),
        (lambda entries: [*entries[:-1], [True]], "entry of image 50000 is no list"),
        # as a reader that starts to count at the wrong end would have it
        (
            lambda entries: [*entries[1:], entries[0]],
            "does not fit: of .* images only .* have the class of their folder",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    change: Callable[[Any], Any], message: str, entries: list[list[int]], images: Path, tmp_path: Path
) -> None:
    file = tmp_path / "real.json"
    file.write_text(json.dumps(change(entries)))
    with pytest.raises(DataError, match=message):
        answers(images, file)


def test_what_is_no_file_of_labels_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text("[[1], [")
    with pytest.raises(DataError, match="is not JSON"):
        read_real_labels(tmp_path / "real.json")
    with pytest.raises(DataError, match=r"cannot read the ReaL labels .*: No such file"):
        read_real_labels(tmp_path / "none.json")


def test_images_that_do_not_fit_are_refused(images: Path, tmp_path: Path) -> None:
    image = next(images.rglob("*.JPEG"))
    flat, twice, both = tmp_path / "flat", tmp_path / "twice", tmp_path / "both"
    for folder, name in (
        (flat, "x.JPEG"),
        (twice / "n01440764", image.name),
        (twice / "n01443537", image.name),
        (both, image.name),
        (both / "n01440764", "ILSVRC2012_val_00000002.JPEG"),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, folder / name)
    with pytest.raises(DataError, match=r"ILSVRC2012_val_00000001 to _00050000, and .*x.JPEG has none"):
        answers(flat)
    with pytest.raises(DataError, match="are the same image; remove one"):
        answers(twice)
    with pytest.raises(DataError, match="images lie directly in"):
        answers(both)
    with pytest.raises(DataError, match="images lie directly in"):
        open_evaluation_data(str(flat), num_classes=1000)
