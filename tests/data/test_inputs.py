"""Images of a command line: order, what is left out, and folders that are never held as a whole."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from visionmlp.data import inputs
from visionmlp.data.inputs import find_images, why_no_images


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "z.png", "b/c.PNG", "b/b/d.jpg", "c/notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def test_folders_are_searched_in_order_and_text_left_out(folder: Path) -> None:
    found = list(find_images([str(folder), str(folder / "c" / "notes.txt"), "-", "missing.png"]))
    expected = [str(folder / name) for name in ("a.png", "b/b/d.jpg", "b/c.PNG", "z.png")]
    assert found == [*expected, str(folder / "c" / "notes.txt"), "-", "missing.png"]


def test_a_folder_is_read_when_its_turn_comes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    scandir = os.scandir

    def watched(path: str) -> "Iterator[os.DirEntry[str]]":
        read.append(path)
        return scandir(path)

    monkeypatch.setattr(inputs.os, "scandir", watched)
    found = find_images([str(folder)])
    assert next(found) == str(folder / "a.png")
    assert read == [str(folder)]
    assert next(found) == str(folder / "b/b/d.jpg")
    assert read == [str(folder), str(folder / "b"), str(folder / "b" / "b")]


def test_a_folder_that_has_none_or_cannot_be_read_comes_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(find_images([str(folder / "c")])) == [str(folder / "c")]
    assert "no images in this folder" in why_no_images(str(folder / "c"))
    scandir = os.scandir

    def refused(path: str) -> "Iterator[os.DirEntry[str]]":
        if path.endswith("/b"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(inputs.os, "scandir", refused)
    assert list(find_images([str(folder)])) == [str(folder / name) for name in ("a.png", "b", "z.png")]
    assert why_no_images(str(folder / "b")) == "Permission denied"
