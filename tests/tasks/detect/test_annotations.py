"""What COCO's and VOC's files may hold: read as it is meant, dropped with its id, or refused by name."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as reference

from tests.tasks.detect.scenes import CATEGORIES, make_scenes, rectangle, write_coco
from visionmlp.data.policy import BadImage
from visionmlp.errors import DataError, Note
from visionmlp.tasks.detect.annotations import Categories
from visionmlp.tasks.detect.dataset import open_set
from visionmlp.tasks.detect.outlines import encode, read_outline
from visionmlp.tasks.detect.samples import AnnotatedImages, target_of

IMAGE = {"id": 5, "file_name": "a.png", "width": 64, "height": 48}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    return tmp_path


def annotation(box: Any = (4, 6, 20, 10), **fields: Any) -> dict[str, Any]:
    return {"id": 17, "image_id": 5, "category_id": 7, "bbox": box if isinstance(box, str) else list(box), **fields}


def opened(folder: Path, annotations: list[dict[str, Any]], **parts: Any) -> Any:
    good = annotation((0, 0, 30, 30), id=1)
    write_coco(folder / "train.json", parts.get("images", [IMAGE]), [good, *annotations])
    return open_set(str(folder), "train")


@pytest.mark.parametrize(
    ("file", "name", "place"),
    [
        ("annotations/instances_train2017.json", "a.png", "train2017/a.png"),
        ("instances_train.json", "train2017/a.png", "train2017/a.png"),
        ("train.json", "images/a.png", "images/a.png"),
        ("train/_annotations.coco.json", "a.png", "train/a.png"),
        ("annotations/train.json", "a.png", "images/a.png"),
    ],
)
def test_layouts(tmp_path: Path, file: str, name: str, place: str) -> None:
    write_coco(tmp_path / file, [{**IMAGE, "file_name": name}], [annotation()])
    (tmp_path / place).parent.mkdir(exist_ok=True)
    Image.new("RGB", (64, 48)).save(tmp_path / place)
    (image,) = open_set(str(tmp_path), "train").images
    assert (image.path, image.id, image.size) == (tmp_path / place, 5, (64, 48))
    with pytest.raises(DataError, match="no annotations to evaluate on: looked for annotations/instances_NAME"):
        open_set(str(tmp_path), "validation")


def test_two_files_that_could_be_meant(folder: Path) -> None:
    for year in (2014, 2017):
        write_coco(folder / f"instances_train{year}.json", [IMAGE], [annotation()])
    with pytest.raises(DataError, match=r"instances_train2014.json and instances_train2017.json; say which with --tr"):
        open_set(str(folder), "train")
    assert open_set(str(folder), "train", annotations=Path("instances_train2014.json")).images


def test_labels_follow_ids_and_names_of_the_training_file(folder: Path) -> None:
    objects = [annotation(category_id=one["id"], id=one["id"]) for one in CATEGORIES]
    write_coco(folder / "train.json", [IMAGE], objects)
    write_coco(folder / "val.json", [IMAGE], objects[:2], [CATEGORIES[1], CATEGORIES[0]])
    train = open_set(str(folder), "train")
    assert train.categories == Categories(names=("car", "cup", "kite"), ids=(3, 7, 90))
    val = open_set(str(folder), "validation", known=(train.categories, "train.json"))
    for part in (train, val):
        for one in part.images[0].instances:
            assert part.categories.ids[one.label - 1] == one.id
    zero = Categories.of([(0, "a"), (4, "b")], "x")
    assert zero.labels() == {0: 1, 4: 2}


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ([{"id": 4, "name": "car"}], r"val.json gives category 'car' the id 4, but in train.json it is 3"),
        ([{"id": 3, "name": "cup"}], r"val.json gives category 'cup' the id 3, but in train.json it is 7"),
        ([{"id": 3, "name": "dog"}], r"val.json calls category 3 'dog', but in train.json it is 'car'"),
        ([{"id": 1, "name": "dog"}], r"val.json has a category 'dog' \(id 1\) that train.json does not have"),
        ([{"id": 3, "name": "car"}, {"id": 3, "name": "x"}], "two categories of id 3"),
        ([{"id": 3, "name": "car"}, {"id": 4, "name": "car"}], "two categories of name 'car'"),
        ([], "has no categories"),
        ([{"id": "3", "name": "car"}], "a category needs a whole number as id and a name"),
    ],
)
def test_categories_that_conflict(folder: Path, categories: list[dict[str, Any]], message: str) -> None:
    write_coco(folder / "val.json", [IMAGE], [], categories)
    known = (Categories.of([(one["id"], one["name"]) for one in CATEGORIES], ""), "train.json")
    with pytest.raises(DataError, match=message):
        open_set(str(folder), "validation", known=known)


@pytest.mark.parametrize(
    "box",
    [
        (10, 10, 0, 5),
        (10, 10, 5, -2),
        (70, 10, 5, 5),
        (-9, 3, 8, 8),
        (float("nan"), 0, 5, 5),
        (0, 0, 1e999, 5),
        (0, 0, 10**400, 5),
    ],
)
def test_boxes_without_area_are_dropped_by_id(folder: Path, box: Any) -> None:
    with pytest.warns(Note, match=r"train.json: left out 1 annotation \(17\) whose boxes have no area in the image"):
        images = opened(folder, [annotation(box)]).images
    assert [one.id for one in images[0].instances] == [1]


def test_boxes_are_cut_at_the_edge_and_thin_ones_not_learnt(folder: Path) -> None:
    boxes = [(-5, 40, 20, 20), (10, 10, 0.2, 9), (63.5, 0, 10, 10)]
    (image,) = opened(folder, [annotation(box, id=place) for place, box in enumerate(boxes, start=2)]).images
    assert [one.box for one in image.instances][1:] == boxes  # what is scored stays as the file has it
    target = target_of(image, masks=False)
    assert target["boxes"].tolist() == [[0, 0, 30, 30], [0, 40, 15, 48]]
    assert target["labels"].tolist() == [2, 2]


@pytest.mark.parametrize("masks", [False, True])
def test_images_without_objects_have_targets_of_their_shape(folder: Path, masks: bool) -> None:
    (image,) = opened(folder, []).images
    empty = target_of(image.__class__(5, image.path, "a", (64, 48), ()), masks=masks)
    shapes = {name: tuple(value.shape) for name, value in empty.items()}
    assert shapes == {"boxes": (0, 4), "labels": (0,), "iscrowd": (0,), **({"masks": (0, 48, 64)} if masks else {})}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("images"), "it has no list 'images'"),
        (lambda c: c["images"].append(dict(IMAGE)), "lists 1 images twice, such as id 5"),
        (lambda c: c["images"].append({**IMAGE, "id": 6}), "lists 1 images twice, such as file_name 'a.png'"),
        (lambda c: c["images"].append({**IMAGE, "id": 6, "file_name": "b.png"}), "1 of the 2 images .* such as b.png"),
        (lambda c: c["images"][0].update(file_name="b.png"), "none of the 1 images of .* is there, such as b.png"),
        (lambda c: c["annotations"][0].update(category_id=1), "annotation 17 has category_id 1, which is none"),
        (lambda c: c["annotations"][0].update(category_id=[7]), r"annotation 17 has category_id \[7\], which is none"),
        (lambda c: c["annotations"][0].update(iscrowd="0"), "annotation 17 has iscrowd '0'; it is 0 or 1"),
        (lambda c: c["annotations"][0].pop("bbox"), "annotation 17 needs bbox"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), "annotation 17 needs bbox"),
        (lambda c: c["annotations"][0].update(iscrowd=1), "all 1 annotations are crowds or left out"),
        (lambda c: c["annotations"].clear(), "has no object: no annotation can be used"),
        (lambda c: c.update(images=[3]), "an entry of 'images' is no object"),
    ],
)
def test_files_that_cannot_be_used(folder: Path, change: Callable[[Any], Any], message: str) -> None:
    content = {"images": [dict(IMAGE)], "annotations": [annotation()], "categories": CATEGORIES}
    change(content)
    (folder / "train.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        open_set(str(folder), "train")


def test_what_is_no_json_or_folder(folder: Path) -> None:
    (folder / "train.json").write_text("{")
    with pytest.raises(DataError, match="is no JSON"):
        open_set(str(folder), "train")
    with pytest.raises(DataError, match=r"no annotation file .*other\.json"):
        open_set(str(folder), "train", annotations=Path("other.json"))
    with pytest.raises(DataError, match=r"no folder .*nowhere"):
        open_set("nowhere", "train", root=folder)


@pytest.mark.parametrize("area", [float("nan"), -3, pytest.param(10**400, id="huge"), "9", None])
def test_areas_that_are_none_are_computed(folder: Path, area: Any) -> None:
    (image,) = opened(folder, [annotation(area=area)]).images
    assert image.instances[1].area == 20 * 10


def test_annotations_of_images_that_are_not_listed(folder: Path) -> None:
    with pytest.warns(Note, match=r"left out 1 annotation \(17\) of images that the file does not list"):
        opened(folder, [annotation(image_id=9)])


def test_crowds_in_every_form(folder: Path) -> None:
    mask = np.zeros((48, 64), np.uint8)
    mask[5:20, 7:30] = 1
    compressed = reference.encode(np.asfortranarray(mask))
    lengths = [7 * 48 + 5, *[15, 33] * 22, 15, 34 * 48 + 28]
    forms = {
        "lengths": {"size": [48, 64], "counts": lengths},
        "compressed": {"size": [48, 64], "counts": compressed["counts"].decode()},
    }
    objects = [
        annotation(segmentation=form, iscrowd=crowd, id=f"{name}{crowd}")
        for name, form in forms.items()
        for crowd in (0, 1)
    ]
    (image,) = opened(folder, objects).images
    for one in image.instances[1:]:
        assert one.outline is not None
        assert np.array_equal(one.outline.mask(), mask)
        assert one.area == mask.sum()
    assert [one.crowd for one in image.instances] == [False, False, True, False, True]  # missing is no crowd
    target = target_of(image, masks=True)
    assert target["iscrowd"].tolist() == [0, 0, 1, 0, 1]
    assert target["masks"].sum((1, 2)).tolist() == [0, *[mask.sum()] * 4]


@pytest.mark.parametrize(
    ("segmentation", "parts", "problem"),
    [
        ([[10, 10, 20, 20]], 0, "1 of 1 polygons with under three points"),
        ([[]], 0, "1 of 1 polygons"),
        ([], 0, None),
        (None, 0, None),
        ([rectangle(2, 2, 9, 9), [1, 2, 3, 4, 5]], 1, "1 of 2 polygons"),
        (rectangle(2, 2, 9, 9), 1, None),
        ([rectangle(-20, -20, 40, 40)], 1, None),
        ([rectangle(2, 2, float("inf"), 9)], 0, "1 of 1 polygons"),
        ([rectangle(2, 2, 10**400, 9)], 0, "1 of 1 polygons"),
        ([rectangle(2, 2, 1e9, 9)], 0, "1 of 1 polygons .*too large numbers"),  # the compiled code would not come back
        ("text", 0, "neither polygons nor run lengths"),
        ({"size": [48, 65], "counts": [48 * 65]}, 0, r"a mask of size \[48, 65\], not of the image's \[48, 64\]"),
        ({"size": [48, 64], "counts": [5]}, 0, "run lengths of 5 pixels, not the image's 3072"),
        ({"size": [48, 64], "counts": [-1, 3073]}, 0, "no numbers from 0 on"),
        ({"size": [48, 64], "counts": "zzz!"}, 0, "run lengths that cannot be read"),
        ({"size": [48, 64], "counts": "o"}, 0, "they are cut off"),
        ({"size": [48, 64]}, 0, "run lengths of 0 pixels"),
    ],
)
def test_outlines(folder: Path, segmentation: Any, parts: int, problem: str | None) -> None:
    outline, said = read_outline(segmentation, (64, 48))
    assert (0 if outline is None else len(outline.polygons)) == parts
    if problem is None:
        assert said is None
    else:
        with pytest.warns(Note, match=rf"{problem}.*; {'the rest is used' if parts else 'used without an outline'}"):
            (image,) = opened(folder, [annotation(segmentation=segmentation)]).images
        assert image.instances[1].id == 17  # the box still counts
    if outline is not None:
        expected = reference.decode(reference.merge(reference.frPyObjects([list(outline.polygons[0])], 48, 64)))
        assert np.array_equal(outline.mask(), expected)
        assert outline.mask().any()


def test_objects_without_an_outline_are_no_targets_for_masks(folder: Path) -> None:
    outlined = annotation(segmentation=[rectangle(4, 6, 20, 10)], id=18)
    images = opened(folder, [outlined])
    with pytest.warns(Note, match=r"1 annotation \(1\) without an outline, left out of training with masks"):
        (image,) = images.for_masks().images
    assert [one.id for one in image.objects] == [18]


def test_run_lengths_are_those_of_pycocotools() -> None:
    mask = np.random.default_rng(0).random((37, 23)) < 0.4
    assert encode(mask) == reference.encode(np.asfortranarray(mask, np.uint8))


def test_images_of_another_size_than_their_annotations(folder: Path) -> None:
    images = opened(folder, [], images=[{**IMAGE, "width": 65}])
    item = AnnotatedImages(images, mode="RGB", masks=False).read(0).item
    assert item == BadImage("a.png", "it is 64 x 48 pixels, but its annotations are of 65 x 48")
    images = opened(folder, [], images=[{key: IMAGE[key] for key in ("id", "file_name")}])
    assert images.images[0].size == (64, 48)  # the file's, where the JSON does not say


def test_exif_turns_only_what_was_annotated_so(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48)).save(folder / "a.jpg", exif=exif)
    for size, turned in (((64, 48), False), ((48, 64), True)):
        images = opened(folder, [], images=[{**IMAGE, "file_name": "a.jpg", "width": size[0], "height": size[1]}])
        assert AnnotatedImages(images, mode="RGB", masks=False).read(0).item.image.size == size
        never = AnnotatedImages(images, mode="RGB", masks=False, exif_orientation=False).read(0).item
        assert isinstance(never, BadImage) == turned


def test_a_summary_notices_what_changes(folder: Path) -> None:
    before = opened(folder, []).summary()
    assert before.change_to(opened(folder, []).summary()) is None
    assert "class 'cup' had 1 objects and has 2" in str(before.change_to(opened(folder, [annotation()]).summary()))
    moved = opened(folder, []).images[0]
    write_coco(folder / "train.json", [IMAGE], [annotation((0, 0, 30, 31), id=1)])
    assert moved.size == (64, 48)
    assert (
        before.change_to(open_set(str(folder), "train").summary()) == "images or boxes are others, or in another order"
    )


XML = "<annotation><filename>x.jpg</filename><size><width>64</width><height>48</height></size>{}</annotation>"
OBJECT = """<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax>
<ymax>{}</ymax></bndbox></object>"""


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / name).mkdir(parents=True)
    for name, objects in {
        "2007_1": OBJECT.format("dog", 0, 1, 1, 64, 48) + OBJECT.format("cat", 1, 5, 6, 14, 15),
        "2007_2": OBJECT.format("cat", 0, 5, 6, 14, 15),
    }.items():
        (tmp_path / "Annotations" / f"{name}.xml").write_text(XML.format(objects))
        Image.new("RGB", (64, 48)).save(tmp_path / "JPEGImages" / f"{name}.jpg")
    (tmp_path / "ImageSets/Main/train.txt").write_text("2007_1\n2007_2\n")
    (tmp_path / "ImageSets/Main/val.txt").write_text("2007_2\n")
    return tmp_path


def test_voc(voc: Path) -> None:
    train = open_set(str(voc), "train")
    assert train.categories == Categories(names=("cat", "dog"), ids=(1, 2))
    first, second = train.images
    assert first.instances[0].box == (0, 0, 64, 48)  # counted from 1, and the last pixel belongs to it
    assert [(one.label, one.crowd) for one in first.instances] == [(2, False), (1, True)]
    assert second.instances[0].box == (4, 5, 10, 10)
    val = open_set(str(voc), "validation", known=(train.categories, "train"))
    assert [image.id for image in val.images] == ["2007_2"]
    assert AnnotatedImages(val, mode="RGB", masks=False).read(0).item.target["labels"].tolist() == [1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("<!DOCTYPE a [<!ENTITY b 'c'>]>" + XML.format(""), "declares a document type"),
        ("<annotation>", "is no XML"),
        (XML.format("<object><name>dog</name></object>"), "object 1 has no <bndbox>"),
        (XML.format(OBJECT.format("dog", 0, "x", 1, 9, 9)), "<xmin> is 'x', no number"),
        (XML.format(OBJECT.format("", 0, 1, 1, 9, 9)), "<object> has no <name>"),
        ("<annotation></annotation>", "has no <size>"),
        (XML.format("").replace(">64<", ">nan<"), "the <width> of its <size> is nan"),
        (XML.format("").replace(">64<", ">0<"), "the <width> of its <size> is 0; write the image's"),
    ],
)
def test_voc_files_that_cannot_be_used(voc: Path, change: str, message: str) -> None:
    (voc / "Annotations/2007_1.xml").write_text(change)
    with pytest.raises(DataError, match=message):
        open_set(str(voc), "train")


def test_voc_lists(voc: Path) -> None:
    listed = voc / "ImageSets/Main/train.txt"
    listed.write_text("2007_1\n2007_3\n")
    with pytest.raises(DataError, match=r"no annotation .*2007_3.xml"):
        open_set(str(voc), "train")
    shutil.copy(voc / "Annotations/2007_1.xml", voc / "Annotations/2007_3.xml")
    with pytest.raises(DataError, match=r"1 of the 2 images of .* are missing in .*JPEGImages, such as 2007_3.jpg"):
        open_set(str(voc), "train")
    listed.write_text("2007_1\n2007_1\n")
    with pytest.raises(DataError, match="lists 1 images twice, such as 2007_1"):
        open_set(str(voc), "train")
    listed.write_text("2007_1\n")
    known = (Categories.of([(1, "cat")], ""), "the model")
    with pytest.raises(DataError, match="has a category 'dog' that the model does not have"):
        open_set(str(voc), "train", known=known)
    (voc / "Annotations/2007_1.xml").write_text(
        XML.format(OBJECT.format("dog", 0, 9, 9, 5, 20) + OBJECT.format("cat", 0, 5, 6, 14, 15))
    )
    with pytest.warns(Note, match=r"left out 1 annotation \(2007_1#1\)"):
        open_set(str(voc), "train")


def test_good_data_say_nothing(tmp_path: Path) -> None:
    make_scenes(tmp_path, "train", 3, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = open_set(str(tmp_path), "train")
    assert images.has_outlines
    assert len(images.images) == 3
    assert len(images.with_objects().images) == 2
