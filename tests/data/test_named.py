"""Datasets with names: their labels and classes, on stand-ins for what timm opens."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from timm.data import ImageNetInfo

from visionmlp.data import named
from visionmlp.data.sources import open_evaluation_data, open_training_data
from visionmlp.errors import DataError

WORDS = [tuple(words.split(", ")) for words in ImageNetInfo().label_descriptions()]


def stand_in(monkeypatch: pytest.MonkeyPatch, dataset: Any) -> None:
    monkeypatch.setattr(named, "create_dataset", lambda *_, **__: dataset)
    monkeypatch.setattr(named, "require", lambda *_, **__: None)


def hugging_face(targets: list[int | None], names: list[str]) -> Any:
    numbers = {name: number for number, name in enumerate(names)}
    return SimpleNamespace(reader=SimpleNamespace(iter_targets=lambda: targets, class_to_idx=numbers))


def labels(data: str, class_names: list[str] | None, num_classes: int, tmp_path: Any) -> list[int]:
    source = open_evaluation_data(
        data, root=tmp_path, class_names=class_names, num_classes=num_classes, download=data.startswith("hfds")
    )
    return [source.label(index) for index in range(len(source))]


def test_torchvisions_imagenet_is_numbered_as_everyones(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    stand_in(monkeypatch, SimpleNamespace(targets=[217, 134, 517], classes=WORDS))
    synsets: list[str] = ImageNetInfo().label_names()
    assert labels("torch/imagenet", None, 1000, tmp_path) == [217, 134, 517]
    assert labels("torch/imagenet", synsets, 1000, tmp_path) == [217, 134, 517]  # both cranes among them
    assert labels("torch/imagenet", synsets[::-1], 1000, tmp_path) == [782, 865, 482]
    with pytest.raises(DataError, match="class 'teddy', which is none of the 21843 classes"):  # it came later
        labels("torch/imagenet", None, 21843, tmp_path)


def test_a_dataset_of_fewer_classes_than_outputs_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    stand_in(monkeypatch, SimpleNamespace(targets=[0, 1], classes=["airplane", "bird"]))
    with pytest.raises(DataError, match=r"torch/cifar10 \(validation\) has class 'airplane', but the model"):
        labels("torch/cifar10", None, 1000, tmp_path)
    assert labels("torch/cifar10", ["bird", "airplane"], 2, tmp_path) == [1, 0]


def test_classes_are_the_first_column_of_qmnists_labels(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    stand_in(monkeypatch, SimpleNamespace(targets=torch.tensor([[1, 9], [0, 8]]), classes=["0 - zero", "1 - one"]))
    assert labels("torch/qmnist", None, 2, tmp_path) == [1, 0]


@pytest.mark.parametrize("missing", [-1, None])
def test_splits_without_classes_are_refused_before_a_batch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, missing: int | None
) -> None:
    stand_in(monkeypatch, hugging_face([missing, missing, 1], ["cat", "dog"]))
    message = r"hfds/pets \({}\): 2 of 3 images have the label -1"
    with pytest.raises(DataError, match=message.format("train")):
        open_training_data("hfds/pets", download=True)
    for names in (None, ["cat", "dog"]):
        with pytest.raises(DataError, match=message.format("val")):
            labels("hfds/pets", names, 2, tmp_path)


def test_hugging_faces_classes_go_by_name_or_by_number(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    stand_in(monkeypatch, hugging_face([0, 1], ["cat", "dog"]))
    assert labels("hfds/pets", ["dog", "emu", "cat"], 3, tmp_path) == [2, 0]
    stand_in(monkeypatch, hugging_face([0, 2], []))
    assert labels("hfds/pets", ["dog", "emu", "cat"], 3, tmp_path) == [0, 2]
    with pytest.raises(DataError, match="1 of 2 images have the label 2, but the last class is 1"):
        labels("hfds/pets", ["dog", "cat"], 2, tmp_path)
