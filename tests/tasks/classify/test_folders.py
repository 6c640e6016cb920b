"""Folders as people have them, through training, evaluation, calibration and prediction."""

import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from visionmlp.cli import main
from visionmlp.deploy.quantize import calibration_images
from visionmlp.errors import DataError
from visionmlp.models.checkpoint import load_model, save_checkpoint
from visionmlp.recipes import evaluate, train
from visionmlp.tasks.classify.figures import read_confusion
from visionmlp.tasks.classify.predict import find_images, predict

from .test_train import config_for

ODD_NAMES = ["$\\frac{$", "1", "Cat", "cat", "²", os.fsdecode(b"caf\xe9")]


def write(root: Path, folders: dict[str, int], name: str = "x{}.png") -> Path:
    for folder, count in folders.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.new("RGB", (36, 36), (20 * number, 9, 9)).save(root / folder / name.format(number))
    return root


def test_class_and_file_names_of_any_bytes_go_through_a_run_and_behind_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(
        tmp_path / os.fsdecode(b"d\xe4ta"),
        {f"{split}/{name}": 2 for split in ("train", "val") for name in ODD_NAMES},
        os.fsdecode(b"\xe9{}.png"),
    )
    run = tmp_path / "run"
    train(config_for(data, run, epochs=1, batch_size=4))
    assert sorted(read_confusion(run / "confusion.csv")[1]) == sorted(ODD_NAMES)
    assert "\\udce4ta" in (run / "report.html").read_text(encoding="utf-8")
    assert (run / "confusion.png").stat().st_size > 1000
    model, info = load_model(run)
    assert info.class_names == read_confusion(run / "confusion.csv")[1]
    assert evaluate(model, info, data=str(data))["images"] == 12
    predictions = list(predict(model, info, [str(data)]))
    assert len(predictions) == 24
    assert not [prediction.error for prediction in predictions if prediction.error]
    capsys.readouterr()
    for command in (["predict", str(run), str(data)], ["eval", str(run)]):
        assert main(command) == 0
    assert capsys.readouterr().err == ""


def test_all_ways_to_images_find_the_same_files(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    root = write(tmp_path, {"cat": 3, "dog": 2, "dog/.ipynb_checkpoints": 2, "cat/more": 1, "__MACOSX": 1})
    write(root, {"dog": 2}, "y{}.WebP")
    (root / "dog/notes.txt").write_text("no image")
    model, info = load_model("repmlpnet_test", num_classes=2)
    save_checkpoint(tmp_path / "m.safetensors", model, class_names=["cat", "dog"])
    model, info = load_model(tmp_path / "m.safetensors")
    assert info.preprocessing is not None
    with pytest.warns(UserWarning, match=r"left out hidden names \(2, such as __MACOSX\)") as lines:
        found = list(find_images([str(root)]))
    assert len(lines) == 1
    assert len(found) == 8
    with pytest.warns(UserWarning, match="hidden names"):
        assert evaluate(model, info, data=str(root))["images"] == 8
    with pytest.warns(UserWarning, match="hidden names"):
        assert len(list(calibration_images(str(root), info.preprocessing))) == 8


@pytest.mark.parametrize("output", [217, 701, 0])
def test_synset_folders_are_scored_against_imagenets_outputs(tmp_path: Path, output: int) -> None:
    write(tmp_path, {"n02102040": 1, "n03888257": 3})
    model, info = load_model("repmlpnet_test", num_classes=1000)
    classifier = model.get_classifier()
    with torch.no_grad():
        classifier.weight.zero_()
        classifier.bias.zero_()
        classifier.bias[output] = 1.0
    result = evaluate(model, info, data=str(tmp_path))
    assert result["top1"] == {217: 25.0, 701: 75.0, 0: 0.0}[output]
    assert result["confusion"][[217, 701], output].tolist() == [1, 3]
    assert result["class_names"][217] == "n02102040"


def test_eval_refuses_what_it_would_have_to_guess(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, {"cat": 1, "dog": 1})
    assert main(["eval", "repmlpnet_test", "--data", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "has class folder 'cat', but the model does not say what its 10 outputs are" in captured.err


def test_an_empty_class_ends_a_run_before_it_begins(tmp_path: Path) -> None:
    data = write(tmp_path / "data", {"train/cat": 4, "train/dog": 4, "train/owl": 0, "val/cat": 1})
    with pytest.raises(DataError, match="no image in class folder 'owl'"):
        train(config_for(data, tmp_path / "run"))
    assert not (tmp_path / "run").exists()
