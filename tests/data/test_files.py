"""Which files of a folder are images, and in which order."""

import os
import random
from pathlib import Path

import pytest
from PIL import Image

from visionmlp.data.files import find_images, image_suffixes, natural_key
from visionmlp.errors import DataError


def write(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def test_suffixes_are_those_of_still_pictures() -> None:
    suffixes = image_suffixes()
    assert {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".mpo"} <= suffixes
    assert {".jp2", ".psd", ".ico", ".tga", ".qoi"} <= suffixes
    assert not {".pdf", ".eps", ".ps", ".mpg", ".mpeg", ".h5", ".wmf", ".fli", ".txt", ""} & suffixes


def test_all_that_pillow_writes_and_we_look_for_it_also_reads(tmp_path: Path) -> None:
    written = 0
    for suffix in sorted(image_suffixes()):
        kind = Image.registered_extensions()[suffix]
        for mode in ("RGB", "RGBA", "L", "P", "1"):
            try:
                Image.new(mode, (16, 16)).save(tmp_path / f"x{suffix}", kind)
            except (OSError, ValueError, KeyError):  # not in this mode, or not at all
                continue
            with Image.open(tmp_path / f"x{suffix}") as image:
                image.load()
            written += 1
            break
    assert written > 30


def test_a_suffix_that_a_plugin_adds_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "a.heicish")
    assert find_images(tmp_path).images == []
    monkeypatch.setitem(Image.registered_extensions(), ".heicish", "PNG")
    assert find_images(tmp_path).images == ["a.heicish"]


def test_hidden_names_are_left_out_and_counted_in_one_note(tmp_path: Path) -> None:
    hidden = ["a/.ipynb_checkpoints/x.png", ".git/x.png", "a/._x.png", "__MACOSX/a/x.png", "a/@eaDir/x.jpg/THUMB.jpg"]
    write(tmp_path, "a/x.png", *hidden, ".DS_Store", "a/Thumbs.db", "a/.DS_Store")
    found = find_images(tmp_path)
    assert (found.images, found.folders) == (["a/x.png"], ["a"])
    assert found.notes == ["left out hidden names (5, such as .git)"]


def test_a_folder_that_is_hidden_itself_is_read(tmp_path: Path) -> None:
    assert find_images(write(tmp_path / ".cache", "a/x.png")).images == ["a/x.png"]


@pytest.mark.parametrize("seed", range(4))
def test_the_order_is_natural_and_does_not_depend_on_the_disk(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = ["01/x.png", "1/x.png", "2/x.png", "10/01.png", "10/1.png", "10/2.png", "10/10.png"]
    right += ["Cat/x.png", "cat/x.png", "²/x.png"]
    write(tmp_path, *right)
    scandir = os.scandir

    def shuffled(path: str) -> "list[os.DirEntry[str]]":
        entries = list(scandir(path))
        random.Random(seed).shuffle(entries)
        return entries

    monkeypatch.setattr(os, "scandir", shuffled)
    found = find_images(tmp_path)
    assert found.images == right
    assert found.folders == ["01", "1", "2", "10", "Cat", "cat", "²"]
    assert sorted(["٢", "1", "٣", "10"], key=natural_key) == ["1", "٢", "٣", "10"]  # other scripts have digits too


def test_links_are_followed_once_and_circles_end(tmp_path: Path) -> None:
    data = write(tmp_path / "data", "cat/1.png", "dog/part/1.png")
    write(tmp_path / "elsewhere", "owls/1.png", "2.png")
    (data / "owl").symlink_to(tmp_path / "elsewhere" / "owls")
    (data / "cat" / "2.png").symlink_to(tmp_path / "elsewhere" / "2.png")
    (data / "dog" / "all").symlink_to(data)
    (data / "dog" / "again").symlink_to("part")
    (tmp_path / "elsewhere" / "owls" / "up").symlink_to(tmp_path / "elsewhere" / "owls")
    (data / "dog" / "self").symlink_to("self")
    found = find_images(data)
    assert found.images == ["cat/1.png", "cat/2.png", "dog/part/1.png", "owl/1.png"]
    assert found.notes == [
        "left out links to folders that are read already (3, such as dog/again)",
        "left out links that lead nowhere (1, such as dog/self)",
    ]


def test_a_dead_link_is_a_bad_image_or_an_empty_class(tmp_path: Path) -> None:
    write(tmp_path, "cat/1.png")
    for name in ("cat/2.png", "cat/notes", "dog"):
        (tmp_path / name).symlink_to("gone")
    found = find_images(tmp_path)
    assert found.images == ["cat/1.png", "cat/2.png"]
    assert found.folders == ["cat", "dog"]
    assert found.notes == ["left out links that lead nowhere (2, such as cat/notes)"]


def test_other_files_are_counted_by_class(tmp_path: Path) -> None:
    write(tmp_path, "labels.csv", "cat/1.PNG", "cat/notes.txt", "owl/1.heic", "owl/more/2.HEIC", "owl/3")
    found = find_images(tmp_path)
    assert found.images == ["cat/1.PNG"]
    assert found.others["owl"] == {".heic": 2, "no suffix": 1}
    assert found.notes == ["left out files without an image's suffix (4: .heic, .txt, no suffix)"]


def test_what_is_no_file_is_no_image(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")  # to open it would wait for ever
    (tmp_path / "folder.png").mkdir()
    assert find_images(tmp_path).images == []


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "cat/1.png", "dog/1.png")
    scandir = os.scandir

    def denied(path: str) -> object:  # root may read everything
        if path.endswith("dog"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(DataError, match=r"cannot read folder .*dog: Permission denied"):
        find_images(tmp_path)
