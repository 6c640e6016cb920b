"""Saved networks at predict: damaged files, and pictures that must not take each other's place."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import visionmlp
from visionmlp.cli import main
from visionmlp.tasks.segment.building import own_preparation


def saved(folder: Path, **preprocessing: Any) -> Path:
    """A fresh network."""
    network = visionmlp.create_segmenter(
        "hiremlp_test", head="semantic_fpn", num_classes=3, channels=8, neck_channels=8
    )
    values = {**own_preparation(network.backbone, 3).to_saved(), **preprocessing}
    path = folder / "network.safetensors"
    visionmlp.save_dense(path, network, class_names=["sky", "road", "car"], preprocessing=values)
    return path


def test_pictures_of_one_image_do_not_replace_those_of_another(tmp_path: Path, capsys: Any) -> None:
    network = str(saved(tmp_path))
    for name, size in (("a.jpg", (40, 32)), ("a_overlay.jpg", (48, 40)), ("a.png", (33, 33))):
        Image.new("RGB", size).save(tmp_path / name)
    images = [str(path) for path in sorted(tmp_path.glob("a*"))]
    words = ["predict", network, *images, "--output", str(tmp_path / "out"), "--force", "--json"]
    assert main(words) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    files = [answer[kind] for answer in answers for kind in ("mask", "overlay")]
    assert len({*files}) == 6
    for answer in answers:
        for kind in ("mask", "overlay"):
            with Image.open(answer[kind]) as picture:
                assert picture.size == (answer["width"], answer["height"])
    before = (tmp_path / "a.png").read_bytes()
    for inputs, output, force in ((images, tmp_path, ["--force"]), ([str(tmp_path)], tmp_path / "out", [])):
        assert main(["predict", network, *inputs, "--output", str(output), *force]) == 2
        assert "lies in" in capsys.readouterr().err
    assert (tmp_path / "a.png").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("size_divisor", 0),
        ("size_divisor", "a"),
        ("resize", [0, 0]),
        ("mean", [0.5] * 4),
        ("std", [0.5]),
        ("palette", [[1, 2, 300]] * 3),
        ("palette", [[1, 2, -1]] * 3),
        ("window", [10**9, 10**9]),
    ],
)
def test_hostile_preprocessing_is_one_line(tmp_path: Path, name: str, value: Any, capsys: Any) -> None:
    path = saved(tmp_path, **{name: value})
    Image.new("RGB", (48, 32)).save(tmp_path / "a.png")
    assert main(["predict", str(path), str(tmp_path / "a.png"), "--output", str(tmp_path / "out")]) == 2
    assert "the preprocessing saved with the weights" in capsys.readouterr().err


def test_a_network_that_gives_no_numbers_gives_no_class(tmp_path: Path, capsys: Any) -> None:
    path = saved(tmp_path)
    network, info = visionmlp.load_dense(path)
    with torch.no_grad():
        network.get_parameter("decode_head.conv_seg.weight").fill_(torch.nan)
    visionmlp.save_dense(path, network, class_names=info.class_names, preprocessing=info.preprocessing)
    Image.new("RGB", (48, 32)).save(tmp_path / "a.png")
    assert main(["predict", str(path), str(tmp_path / "a.png")]) == 2
    assert "gives NaN" in capsys.readouterr().err
