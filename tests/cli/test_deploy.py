"""``deploy``, ``export`` and ``demo`` through ``main([...])``, on the tiny models."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from visionmlp.cli import main
from visionmlp.deploy.certificate import randomise
from visionmlp.models.checkpoint import load_model, save_checkpoint


def test_fresh_weights_are_pointed_out_by_export(checkpoint: Path, tmp_path, capsys) -> None:
    assert main(["export", "resmlp_test", "--output", str(tmp_path / "m.onnx"), "--batch", "1"]) == 0
    assert "random weights" in capsys.readouterr().err
    assert main(["export", str(checkpoint), "--output", str(tmp_path / "n.onnx"), "--batch", "1"]) == 0
    assert capsys.readouterr().err == ""


def test_a_bfloat16_checkpoint(tmp_path, image: Path, capsys) -> None:
    model, _ = load_model("resmlp_test")
    randomise(model)
    path = tmp_path / "half.safetensors"
    save_checkpoint(path, model.bfloat16())
    assert main(["predict", str(path), str(image)]) == 0
    assert capsys.readouterr().err == ""
    for words in (["deploy", "--seconds", "0.02"], ["export", "--output", str(tmp_path / "m.onnx"), "--batch", "1"]):
        assert main([words[0], str(path), *words[1:]]) == 0
        assert capsys.readouterr().err == "note: the checkpoint is in bfloat16; what was written is in float32\n"


def test_deploy_prints_the_certificate_and_needs_force_to_overwrite(checkpoint: Path, capsys) -> None:
    words = ["deploy", str(checkpoint), "--seconds", "0.02", "--batch-size", "3"]
    assert main(words) == 0
    text = capsys.readouterr().out
    written = checkpoint.with_name("model-deploy.safetensors")
    assert "max relative error, float64" in text
    assert "batch 3" in text
    assert f"wrote {written}" in text
    content = written.read_bytes()
    assert main(words) == 2
    assert written.read_bytes() == content
    assert main([*words, "--force"]) == 0


def test_deploy_of_a_name_with_a_checkpoint(checkpoint: Path, tmp_path) -> None:
    output = tmp_path / "out.safetensors"
    words = ["deploy", "resmlp_test", "--checkpoint", str(checkpoint), "--output", str(output), "--seconds", "0.02"]
    assert main(words) == 0
    assert output.is_file()


def test_export(checkpoint: Path, tmp_path, capsys) -> None:
    output = tmp_path / "m.onnx"
    assert main(["export", str(checkpoint), "--output", str(output), "--form", "training", "--opset", "20"]) == 0
    text = capsys.readouterr().out
    assert "batch 1" in text
    assert "batch 5" in text
    session = onnxruntime.InferenceSession(output)
    assert json.loads(session.get_modelmeta().custom_metadata_map["class_names"])[2] == "digit 2"
    assert main(["export", str(checkpoint), "--output", str(output), "--batch", "2", "--force"]) == 0
    assert onnxruntime.InferenceSession(output).get_inputs()[0].shape[0] == 2


def test_demo_runs_in_the_given_folder(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    from visionmlp.recipes import demo

    folders: list[Path] = []
    monkeypatch.setattr(demo, "run", folders.append)
    assert main(["demo", "--output", str(tmp_path)]) == 0
    assert main(["demo"]) == 0
    assert folders == [tmp_path, Path("demo")]


@pytest.mark.parametrize("command", ["eval", "predict", "deploy", "export"])
def test_authors_weights_are_read_with_a_name(command: str, tmp_path, image: Path, capsys) -> None:
    official = tmp_path / "authors.npz"
    torch.manual_seed(0)
    np.savez(official, wrong=np.zeros(3))
    rest = {
        "eval": ["--data", "sklearn/digits"],
        "predict": [str(image)],
        "export": ["--output", str(tmp_path / "x.onnx")],
    }.get(command, [])
    assert main([command, "mlpmixer_test", *rest, "--checkpoint", str(official)]) == 2
    assert "authors.npz does not fit mlpmixer_test" in capsys.readouterr().err
