"""A summary notices every change that would change a run."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from visionmlp.data.folders import FolderSource
from visionmlp.data.named import DigitsSource
from visionmlp.data.summary import DataSummary

from .test_sources import write_images

CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "class renamed": (lambda root: (root / "cat").rename(root / "lion"), "class 'cat' is gone and class 'lion' is new"),
    "class added": (
        lambda root: write_images(root, {"emu": 1}),
        "class 'emu' is new; there were 3 classes and are 4",
    ),
    "image added": (
        lambda root: (root / "dog/9.png").write_bytes(b""),
        "class 'dog' had 2 images and has 3; 6 in all, now 7",
    ),
    "image removed": (lambda root: (root / "dog/000.png").unlink(), "class 'dog' had 2 images and has 1"),
    "image renamed": (
        lambda root: (root / "dog/000.png").rename(root / "dog/005.png"),
        "the 6 images have other names",
    ),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_images(tmp_path / "data", {"cat": 2, "dog": 2, "owl": 2})


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_told(root: Path, change: str) -> None:
    before = FolderSource(root).summary()
    function, message = CHANGES[change]
    function(root)
    after = FolderSource(root).summary()
    assert after != before
    assert (before.change_to(after) or "").startswith(message)


def test_classes_that_are_only_numbered_otherwise_are_told() -> None:
    before, after = (DataSummary.of(["a", "b"], [0, 1], names) for names in (["Cat", "cat"], ["cat", "Cat"]))
    assert before.change_to(after) == "the classes are in another order: class 0 was 'Cat' and is 'cat'"


def test_the_same_images_elsewhere_are_the_same(root: Path, tmp_path: Path) -> None:
    before = FolderSource(root).summary()
    root.rename(tmp_path / "moved")
    after = FolderSource(tmp_path / "moved").summary()
    assert before == after
    assert before.change_to(after) is None
    assert before == DataSummary(**json.loads(json.dumps(dataclasses.asdict(before))))
    assert (before.images, before.class_names, before.images_per_class) == (6, ["cat", "dog", "owl"], [2, 2, 2])


def test_named_datasets_have_one_too() -> None:
    train, held_out = DigitsSource("train").summary(), DigitsSource("validation").summary()
    assert (train.images, sum(train.images_per_class)) == (1437, 1437)
    assert train.digest != held_out.digest
