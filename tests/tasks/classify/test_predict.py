import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image

from visionmlp.deploy.certificate import randomise
from visionmlp.errors import CheckpointError, InvalidConfig
from visionmlp.models.checkpoint import load_model
from visionmlp.tasks.classify.predict import class_names_of, predict


def save_image(path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def model_and_info():
    model, info = load_model("resmlp_test")
    randomise(model)
    return model, dataclasses.replace(info, class_names=list("abcdefghij"))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    for seed, name in enumerate(("a.png", "b.jpg", "sub/c.PNG")):
        save_image(tmp_path / name, seed)
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_a_folder_without_images_is_named_and_the_others_predicted(model_and_info, folder) -> None:
    (folder / "empty.png").mkdir()
    empty, a = predict(*model_and_info, [str(folder / "empty.png"), str(folder / "a.png")])
    assert empty.image == str(folder / "empty.png")
    assert "no images in this folder" in (empty.error or "")
    assert len(a.classes) == 5


def test_bfloat16_predicts(model_and_info, folder) -> None:
    model, info = model_and_info
    (reference,) = predict(model, info, [str(folder / "a.png")], top_k=10)
    (prediction,) = predict(model.bfloat16(), info, [str(folder / "a.png")], top_k=10)
    other = {score.name: score.probability for score in prediction.classes}
    assert all(other[score.name] == pytest.approx(score.probability, abs=0.1) for score in reference.classes)


@pytest.mark.parametrize("key", ["mean", "std"])
def test_preprocessing_that_does_not_fit_is_refused(key: str, model_and_info, folder) -> None:
    model, info = model_and_info
    info = dataclasses.replace(info, preprocessing={**info.preprocessing, key: (0.5,)})
    with pytest.raises(CheckpointError, match=f"1 values of {key}.* 3 channels"):
        list(predict(model, info, [str(folder)]))
    model, info = load_model("resmlp_test", in_chans=2)
    with pytest.raises(InvalidConfig, match="2 channels"):
        list(predict(model, info, [str(folder)]))


def test_probabilities_are_sorted_and_do_not_depend_on_the_batch(model_and_info, folder) -> None:
    one, many = (list(predict(*model_and_info, [str(folder)], top_k=10, batch_size=n)) for n in (1, 16))
    for single, batched in zip(one, many, strict=True):
        assert single.image == batched.image
        assert [score.name for score in single.classes] == [score.name for score in batched.classes]
        values = [score.probability for score in single.classes]
        assert values == sorted(values, reverse=True)
        assert sum(values) == pytest.approx(1.0, abs=1e-5)
        assert all("abcdefghij"[score.index] == score.name for score in single.classes)
        assert single.lines() == [f"{score.probability:6.1%}  {score.name}" for score in single.classes]
        assert [row["rank"] for row in single.rows()] == list(range(1, 11))


def test_top_k_is_limited_by_the_classes(model_and_info, folder) -> None:
    assert [len(p.classes) for p in predict(*model_and_info, [str(folder / "a.png")], top_k=2)] == [2]
    assert [len(p.classes) for p in predict(*model_and_info, [str(folder / "a.png")], top_k=99)] == [10]


def test_unreadable_images_are_named_and_the_others_predicted(model_and_info, folder) -> None:
    whole = (folder / "a.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    inputs = [str(folder / name) for name in ("cut.png", "a.png", "notes.txt", "missing.png", "b.jpg")]
    cut, a, notes, missing, b = predict(*model_and_info, inputs, batch_size=2)
    assert cut.error
    assert cut.classes == []
    assert "not an image" in (notes.error or "")
    assert missing.error == "no such file"
    (alone,) = predict(*model_and_info, [inputs[1]])
    assert a.classes[0].name == alone.classes[0].name
    assert b.error is None
    assert len(b.classes) == 5


def test_standard_input(model_and_info, folder, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO((folder / "a.png").read_bytes()))
    monkeypatch.setattr("sys.stdin", stream)
    (piped,) = predict(*model_and_info, ["-"])
    (file,) = predict(*model_and_info, [str(folder / "a.png")])
    assert piped.classes == file.classes
    assert piped.image == "-"


def test_preprocessing_comes_from_the_checkpoint(model_and_info, folder) -> None:
    model, info = model_and_info
    shifted = dict(info.preprocessing, mean=(0.9, 0.9, 0.9), std=(0.1, 0.1, 0.1))
    (plain,) = predict(model, info, [str(folder / "a.png")])
    (other,) = predict(model, dataclasses.replace(info, preprocessing=shifted), [str(folder / "a.png")])
    assert plain.classes != other.classes


def test_grey_images_and_grey_models(tmp_path) -> None:
    Image.new("L", (32, 32), 77).save(tmp_path / "g.png")
    for channels in (1, 3):
        model, info = load_model("resmlp_test", in_chans=channels)
        if channels == 1:
            info = dataclasses.replace(info, preprocessing=dict(info.preprocessing, mean=(0.5,), std=(0.5,)))
        (prediction,) = predict(model, info, [str(tmp_path / "g.png")])
        assert prediction.error is None


def test_class_names(model_and_info) -> None:
    model, info = model_and_info
    assert class_names_of(model, dataclasses.replace(info, class_names=None))[3] == "class 3"
    with torch.device("meta"):
        large, large_info = load_model("resmlp_s12")
    assert class_names_of(large, large_info)[0] == "class 0"
    names = class_names_of(large, dataclasses.replace(large_info, source="resmlp_12.pth"))
    assert len(names) == 1000
    assert "tench" in names[0]


def test_what_cannot_work_is_refused(model_and_info, folder) -> None:
    for options in ({"top_k": 0}, {"batch_size": 0}, {"device": "nonesuch"}, {"device": "meta"}):
        with pytest.raises(InvalidConfig):
            list(predict(*model_and_info, [str(folder)], **options))
    headless, info = load_model("resmlp_test", num_classes=0)
    with pytest.raises(InvalidConfig, match="classifier"):
        list(predict(headless, info, [str(folder)]))
