"""``export`` in every format, and ``predict`` and ``eval`` of what it wrote, through ``main([...])``."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from visionmlp.cli import main
from visionmlp.deploy.certificate import randomise
from visionmlp.deploy.runtimes import open_session
from visionmlp.models.checkpoint import load_model, save_checkpoint

# one worker makes the files
pytestmark = pytest.mark.xdist_group("cli_export")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A trained-looking checkpoint, class folders of images, and the model in every format."""
    folder = tmp_path_factory.mktemp("served")
    model, _ = load_model("resmlp_test", num_classes=3, depth=1)
    randomise(model)
    save_checkpoint(folder / "model.safetensors", model, class_names=["ant", "bee", "cow"])
    generator = np.random.default_rng(0)
    for name in ("ant", "bee", "cow"):
        (folder / "images" / name).mkdir(parents=True)
        for index in range(4):
            pixels = generator.integers(0, 255, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / name / f"{index}.png")
    for suffix in ("onnx", "xml", "pt2"):
        output = folder / f"model.{suffix}"
        assert main(["export", str(folder / "model.safetensors"), "--output", str(output), "--batch", "5"]) == 0
    return folder


def said(capsys: pytest.CaptureFixture[str], *words: object) -> object:
    """What a command prints as JSON."""
    capsys.readouterr()
    assert main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def answers(capsys, *words: object) -> list[Any]:
    """The lines of a command that answers image by image."""
    assert main([str(word) for word in [*words, "--json"]]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line of a command that fails."""
    capsys.readouterr()
    assert main([*map(str, words)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    return captured.err


SERVED = [
    ("model.onnx", []),
    ("model.onnx", ["--runtime", "openvino"]),
    ("model.xml", ["--threads", "1"]),
    ("model.pt2", ["--runtime", "torch"]),
    ("model.safetensors", ["--runtime", "onnxruntime"]),
    ("model.safetensors", ["--runtime", "openvino"]),
]


@pytest.mark.parametrize(("file", "options"), SERVED)
def test_predictions_are_those_of_the_checkpoint(file: str, options, folder: Path, capsys) -> None:
    expected = answers(capsys, "predict", folder / "model.safetensors", folder / "images")
    given = answers(capsys, "predict", folder / file, folder / "images", *options)
    assert len(given) == len(expected) == 12
    for one, other in zip(given, expected, strict=True):
        assert one["image"] == other["image"]
        assert [score["name"] for score in one["classes"]] == [score["name"] for score in other["classes"]]
        for a, b in zip(one["classes"], other["classes"], strict=True):
            assert a["probability"] == pytest.approx(b["probability"], abs=1e-5)


@pytest.mark.parametrize(("file", "options"), SERVED[:4])
def test_scores_are_those_of_the_checkpoint(file: str, options, folder: Path, capsys) -> None:
    data = ["--data", folder / "images"]
    expected = said(capsys, "eval", folder / "model.safetensors", *data)
    given = said(capsys, "eval", folder / file, *data, *options)
    assert (given["model"], given["form"], given["images"]) == ("resmlp_test", "deploy", 12)
    assert given["top1"] == expected["top1"]
    assert given["loss"] == pytest.approx(expected["loss"], abs=1e-4)


def test_int8_with_calibration(folder: Path, tmp_path, capsys) -> None:
    words = ["export", folder / "model.safetensors", "--output", tmp_path / "m.xml", "--dtype", "int8"]
    assert "needs calibration images" in refused(capsys, *words)
    words += ["--calibration", folder / "images"]
    assert "at least 8 images" in refused(capsys, *words, "--calibration-images", 3)
    assert main([*map(str, words), "--calibration-images", "10"]) == 0
    assert "int8 on 10 calibration images: same class as float32 for " in capsys.readouterr().out
    assert open_session(tmp_path / "m.xml").metadata.dtype == "int8"
    assert said(capsys, "eval", tmp_path / "m.xml", "--data", folder / "images")["images"] == 12


def test_dynamic_size_and_dtype_are_reported(tmp_path, capsys) -> None:
    output = tmp_path / "m.pt2"
    assert main(["export", "cyclemlp_test", "--output", str(output), "--dynamic-size", "--dtype", "bf16"]) == 0
    text = capsys.readouterr().out
    assert "takes images with sides from 16 in steps of 8 pixels" in text
    assert "at batch 5, 16x24: max relative error" in text
    assert "limit 1e-04" not in text
    assert open_session(output)(torch.randn(2, 3, 24, 32).numpy()).shape == (2, 10)


def test_a_format_that_contradicts_the_suffix(folder: Path, tmp_path, capsys) -> None:
    words = ["export", folder / "model.safetensors", "--output", tmp_path / "m.onnx", "--format", "openvino"]
    assert "must end in .xml for --format openvino" in refused(capsys, *words)
    words[3] = tmp_path / "m.tflite"
    assert "must end in .onnx, .xml, .pt2, .safetensors" in refused(capsys, *words[:4])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("file", "options", "message"),
    [
        ("model.pt2", ["--runtime", "openvino"], "cannot run in openvino; .pt2 files run in torch"),
        ("model.xml", ["--device", "cuda"], "leave out --device cuda"),
        ("model.safetensors", ["--device", "cuda", "--runtime", "openvino"], "leave out --device cuda"),
        ("model.xml", ["--pretrained"], "holds weights already"),
        ("model.onnx", ["--threads", "0"], "threads must be at least 1"),
        ("missing.onnx", [], "no file"),
    ],
)
def test_what_cannot_be_served_is_one_line(file: str, options, message: str, folder: Path, capsys) -> None:
    assert message in refused(capsys, "predict", folder / file, folder / "images", *options)
    assert message in refused(capsys, "eval", folder / file, "--data", folder / "images", *options)


@pytest.mark.parametrize("suffix", ["onnx", "xml", "pt2"])
def test_a_truncated_file_is_one_line(suffix: str, folder: Path, tmp_path, capsys) -> None:
    path = tmp_path / f"m.{suffix}"
    path.write_bytes((folder / f"model.{suffix}").read_bytes()[:300])
    assert str(path) in refused(capsys, "predict", path, folder / "images")
