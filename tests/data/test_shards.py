"""Shards as people pack them: what can be read is read, the rest is counted or named."""

import io
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visionmlp.data.decode import decode
from visionmlp.data.shards import ShardSource
from visionmlp.data.sources import open_evaluation_data, open_training_data
from visionmlp.errors import DataError

Entry = tuple[str, "bytes | tarfile.TarInfo"]


def image(value: int = 0, kind: str = "png") -> bytes:
    stream = io.BytesIO()
    Image.new("L", (4, 4), value).save(stream, kind)
    return stream.getvalue()


def link(name: str, target: str, *, hard: bool = False) -> Entry:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.LNKTYPE if hard else tarfile.SYMTYPE, target
    return name, member


def write_shard(path: Path, *entries: Entry, mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in entries:
            member = tarfile.TarInfo(name) if isinstance(content, bytes) else content
            if isinstance(content, bytes):
                member.size = len(content)
            archive.addfile(member, io.BytesIO(content) if isinstance(content, bytes) else None)
    return path


def opened(tmp_path: Path, *entries: Entry) -> tuple[ShardSource, list[str]]:
    """The source of one shard, and what it warned of."""
    write_shard(tmp_path / "tiny-val-0.tar", *entries)
    with warnings.catch_warnings(record=True) as lines:
        warnings.simplefilter("always")
        source = ShardSource("wds/tiny", tmp_path, "validation")
    return source, [str(line.message) for line in lines]


def grey(source: ShardSource) -> list[int]:
    return [int(np.asarray(decode(source.read(index), "L", warn=print)).max()) for index in range(len(source))]


def test_samples_without_a_partner_are_counted_in_one_line(tmp_path: Path) -> None:
    images: list[Entry] = [(f"{number}.png", image(number)) for number in range(10)]
    source, lines = opened(tmp_path, *images, ("3.cls", b"1\n"), ("zebra.cls", b"0"), ("._3.png", b"litter"))
    assert (grey(source), source.labels.tolist()) == ([3], [1])
    (line,) = lines
    assert "images without a class (.cls) (9)" in line
    assert "classes without an image (1)" in line
    assert "hidden files (1)" in line


def test_links_of_both_kinds_are_read(tmp_path: Path) -> None:
    source, lines = opened(
        tmp_path,
        ("all/0.png", image(7)),
        ("0.cls", b"0"),
        link("0.png", "all/0.png", hard=True),
        ("b/1.cls", b" 1 "),
        link("b/1.png", "../all/0.png"),
        link("2.png", "b/1.png"),
        link("2.cls", "0.cls", hard=True),
        link("3.png", "3.png"),
        link("4.png", "gone.png"),
    )
    assert grey(source) == [7, 7, 7]
    assert source.labels.tolist() == [0, 1, 0]
    (line,) = lines
    assert "links that lead nowhere (2)" in line
    assert "images without a class (.cls) (1)" in line  # all/0.png itself


def test_keys_are_found_whatever_dots_names_have(tmp_path: Path) -> None:
    names = ["a.b/c", "a.b/d", "IMG.2020", "IMG.2021", "./e"]
    entries = [
        entry
        for number, name in enumerate(names)
        for entry in ((f"{name}.png", image(number)), (f"{name}.cls", b"%d" % number))
    ]
    source, lines = opened(tmp_path, *entries, ("a.b/c.depth.png", image(99)), ("a.b/readme", b""))
    assert grey(source) == source.labels.tolist() == [0, 1, 2, 3, 4]
    assert lines == []
    assert source.name(0).endswith("tiny-val-0.tar:a.b/c")


@pytest.mark.parametrize("kind", ["tiff", "bmp", "gif", "webp", "jpeg"])
def test_every_still_format_in_any_case(tmp_path: Path, kind: str) -> None:
    source, _ = opened(tmp_path, (f"x.{kind.upper()}", image(7, kind)), ("x.cls", b"0"))
    assert abs(grey(source)[0] - 7) <= 2


def test_two_images_of_a_key_are_counted(tmp_path: Path) -> None:
    source, (line,) = opened(tmp_path, ("x.png", image(1)), ("x.jpg", image(9, "jpeg")), ("x.cls", b"0"))
    assert grey(source) == [1]
    assert "second images of a key (1)" in line


@pytest.mark.parametrize("name", ["a-val-0.tar", "a-val-0.tar.gz", "a-val-0.tgz", "val/0.tar.xz"])
@pytest.mark.parametrize(("mode", "command"), [("w:gz", "gunzip"), ("w:bz2", "bunzip2"), ("w:xz", "unxz")])
def test_compressed_shards_are_named_with_the_remedy(tmp_path: Path, name: str, mode: str, command: str) -> None:
    write_shard(tmp_path / "b-val-1.tar", ("0.png", image()), ("0.cls", b"0"))
    write_shard(tmp_path / name, ("0.png", image()), ("0.cls", b"0"), mode=mode)
    with pytest.raises(DataError, match=rf"{name} is compressed, .*; unpack it: {command}"):
        open_evaluation_data("wds/tiny", root=tmp_path)


def test_zstandard_is_named_too(tmp_path: Path) -> None:
    (tmp_path / "val-0.tar.zst").write_bytes(b"\x28\xb5\x2f\xfd and more")
    with pytest.raises(DataError, match=r"val-0.tar.zst is compressed, .*; unpack it: unzstd"):
        open_evaluation_data("wds/tiny", root=tmp_path)


@pytest.mark.parametrize(
    ("label", "message"),
    [(b"cat", "1.cls is no class number: b'cat'"), (b"", "is no class number"), (b"1.0", "is no class number")],
)
def test_labels_that_are_no_numbers_are_named(tmp_path: Path, label: bytes, message: str) -> None:
    write_shard(tmp_path / "tiny-val-0.tar", ("1.png", image()), ("1.cls", label))
    with pytest.raises(DataError, match=rf"tiny-val-0.tar:{message}" if b"cat" in label else message):
        open_evaluation_data("wds/tiny", root=tmp_path)


def test_a_shard_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "val-0.tar").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"cannot read shard .*val-0.tar"):
        open_evaluation_data("wds/tiny", root=tmp_path)


def test_labels_of_no_class_are_refused_before_a_batch(tmp_path: Path) -> None:
    for split, labels in (("train", (0, 1)), ("val", (0, -1, -1))):
        entries: list[Entry] = []
        for number, label in enumerate(labels):
            entries += [(f"{number}.png", image()), (f"{number}.cls", b"%d" % label)]
        write_shard(tmp_path / f"tiny-{split}-0.tar", *entries)
    for open_it in (
        lambda: open_training_data("wds/tiny", root=tmp_path),
        lambda: open_evaluation_data("wds/tiny", root=tmp_path, num_classes=2),
    ):
        with pytest.raises(DataError, match=r"wds/tiny \(val\): 2 of 3 images have the label -1, but classes start"):
            open_it()
    assert len(open_evaluation_data("wds/tiny", root=tmp_path)) == 3  # calibration needs no classes
    write_shard(tmp_path / "tiny-train-0.tar", ("0.png", image()), ("0.cls", b"-1"))
    with pytest.raises(DataError, match=r"wds/tiny \(train\): 1 of 1 images have the label -1"):
        open_training_data("wds/tiny", root=tmp_path)


def test_labels_beyond_the_models_outputs_are_refused(tmp_path: Path) -> None:
    for split, last in (("train", b"1"), ("val", b"7")):
        entries = (("0.png", image()), ("0.cls", b"0"), ("1.png", image()), ("1.cls", last))
        write_shard(tmp_path / f"tiny-{split}-0.tar", *entries)
    with pytest.raises(DataError, match=r"1 of 2 images have the label 7, but the last class is 1"):
        open_training_data("wds/tiny", root=tmp_path)
    with pytest.raises(DataError, match=r"1 of 2 images have the label 7, but the last class is 5"):
        open_evaluation_data("wds/tiny", root=tmp_path, num_classes=6)
    source = open_evaluation_data("wds/tiny", root=tmp_path, num_classes=1000)
    assert [source.label(0), source.label(1), len(source.class_names)] == [0, 7, 1000]


def test_a_changed_shard_shows_in_the_summary(tmp_path: Path) -> None:
    entries: list[Entry] = [("0.png", image()), ("0.cls", b"0")]
    before = opened(tmp_path, *entries)[0].summary()
    assert opened(tmp_path, *entries)[0].summary() == before
    after = opened(tmp_path, ("0.png", image(kind="bmp")), ("0.cls", b"0"))[0].summary()
    assert "other names" in (before.change_to(after) or "")
