"""Masks are read as they are stored, and values become classes in one place; everything else is named."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visionmlp.errors import DataError, UnreadableImage
from visionmlp.tasks.segment.classes import (
    CITYSCAPES_IDS,
    IGNORE,
    ade20k,
    camvid,
    cityscapes,
    colour_map,
    numbered,
    read_classes,
    with_values,
)
from visionmlp.tasks.segment.masks import labels_of, read_mask, read_stored

INDICES = np.array([[0, 1, 2], [15, 20, 255]], np.uint8)


def palette_image(indices: np.ndarray) -> Image.Image:
    """As PASCAL VOC's, whose colours have other luminances than their indices."""
    image = Image.fromarray(indices).convert("L")
    image.putpalette([channel for colour in ((0, 0, 0), *colour_map(255)) for channel in colour])
    return image


def test_indices_are_read_as_stored_whatever_the_palette(tmp_path: Path) -> None:
    palette_image(INDICES).save(tmp_path / "p.png")
    palette_image(INDICES).save(tmp_path / "t.png", transparency=0)
    Image.fromarray(INDICES).save(tmp_path / "l.png")
    Image.fromarray(INDICES).save(tmp_path / "l.bmp")
    assert Image.open(tmp_path / "p.png").mode == "P"
    for name in ("p.png", "t.png", "l.png", "l.bmp"):
        np.testing.assert_array_equal(read_stored(tmp_path / name), INDICES, err_msg=name)
    np.testing.assert_array_equal(read_mask(tmp_path / "p.png", numbered(21)), INDICES)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_are_indices_too(tmp_path: Path, bits: int) -> None:
    values = (np.arange(12).reshape(3, 4) % 2**bits).astype(np.uint8)
    palette_image(values).save(tmp_path / "p.png", bits=bits)
    np.testing.assert_array_equal(read_stored(tmp_path / "p.png"), values)
    grey = grey_png(values, bits)
    (tmp_path / "l.png").write_bytes(grey)
    np.testing.assert_array_equal(read_stored(tmp_path / "l.png"), values)


def grey_png(values: np.ndarray, bits: int) -> bytes:
    """Pillow writes no grey PNG of 2 or 4 bits."""
    import struct
    import zlib

    rows = b""
    for row in values:
        text = "".join(f"{value:0{bits}b}" for value in row)
        text = text.ljust(-(-len(text) // 8) * 8, "0")
        rows += b"\0" + int(text, 2).to_bytes(len(text) // 8, "big")

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_colours_go_through_the_table(tmp_path: Path) -> None:
    table = camvid()
    labels = np.array([[0, 3, 10, IGNORE]], np.uint8)
    colours = np.array([[*table.palette, (0, 0, 0)][min(label, 11)] for label in labels[0]], np.uint8)[None]
    Image.fromarray(colours).save(tmp_path / "rgb.png")
    Image.fromarray(np.dstack([colours, np.full((1, 4), 255, np.uint8)])).save(tmp_path / "rgba.png")
    for name in ("rgb.png", "rgba.png"):
        np.testing.assert_array_equal(read_mask(tmp_path / name, table), labels)
    colours[0, 1] = (9, 9, 9)
    Image.fromarray(colours).save(tmp_path / "rgb.png")
    with pytest.raises(UnreadableImage, match=r"colour \[9, 9, 9\] is no class's by CamVid"):
        read_mask(tmp_path / "rgb.png", table)
    with pytest.raises(UnreadableImage, match=r"nothing says which colour is which class; give classes.json"):
        read_mask(tmp_path / "rgb.png", numbered(3))


@pytest.mark.parametrize(
    ("image", "suffix", "message"),
    [
        (Image.new("LA", (3, 2)), "png", "grey with transparency; save it as 8-bit grey or palette PNG"),
        (Image.new("RGBA", (3, 2), (1, 2, 3, 9)), "png", "colour with transparency"),
        (Image.new("I;16", (3, 2), 26001), "png", "16 bits or more, as files of instances have"),
        (Image.new("F", (3, 2)), "tiff", "of mode F"),
        (Image.new("L", (3, 2)), "jpg", "a JPEG, which changes the labels along every edge"),
    ],
)
def test_what_holds_no_classes_is_named(tmp_path: Path, image: Image.Image, suffix: str, message: str) -> None:
    image.save(tmp_path / f"mask.{suffix}")
    with pytest.raises(UnreadableImage, match=message):
        read_stored(tmp_path / f"mask.{suffix}")


def test_broken_and_missing_files_say_why(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UnreadableImage, match="not an image"):
        read_stored(tmp_path / "text.png")
    with pytest.raises(UnreadableImage, match="no such file"):
        read_stored(tmp_path / "none.png")


def test_labels_out_of_range_say_which_may_be() -> None:
    with pytest.raises(UnreadableImage, match=r"label 20, 21 is no class; masks may hold 0 to 2 for its 3 classes, or"):
        labels_of(np.array([[0, 21, 20, 255]], np.uint8), numbered(3))


def test_ade20k_is_shifted_once(tmp_path: Path) -> None:
    stored = np.array([[0, 1, 150, 255]], np.uint8)
    np.testing.assert_array_equal(labels_of(stored, ade20k(tmp_path)), [[IGNORE, 0, 149, IGNORE]])
    with pytest.raises(UnreadableImage, match="label 151 is no class"):
        labels_of(np.array([[151]], np.uint8), ade20k(tmp_path))


def test_ade20k_names_come_from_its_list(tmp_path: Path) -> None:
    rows = [f"{number}\t0.1\t10\t5\tthing {number // 2}, synonym" for number in range(1, 151)]
    (tmp_path / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tName\n" + "\n".join(rows))
    names = ade20k(tmp_path).names
    assert names[0] == "thing 0"
    assert names[1:3] == ("thing 1 1", "thing 1 2")
    (tmp_path / "objectInfo150.txt").write_text("Idx\tName\n1\twall")
    with pytest.raises(DataError, match="1 classes, not 150"):
        ade20k(tmp_path)


def test_cityscapes_ids() -> None:
    stored = np.array([[*range(34), 255]], np.uint8)
    labels = labels_of(stored, cityscapes(train_ids=False))[0]
    for label, value in enumerate(CITYSCAPES_IDS):
        assert labels[value] == label
    ignored = [value for value in range(34) if value not in CITYSCAPES_IDS]
    assert set(labels[ignored]) == {IGNORE} == {labels[-1]}
    np.testing.assert_array_equal(
        labels_of(np.array([[0, 18, 255]], np.uint8), cityscapes(train_ids=True)), [[0, 18, 255]]
    )
    with pytest.raises(UnreadableImage, match="label 33 is no class"):  # label ids under the name of train ids
        labels_of(np.array([[33]], np.uint8), cityscapes(train_ids=True))


def test_values_of_black_and_white_masks(tmp_path: Path) -> None:
    two = with_values(numbered(2), (0, 255))
    np.testing.assert_array_equal(labels_of(np.array([[0, 255]], np.uint8), two), [[0, 1]])
    with pytest.raises(UnreadableImage, match=r"label 1 is no class; masks may hold 0, 255 for its 2 classes$"):
        labels_of(np.array([[1]], np.uint8), two)
    with pytest.raises(DataError, match="mask_values has 3 values, but there are 2 classes"):
        with_values(numbered(2), (0, 1, 255))
    Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1").save(tmp_path / "bits.png")
    np.testing.assert_array_equal(read_stored(tmp_path / "bits.png"), [[0, 1]])


def test_a_file_beside_the_data_describes_its_classes(tmp_path: Path) -> None:
    assert read_classes(tmp_path) is None
    path = tmp_path / "classes.json"
    path.write_text(json.dumps({"class_names": ["void", "cat", "dog"], "ignore_index": 0}))
    classes = read_classes(tmp_path)
    assert classes is not None
    assert classes.names == ("cat", "dog")
    np.testing.assert_array_equal(labels_of(np.array([[0, 1, 2]], np.uint8), classes), [[IGNORE, 0, 1]])
    path.write_text(json.dumps({"class_names": ["a", "b"], "values": [7, 9], "palette": [[1, 1, 1], [2, 2, 2]]}))
    classes = read_classes(tmp_path)
    assert classes is not None
    assert classes.coloured
    np.testing.assert_array_equal(labels_of(np.array([[9, 7]], np.uint8), classes), [[1, 0]])
    path.unlink()
    (tmp_path / "class_dict.csv").write_text(
        "name, r, g, b\n".replace(" ", "") + "Car,64,0,128\nVoid,0,0,0\nTree,1,2,3\n",
        encoding="utf-8-sig",  # as Excel writes it
    )
    classes = read_classes(tmp_path)
    assert classes is not None
    assert classes.names == ("Car", "Tree")
    colours = np.array([[(64, 0, 128), (0, 0, 0), (1, 2, 3)]], np.uint8)
    np.testing.assert_array_equal(labels_of(colours, classes), [[0, IGNORE, 1]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON"),
        ("[]", "has no list class_names"),
        ('{"class_names": []}', "there is no class"),
        ('{"class_names": ["a", "a"]}', "two classes have the same name"),
        ('{"class_names": ["a"], "colours": 1}', "unknown colours; known are class_names, ignore_colors"),
        ('{"class_names": ["a", "b"], "values": [1]}', "values is one number for each"),
        ('{"class_names": ["a", "b"], "values": [1, 1]}', "two classes have the same value"),
        ('{"class_names": ["a"], "palette": [[1, 2, 300]]}', "a colour is"),
        ('{"class_names": ["a"], "values": [256]}', "values must be in 0 to 255"),
        ('{"class_names": ["a", "b"], "ignore_index": 300}', "ignored values must be in 0 to 255"),
        ('{"class_names": ["a", "b"], "ignore_index": -100}', "ignored values must be in 0 to 255"),
        ('{"class_names": ["a", "b"], "ignore_colors": 3}', "ignore_colors is a list of colours"),
    ],
)
def test_a_bad_description_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(DataError, match=message):
        read_classes(tmp_path)


def test_colours_are_told_apart() -> None:
    colours = colour_map(255)
    assert len(set(colours)) == 255
    assert colours[:3] == ((128, 0, 0), (0, 128, 0), (128, 128, 0))
    assert (0, 0, 0) not in colours
