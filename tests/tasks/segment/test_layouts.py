"""Images and masks are found in the layouts that datasets have, and a missing partner is named."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visionmlp.data.policy import BadImage
from visionmlp.errors import DataError
from visionmlp.tasks.segment.classes import IGNORE
from visionmlp.tasks.segment.data import MaskedImages, check_masks, require_same_classes
from visionmlp.tasks.segment.layouts import SegmentData, open_pairs

from .trees import camvid_tree, save_pair

LABELS = np.array([[0, 1], [1, 0]])


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("images/train", "masks/train"),
        ("images/training", "annotations/training"),
        ("train/images", "train/masks"),
        ("train", "train_labels"),
        ("train", "train_mask"),
        ("imgs/train", "labels/train"),
    ],
)
@pytest.mark.parametrize("ending", ["", "_L", "_mask"])
def test_pairs_of_folders(tmp_path: Path, images: str, masks: str, ending: str) -> None:
    for number in (10, 2):
        save_pair(tmp_path / images / f"sub/{number}.jpg", tmp_path / masks / f"sub/{number}{ending}.png", LABELS)
    pairs = open_pairs(tmp_path, "train", num_classes=2)
    assert pairs.keys == ["sub/2.jpg", "sub/10.jpg"]
    assert [mask.name for mask in pairs.masks] == [f"2{ending}.png", f"10{ending}.png"]
    item = MaskedImages(pairs).read(0).item
    np.testing.assert_array_equal(item.labels, LABELS)
    with pytest.raises(DataError, match="has no images and masks of split val or valid or validation or test"):
        open_pairs(tmp_path, "validation", num_classes=2)


def test_ade20k_layout(tmp_path: Path) -> None:
    for split, name in (("training", "train"), ("validation", "val")):
        save_pair(
            tmp_path / f"images/{split}/ADE_{name}_00000001.jpg",
            tmp_path / f"annotations/{split}/ADE_{name}_00000001.png",
            np.array([[0, 150], [1, 1]]),
        )
    for split in ("train", "validation"):
        pairs = open_pairs(tmp_path, split)
        assert pairs.classes.count == 150
        check_masks(pairs)
        np.testing.assert_array_equal(MaskedImages(pairs).read(0).item.labels, [[IGNORE, 149], [0, 0]])
    # masks that somebody has shifted already
    Image.fromarray(np.array([[255, 149], [0, 0]], np.uint8)).save(pairs.masks[0])
    with pytest.raises(DataError, match="as if they were shifted by one already"):
        check_masks(pairs)


@pytest.mark.parametrize("kinds", [("labelIds",), ("labelIds", "labelTrainIds"), ("labelTrainIds",)])
def test_cityscapes_layout(tmp_path: Path, kinds: tuple[str, ...]) -> None:
    stored = {"labelIds": np.array([[7, 33], [0, 4]]), "labelTrainIds": np.array([[0, 18], [255, 255]])}
    for split in ("train", "val", "test"):
        stem = f"{split}/bochum/bochum_000000_000313"
        for kind in kinds:
            mask = tmp_path / f"gtFine/{stem}_gtFine_{kind}.png"
            save_pair(tmp_path / f"leftImg8bit/{stem}_leftImg8bit.png", mask, stored[kind])
        Image.new("I;16", (2, 2)).save(tmp_path / f"gtFine/{stem}_gtFine_instanceIds.png")
    for split in ("train", "validation"):
        pairs = open_pairs(tmp_path, split)
        assert pairs.classes.names[18] == "bicycle"
        np.testing.assert_array_equal(MaskedImages(pairs).read(0).item.labels, [[0, 18], [IGNORE, IGNORE]])
    with pytest.raises(DataError, match="test masks of Cityscapes are dummies"):
        open_pairs(tmp_path, "test")
    pairs.masks[0].unlink()
    if len(kinds) == 2:
        assert open_pairs(tmp_path, "validation").masks[0].name.endswith("labelIds.png")
    else:
        with pytest.raises(DataError, match=r"bochum_000000_000313_leftImg8bit.png has no mask"):
            open_pairs(tmp_path, "validation")


def test_camvid_layouts(tmp_path: Path) -> None:
    pairs = open_pairs(camvid_tree(tmp_path / "packed"), "train")
    assert pairs.classes.names == ("sky", "road", "car")
    labels = MaskedImages(pairs).read(0).item.labels
    assert set(np.unique(labels)) == {0, 1, 2, IGNORE}
    save_pair(tmp_path / "segnet/val/a.png", tmp_path / "segnet/valannot/a.png", np.array([[0, 11]]))
    pairs = open_pairs(tmp_path / "segnet", "validation")
    assert pairs.classes.names[0] == "Sky"
    np.testing.assert_array_equal(MaskedImages(pairs).read(0).item.labels, [[0, IGNORE]])


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder"):
        open_pairs(tmp_path / "none", "train")
    images, masks = tmp_path / "images/train", tmp_path / "masks/train"
    for name in ("a", "b"):
        save_pair(images / f"{name}.png", masks / f"{name}.png", LABELS)
    with pytest.raises(DataError, match=r'nothing says which classes the masks of .* as \{"class_names": \[...\]\}'):
        open_pairs(tmp_path, "train")
    (masks / "b.png").rename(masks / "c.png")
    with pytest.raises(DataError, match=r"image .*images/train/b.png has no mask; it should be .*masks/train/b.png"):
        open_pairs(tmp_path, "train", num_classes=2)
    (images / "b.png").unlink()
    with pytest.raises(DataError, match=r"mask .*masks/train/c.png has no image"):
        open_pairs(tmp_path, "train", num_classes=2)
    (masks / "c.png").rename(masks / "a.bmp")
    with pytest.raises(DataError, match="differ in their suffix only"):
        open_pairs(tmp_path, "train", num_classes=2)
    (tmp_path / "classes.json").write_text(json.dumps({"class_names": ["x", "y", "z"]}))
    (masks / "a.bmp").unlink()
    with pytest.raises(DataError, match=r"classes.json has 3 classes, not 2; leave num_classes out"):
        open_pairs(tmp_path, "train", num_classes=2)


def test_masks_that_cannot_be_used_are_named_by_their_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_pair(tmp_path / f"images/train/{name}.png", tmp_path / f"masks/train/{name}.png", LABELS)
    Image.fromarray(np.full((2, 2), 7, np.uint8)).save(tmp_path / "masks/train/a.png")
    Image.fromarray(np.zeros((2, 3), np.uint8)).save(tmp_path / "masks/train/b.png")
    reader = MaskedImages(open_pairs(tmp_path, "train", num_classes=2))
    bad = reader.read(0).item
    assert isinstance(bad, BadImage)
    assert bad.name.endswith("masks/train/a.png")
    assert "label 7 is no class" in bad.reason
    bad = reader.read(1).item
    assert bad.name.endswith("masks/train/b.png")
    assert "3x2 pixels, but its image" in bad.reason


def test_masks_of_black_and_white_are_refused_with_a_hint(tmp_path: Path) -> None:
    for number in range(8):
        save_pair(tmp_path / f"images/train/{number}.png", tmp_path / f"masks/train/{number}.png", LABELS * 255)
    with pytest.raises(DataError, match=r"label 255 .* covers 50% of the masks.*mask_values 0 255"):
        check_masks(open_pairs(tmp_path, "train", num_classes=2))
    pairs = open_pairs(tmp_path, "train", num_classes=2, mask_values=(0, 255))
    check_masks(pairs)
    np.testing.assert_array_equal(MaskedImages(pairs).read(0).item.labels, LABELS)
    # 255 beside other classes is what it says
    Image.fromarray(np.array([[0, 1], [255, 0]], np.uint8)).save(tmp_path / "masks/train/3.png")
    check_masks(open_pairs(tmp_path, "train", num_classes=2))


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_turned_image_has_the_mask_of_what_is_seen(tmp_path: Path, orientation: int) -> None:
    image, mask = tmp_path / "images/train/a.jpg", tmp_path / "masks/train/a.png"
    seen = np.zeros((6, 4), np.uint8) if orientation == 6 else np.zeros((4, 6), np.uint8)
    save_pair(image, mask, seen)
    picture = Image.new("RGB", (6, 4))
    exif = picture.getexif()
    exif[0x0112] = orientation
    picture.save(image, exif=exif)
    pairs = open_pairs(tmp_path, "train", num_classes=1)
    reading = MaskedImages(pairs).read(0)
    assert reading.item.labels.shape == seen.shape == reading.item.image.size[::-1]
    assert any("its mask must be of the turned image" in note.text for note in reading.notes)
    raw = MaskedImages(pairs, exif_orientation=False).read(0).item
    if orientation == 3:
        assert raw.labels.shape == (4, 6)
        return
    assert isinstance(raw, BadImage)  # the mask was drawn on the turned image
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(mask)
    bad = MaskedImages(pairs).read(0).item
    assert "behind its EXIF orientation; if masks were drawn without it, set exif_orientation to false" in bad.reason


def test_changed_data_are_noticed(tmp_path: Path) -> None:
    tree = camvid_tree(tmp_path)
    data = SegmentData(training=open_pairs(tree, "train"), evaluation=open_pairs(tree, "validation"))
    before = json.loads(json.dumps(data.to_plain()))
    assert data.change_since(before) is None
    fewer = SegmentData(training=data.training.first(3), evaluation=data.evaluation)
    assert fewer.change_since(before) == "training data: there are 3 images, and were 8"
    before["evaluation"]["digest"] = ""
    assert data.change_since(before) == "evaluation data: the images or masks have other names"


def test_other_classes_are_refused(tmp_path: Path) -> None:
    one = open_pairs(camvid_tree(tmp_path), "train").classes
    (tmp_path / "meta.json").write_text(json.dumps({"class_names": ["sky", "lane", "car", "void"], "ignore_index": 3}))
    other = open_pairs(tmp_path, "train").classes
    with pytest.raises(DataError, match="data calls class 1 'lane', but the network 'road'"):
        require_same_classes(one, other, "data")
