"""Exported segmentation networks at ``eval`` and ``predict``: what the checkpoint says of the same images."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import visionmlp
from tests.tasks.segment.trees import save_pair, squares
from visionmlp.cli import main
from visionmlp.deploy.export import export_model
from visionmlp.deploy.graphs import Sides
from visionmlp.deploy.session import SessionModel
from visionmlp.tasks.segment.inference import segmenter_logits

pytestmark = pytest.mark.xdist_group("exported_segmenters")

CLASSES = ["sky", "road", "car"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, a graph of it for one size, and images with masks that are larger."""
    folder = tmp_path_factory.mktemp("exported")
    torch.manual_seed(3)
    network = visionmlp.create_segmenter(
        "resmlp_test", head="semantic_fpn", num_classes=3, channels=4, neck_channels=4
    ).eval()
    # a fresh classifier says one class everywhere
    torch.nn.init.normal_(network.decode_head.conv_seg.weight, std=5.0)
    preprocessing = {"mean": [0.4, 0.4, 0.4], "std": [0.3, 0.3, 0.3], "inference": "slide", "window": [32, 32]}
    visionmlp.save_dense(
        folder / "m.safetensors", network, class_names=CLASSES, preprocessing={**preprocessing, "stride": [20, 24]}
    )
    export_model(*visionmlp.load_dense(folder / "m.safetensors"), folder / "m.pt2", batch=2)
    for number in range(3):
        pair = folder / f"data/val/images/{number}.png", folder / f"data/val/masks/{number}.png"
        save_pair(*pair, squares(number, 50, 70), seed=number)
    return folder


def json_of(capsys: pytest.CaptureFixture[str], *words: str | Path) -> list[dict]:
    assert main([*map(str, words), "--json"]) == 0
    out = capsys.readouterr().out
    return [json.loads(out)] if words[0] == "eval" else [json.loads(line) for line in out.splitlines()]


@pytest.mark.parametrize("options", [[], ["--flip", "--stride", "16", "16", "--scales", "0.8", "1.25"]])
def test_a_graph_says_what_the_checkpoint_says(files: Path, options, tmp_path: Path, capsys) -> None:
    answers = {}
    for name in ("m.safetensors", "m.pt2"):
        inputs = [files / name, files / "data/val/images", "--task", "segment", "--output", tmp_path / name]
        answers[name] = json_of(capsys, "predict", *inputs, *options)
    for own, other in zip(*answers.values(), strict=True):
        assert len(own["classes"]) > 1
        assert [part["name"] for part in own["classes"]] == [part["name"] for part in other["classes"]]
        masks = [np.asarray(Image.open(answer["mask"])) for answer in (own, other)]
        assert masks[0].shape == (50, 70)
        assert (masks[0] == masks[1]).mean() > 0.999


def test_scores_are_those_of_the_checkpoint(files: Path, capsys) -> None:
    data = ["--task", "segment", "--data", files / "data"]
    (own,), (other,) = (json_of(capsys, "eval", files / name, *data) for name in ("m.safetensors", "m.pt2"))
    assert other["head"] is None
    assert (own["window"], own["stride"]) == (other["window"], other["stride"]) == ([32, 32], [20, 24])
    assert own["images"] == other["images"] == 3
    assert own["miou"] > 1
    for name in ("miou", "pixel_accuracy", "loss"):
        assert other[name] == pytest.approx(own[name], rel=1e-3)
    assert main(["eval", str(files / "m.pt2"), *map(str, data)]) == 0
    assert "resmlp_test, " in capsys.readouterr().out


def test_what_cannot_be_is_said_in_one_line(files: Path, tmp_path: Path, capsys) -> None:
    graph, checkpoint, images = (str(files / name) for name in ("m.pt2", "m.safetensors", "data/val/images"))
    (tmp_path / "torn.pt2").write_bytes((files / "m.pt2").read_bytes()[:-5000])
    for words, message in (
        ([graph, "--inference", "whole"], "takes 32x32 only; leave out --inference and --window"),
        ([graph, "--window", "32", "64"], "takes 32x32 only"),
        ([graph, "--device", "cuda"], "leave out --device cuda"),
        ([graph, "--runtime", "openvino"], "cannot run in openvino"),
        ([graph, "--threads", "0"], "threads must be at least 1"),
        ([checkpoint, "--runtime", "openvino"], "is no exported file, which openvino needs"),
        ([str(tmp_path / "torn.pt2")], "truncated or not a program"),
        ([str(tmp_path / "none.onnx")], "no file"),
    ):
        assert main(["predict", *words, images, "--task", "segment"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
    assert main(["predict", graph, images]) == 2
    assert "holds a network for segment; give --task segment" in capsys.readouterr().err


def test_a_graph_of_many_sizes_sees_zeros_beyond_an_image() -> None:
    """Of a file that takes multiples of 8 from 24 on, as its logits for the padded image."""

    class Metadata:
        num_classes, input_size, sides = 2, (3, 24, 24), Sides(step=8, least=24)

    class Graph:
        metadata = Metadata()

        def __call__(self, images: np.ndarray) -> np.ndarray:
            assert all(self.metadata.sides.fits(side) for side in images.shape[2:])
            return images[:, :2].cumsum(2)

    images = torch.randn(2, 3, 17, 41)
    logits = segmenter_logits(SessionModel(Graph()))(images)  # type: ignore[arg-type]
    torch.testing.assert_close(logits, images[:, :2].cumsum(2), rtol=0, atol=1e-5)
    assert [Sides(step=8, least=24).fitting(side) for side in (1, 24, 25, 32)] == [24, 24, 32, 32]
