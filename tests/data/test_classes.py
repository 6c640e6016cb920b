"""Which output a class is: known by name, synset or number, or refused."""

from pathlib import Path

import pytest
from timm.data import ImageNetInfo

from visionmlp.data.classes import described, imagenet_outputs, names_of_outputs, outputs_by_name
from visionmlp.data.named import DigitsSource
from visionmlp.data.sources import open_evaluation_data
from visionmlp.errors import DataError

from .test_sources import write_images

SYNSETS: list[str] = ImageNetInfo().label_names()
WORDS: list[str] = ImageNetInfo().label_descriptions()


def labels(root: Path, class_names: list[str] | None, num_classes: int | None = None) -> list[int]:
    source = open_evaluation_data(str(root), class_names=class_names, num_classes=num_classes)
    return [source.label(index) for index in range(len(source))]


@pytest.mark.parametrize(
    "class_names",
    [
        None,
        SYNSETS,
        WORDS,
        [words.split(",")[0] for words in WORDS],  # as torchvision: two are cranes
    ],
    ids=["unnamed", "synsets", "words", "first words"],
)
def test_synsets_are_imagenets_outputs(tmp_path: Path, class_names: list[str] | None) -> None:
    write_images(tmp_path, {"n03888257": 1, "n02102040": 2})
    assert labels(tmp_path, class_names, 1000) == [217, 217, 701]


def test_other_releases_of_imagenet_are_told_by_their_size(tmp_path: Path) -> None:
    write_images(tmp_path, {"n03888257": 1, "n02102040": 1})
    for classes, release in ((21843, "imagenet-21k-goog"), (11821, "imagenet-12k")):
        synsets = ImageNetInfo(release).label_names()
        assert labels(tmp_path, None, classes) == [synsets.index("n02102040"), synsets.index("n03888257")]


def test_a_synset_that_a_release_lacks_is_named(tmp_path: Path) -> None:
    write_images(tmp_path, {"n02102040": 1, "n00000000": 1})
    for class_names in (None, SYNSETS, WORDS):
        with pytest.raises(DataError, match="class folder 'n00000000', which is none of the 1000 classes"):
            labels(tmp_path, class_names, 1000)


@pytest.mark.parametrize(
    ("folders", "outputs"),
    [
        (("cat", "dog"), 1000),
        (("cat", "dog"), 2),  # alphabetical order would be a guess
        (("n02102040", "n03888257"), 2),
        (("n02102040", "dog"), 1000),
        (("217", "701"), 1000),
        (("1", "2"), 2),
        (("0", "00"), 2),
        (("0", "²"), 2),
    ],
)
def test_anything_else_is_refused_for_a_model_without_names(
    tmp_path: Path, folders: tuple[str, ...], outputs: int
) -> None:
    write_images(tmp_path, dict.fromkeys(folders, 1))
    with pytest.raises(DataError, match=f"the model does not say what its {outputs} outputs are"):
        labels(tmp_path, None, outputs)


def test_folders_that_are_the_numbers_of_all_outputs_are_those(tmp_path: Path) -> None:
    write_images(tmp_path, {f"{number:03d}": 1 for number in reversed(range(12))})
    assert labels(tmp_path, None, 12) == list(range(12))
    assert names_of_outputs([str(number) for number in range(1000)], 1000) == [str(number) for number in range(1000)]


def test_words_in_another_order_are_not_taken_for_imagenets() -> None:
    with pytest.raises(DataError, match="'n02102040', which is none of the 1000 classes"):
        outputs_by_name(["n02102040"], WORDS[::-1], "it has class")


def test_a_name_that_two_outputs_have_is_refused() -> None:
    assert outputs_by_name(["crane", "crane"], ["crane", "crane"], "") == [0, 1]  # the same list is the same order
    with pytest.raises(DataError, match="'crane', which more than one output"):
        outputs_by_name(["crane"], ["crane", "dog", "crane"], "it has class")


def test_a_dataset_is_numbered_by_name_not_by_position() -> None:
    digits = DigitsSource("validation")
    before = digits.labels.tolist()
    digits.use_classes([str(digit) for digit in reversed(range(10))], 10)
    assert digits.labels.tolist() == [9 - label for label in before]


def test_a_dataset_with_numbers_of_its_own_needs_a_model_of_as_many_outputs() -> None:
    digits = DigitsSource("validation")
    digits.class_names = [f"digit {digit}" for digit in range(10)]
    before = digits.labels.tolist()
    digits.use_classes(None, 10)
    assert digits.labels.tolist() == before
    with pytest.raises(DataError, match="the model does not say what its 1000 outputs are"):
        digits.use_classes(None, 1000)
    with pytest.raises(DataError, match="has 10 classes, but the model 9"):
        digits.use_classes(None, 9)
    with pytest.raises(DataError, match="has class 'digit 0', which is none of the 10 classes"):
        digits.use_classes([str(digit) for digit in range(10)], 10)


@pytest.fixture(scope="module")
def imagenet_v2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image in each of the folders 0 to 999."""
    root = tmp_path_factory.mktemp("v2")
    for number in range(1000):
        (root / str(number)).mkdir()
        (root / str(number) / f"{number:04d}.png").touch()
    return root


@pytest.mark.parametrize(
    ("names", "shift"),
    [
        (None, 0),
        (WORDS, 0),
        (SYNSETS, 0),
        (SYNSETS, 700),  # a model may have them in another order
        ([f"{number:03d}" for number in range(1000)], 1),
    ],
    ids=["unnamed", "words", "synsets", "shifted synsets", "shifted numbers"],
)
def test_imagenet_v2s_folders_are_numbers_of_imagenets_classes(
    imagenet_v2: Path, names: list[str] | None, shift: int
) -> None:
    turned = names and [*names[shift:], *names[:shift]]
    source = open_evaluation_data(str(imagenet_v2), class_names=turned, num_classes=1000)
    assert len(source) == 1000
    for index in range(1000):
        number = int(Path(source.name(index)).parent.name)  # not the order of strings, and not that of the model
        assert source.label(index) == (number - shift) % 1000
    if turned:
        assert source.class_names == turned


def test_numbers_that_are_not_all_of_imagenets_are_refused_by_name(imagenet_v2: Path, tmp_path: Path) -> None:
    some = [str(number) for number in range(1000) if number not in (5, 17)]
    for names in (some, [*some, "5", "1000"]):
        for class_names in (None, SYNSETS):
            folder = tmp_path / str(len(names))
            if not folder.exists():
                for name in names:
                    (folder / name).mkdir(parents=True)
                    (folder / name / "x.png").touch()
            gap = "5 and 1 more are missing" if len(names) == 998 else "1000 is none of them"
            with pytest.raises(DataError, match=gap):
                labels(folder, class_names, 1000)
    # of these models nobody knows that they are for ImageNet
    with pytest.raises(DataError, match="which is none of the 1000 classes"):
        labels(imagenet_v2, [*SYNSETS[:-1], "n00000000"], 1000)
    with pytest.raises(DataError, match="the model does not say what its 21843 outputs are"):
        labels(imagenet_v2, None, 21843)


def test_outputs_of_imagenets_classes() -> None:
    assert imagenet_outputs(None, 1000) == imagenet_outputs(SYNSETS, 1000) == list(range(1000))
    assert imagenet_outputs(WORDS, 1000) == list(range(1000))
    assert imagenet_outputs(SYNSETS[::-1], 1000) == list(range(999, -1, -1))
    assert imagenet_outputs([str(999 - number) for number in range(1000)], 1000) == list(range(999, -1, -1))
    for names, outputs in ((None, 999), (WORDS[::-1], 1000), ([*SYNSETS[:-1], SYNSETS[0]], 1000)):
        assert imagenet_outputs(names, outputs) is None


def test_synsets_are_described_and_other_names_left_alone() -> None:
    assert described(["n02102040", "n03888257"]) == ["English springer", "parachute"]
    for names in (["cat", "n02102040"], ["n00000000"]):
        assert described(names) == names
