"""Whole runs: they learn, leave what they should, resume bit by bit, and their networks evaluate and predict."""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import visionmlp
from tests.tasks.processes import run as process_run
from visionmlp.cli import main
from visionmlp.data import BadImageLog
from visionmlp.data.videos import Clip, ClipWriter, read_frames
from visionmlp.engine import evaluate
from visionmlp.engine.run_folder import Table
from visionmlp.errors import InvalidConfig, Note
from visionmlp.models.segmenter import Segmenter
from visionmlp.tasks.register import load_task
from visionmlp.tasks.segment.building import (
    Preparation,
    build_network,
    evaluation_batches,
    own_preparation,
    preparation_of,
    shown_numbers,
)
from visionmlp.tasks.segment.classes import numbered
from visionmlp.tasks.segment.config import SegmentConfig
from visionmlp.tasks.segment.layouts import open_pairs
from visionmlp.tasks.segment.loss import SegmentationLoss
from visionmlp.tasks.segment.metrics import SegmentationMetric
from visionmlp.tasks.segment.task import Segmentation

from .trees import camvid_tree, save_pair, squares

COMMON: dict[str, Any] = {
    "task": "segment",
    "model": "hiremlp_test",
    "head": "semantic_fpn",
    "head_channels": 16,
    "neck_channels": 16,
    "crop_size": [32, 32],
    "scale_range": [0.8, 1.25],
    "batch_size": 4,
    "num_workers": 0,
    "threads": 1,
    "log_every": 1,
}
UPERNET: dict[str, Any] = {"head": "upernet", "head_channels": 8, "auxiliary_channels": 4, "neck_channels": None}
FIXED: dict[str, Any] = {**UPERNET, "model": "resmlp_test", "crop_size": None}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return camvid_tree(tmp_path_factory.mktemp("camvid"))


def fields(tree: Path, output: Path, **options: Any) -> dict[str, Any]:
    return {**COMMON, "data": str(tree), "output": str(output), **options}


def config_for(tree: Path = Path("data"), output: Path = Path("run"), **options: Any) -> SegmentConfig:
    return SegmentConfig.from_plain(fields(tree, output, **options))


@pytest.fixture(scope="module")
def trained(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run") / "run"
    load_task("segment").train(config_for(tree, run, max_steps=60, eval_steps=20, lr=2e-2, pictures=2), resume=False)
    return run


def test_a_run_learns_and_says_so(trained: Path) -> None:
    rows = Table(trained / "metrics.csv").rows()
    assert list(rows[0]) == ["step", "epoch", "loss", "miou", "pixel_accuracy"]
    assert [row["step"] for row in rows] == [20, 40, 60]
    assert rows[-1]["miou"] > rows[0]["miou"]
    assert rows[-1]["loss"] < rows[0]["loss"]
    names = {path.name for path in trained.iterdir()}
    assert {"config.yaml", "train.csv", "model.safetensors", "report.html", "curves.png", "classes.csv"} <= names
    table = list(csv.DictReader((trained / "classes.csv").open()))
    assert [row["class"] for row in table] == ["sky", "road", "car"]
    best = max(row["miou"] for row in rows)
    pixels = [int(row["pixels"]) for row in table]
    assert best > 100 * 1.3 * max(pixels) / sum(pixels) / len(pixels)  # than the largest class everywhere
    assert np.mean([float(row["iou"]) for row in table]) == pytest.approx(best, abs=0.02)
    report = (trained / "report.html").read_text()
    assert all(
        word in report for word in ("mIoU", "Learning curves", "Predictions of the best step", "Classes", "road")
    )
    pictures = sorted((trained / "predictions").iterdir())
    assert [path.name for path in pictures] == ["step-000020.png", "step-000040.png", "step-000060.png"]
    with Image.open(pictures[-1]) as page:
        assert page.width > 800  # three columns of 240 pixels high images
        assert page.height > 2 * 240


def test_the_network_comes_back(trained: Path) -> None:
    network, info = visionmlp.load_dense(trained)
    assert isinstance(network, Segmenter)
    assert info.class_names == ["sky", "road", "car"]
    own = own_preparation(network.backbone, network.num_classes)
    preparation = Preparation.from_saved(info.preprocessing, own)
    assert preparation.to_saved() == info.preprocessing
    with pytest.raises(InvalidConfig, match="unknown wings"):
        Preparation.from_saved({**info.preprocessing, "wings": 2}, own)
    with pytest.raises(InvalidConfig, match="does not fit the network"):
        Preparation.from_saved({**info.preprocessing, "palette": [[1, 2, 3]]}, own)
    with pytest.raises(InvalidConfig, match="cannot be used"):
        Preparation.from_saved({**info.preprocessing, "window": 7}, own)


def test_eval_repeats_the_runs_scores(trained: Path, tmp_path: Path, capsys: Any) -> None:
    best = max(Table(trained / "metrics.csv").rows(), key=lambda row: row["miou"])
    assert main(["eval", str(trained), "--json", "--output", str(tmp_path / "classes.csv")]) == 0
    record = json.loads(capsys.readouterr().out)
    for name in ("miou", "pixel_accuracy", "loss"):
        assert record[name] == pytest.approx(best[name], rel=1e-6)
    assert (tmp_path / "classes.csv").read_text() == (trained / "classes.csv").read_text()
    assert list(record["iou"]) == ["sky", "road", "car"]
    assert (record["images"], record["skipped"], record["inference"]) == (4, 0, "whole")
    # sliding windows, scales and mirror images are other scores, on fewer images
    words = ["--inference", "slide", "--window", "32", "32", "--stride", "16", "16", "--flip", "--max-images", "2"]
    assert main(["eval", str(trained), "--json", *words, "--scales", "0.75", "1"]) == 0
    other = json.loads(capsys.readouterr().out)
    assert (other["images"], other["window"], other["scales"], other["flip"]) == (2, [32, 32], [0.75, 1.0], True)
    assert other["loss"] != pytest.approx(record["loss"])
    for stride, expected in ((["--stride", "9", "7"], [9, 7]), ([], [8, 6])):  # less than the training's 21
        assert main(["eval", str(trained), "--json", *words[:2], "--window", "12", "10", *stride]) == 0
        other = json.loads(capsys.readouterr().out)
        assert (other["window"], other["stride"]) == ([12, 10], expected)
    assert main(["eval", str(trained)]) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("mIoU %", "road", "IoU %"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stride", "16", "16"], "--stride is of sliding windows; give --inference slide"),
        (["--inference", "slide", "--window", "16", "16", "--stride", "17", "16"], "pixels between windows"),
        (["--scales", "0"], "scales must be positive"),
        (["--scales", "1e9"], "scales must be positive factors of at most 16"),
        (["--resize", "0", "0"], "resize must be two sides of at least 1 pixel"),
        (["--max-images", "0"], "max-images must be at least 1"),
        (["--data", "nowhere"], "no folder nowhere"),
        (["--force"], "--force is about the file of --output"),
        (["--split", "test"], "has no images and masks of split test"),
        (["--device", "cuda:99"], "cuda"),
    ],
)
def test_eval_refuses_in_one_line(trained: Path, words: list[str], message: str, capsys: Any) -> None:
    assert main(["eval", str(trained), *words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]


def test_predict_writes_indices_and_overlays(trained: Path, tree: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "broken.png").write_text("no image")
    (tmp_path / "other").mkdir()
    Image.new("RGB", (21, 13)).save(tmp_path / "other/000.jpg")  # smaller than what the network takes, and a name twice
    inputs = [str(tree / "val/000.png"), str(tmp_path / "broken.png"), str(tmp_path / "other")]
    words = ["predict", str(trained), *inputs, "--output", str(tmp_path / "out")]
    assert main([*words, "--json"]) == 2
    captured = capsys.readouterr()
    assert "broken.png: not an image" in captured.err
    first, broken, small = map(json.loads, captured.out.splitlines())
    assert broken["error"]
    assert (first["height"], first["width"], small["height"], small["width"]) == (40, 48, 13, 21)
    assert sum(part["share"] for part in first["classes"]) == pytest.approx(1)
    with Image.open(first["mask"]) as mask:
        assert (mask.mode, mask.size) == ("P", (48, 40))
        labels = np.asarray(mask)
    assert {part["index"]: part["pixels"] for part in first["classes"]} == dict(
        zip(*(values.tolist() for values in np.unique(labels, return_counts=True)), strict=True)
    )
    truth = squares(100, ignored=3)
    assert (labels == truth)[truth != 3].mean() > 0.7
    assert Path(small["mask"]).name == "000-2.png"
    with Image.open(first["overlay"]) as picture:
        assert (picture.mode, picture.size) == ("RGB", (48, 40))
    assert main(words) == 2
    assert "exists; give another --output, or --force to replace it" in capsys.readouterr().err
    assert main([*words[:3], "--output", str(tmp_path / "out"), "--force"]) == 0
    assert "%" in capsys.readouterr().out


def test_images_of_different_sizes_are_evaluated_one_by_one(trained: Path, tmp_path: Path) -> None:
    """7 images of 7 sizes: scores at their own size, whatever is loaded at a time."""
    for number, (height, width) in enumerate([(1, 9), (40, 33), (32, 32), (17, 70), (64, 20), (33, 33), (5, 90)]):
        labels = squares(number, height, width) if min(height, width) > 6 else np.zeros((height, width), np.uint8)
        save_pair(tmp_path / f"val/images/{number}.png", tmp_path / f"val/masks/{number}.png", labels, seed=number)
    pairs = open_pairs(tmp_path, "validation", num_classes=3)
    network, info = visionmlp.load_dense(trained)
    assert isinstance(network, Segmenter)
    preparation = Preparation.from_saved(info.preprocessing, own_preparation(network.backbone, network.num_classes))
    found = []
    for size, mode in ((1, "whole"), (4, "whole"), (4, "slide")):
        inference = dataclasses.replace(preparation.inference, mode=mode, window=(32, 32), stride=(20, 20))
        task = Segmentation(3, loss=SegmentationLoss(), inference=inference)
        batches = evaluation_batches(
            pairs,
            preparation.transform(),
            exif_orientation=True,
            batch_size=size,
            num_workers=0,
            log=BadImageLog("stop"),
        )
        found.append(cast("SegmentationMetric", evaluate(task, network, batches, prepare=lambda batch: batch)))
    assert found[0].images == 7
    assert all(metric.confusion.sum() == 9 + 1320 + 1024 + 1190 + 1280 + 1089 + 450 for metric in found)
    assert torch.equal(found[0].confusion, found[1].confusion)
    assert not torch.equal(found[0].confusion, found[2].confusion)


def test_others_cannot_use_it(trained: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(["predict", str(tmp_path), "x.png", "--task", "segment"]) == 2
    assert "no run folder" in capsys.readouterr().err
    assert main(["eval", "resmlp_test", "--task", "segment"]) == 2
    assert "resmlp_test has no head; give the run folder" in capsys.readouterr().err
    assert main(["eval", str(trained), "--task", "classify"]) == 2
    assert "says task" in capsys.readouterr().err


def states(folder: Path) -> dict[str, torch.Tensor]:
    newest = max((folder / "checkpoints").glob("*.safetensors"))
    return {**load_file(newest), **{f"shipped.{k}": v for k, v in load_file(folder / "model.safetensors").items()}}


def test_a_run_begins_with_what_another_has_learnt(trained: Path, tree: Path, tmp_path: Path, capsys: Any) -> None:
    network, info = visionmlp.load_dense(trained)
    start = tmp_path / "start.safetensors"
    visionmlp.save_dense(start, network, class_names=info.class_names, preprocessing={"mean": [0.1, 0.2, 0.3]})
    config = config_for(tree, model=str(start), crop_size=[40, 48])
    with pytest.warns(Note, match="all of its weights fit"):
        same = build_network(config, 3, info.class_names)
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in same.state_dict().items())
    preparation = preparation_of(config, same, numbered(3))
    assert preparation.mean == (0.1, 0.2, 0.3)  # the images of the weights
    for count, names in ((3, ["sky", "car", "road"]), (5, list("abcde"))):
        with pytest.warns(Note, match=r"begins with .*; fresh are decode_head.conv_seg$"):
            other = build_network(config, count, names)
        assert not torch.equal(other.decode_head.conv_seg.weight[:3], same.decode_head.conv_seg.weight)
        assert torch.equal(next(other.neck.parameters()), next(same.neck.parameters()))  # type: ignore[union-attr]
    words = ["train", str(trained), "--task", "segment", "--data", str(tree), "--output", str(tmp_path / "run")]
    small = ["--head-channels", "16", "--neck-channels", "16", "--crop-size", "32", "32", "--batch-size", "4"]
    assert (
        main([*words, "--head", "semantic_fpn", *small, "--max-steps", "1", "--lr", "1e-9", "--num-workers", "0"]) == 0
    )
    best = max(row["miou"] for row in Table(trained / "metrics.csv").rows())
    assert Table(tmp_path / "run" / "metrics.csv").rows()[-1]["miou"] == pytest.approx(best, abs=2)
    capsys.readouterr()
    visionmlp.save_dense(start, visionmlp.reparameterize(network), class_names=info.class_names)
    for model, options, message in (
        (str(start), [], "deploy form"),
        (str(trained), ["--checkpoint", str(start)], "holds weights already"),
        ("hiremlp_test", ["--checkpoint", str(trained / "model.safetensors")], "give it in place of the model"),
    ):
        assert main(["train", model, *words[2:-1], str(tmp_path / "none"), *options]) == 2
        assert message in capsys.readouterr().err


def test_a_killed_run_ends_bit_equal(tree: Path, tmp_path: Path) -> None:
    options = {
        **FIXED,
        "max_steps": 4,
        "eval_steps": 2,
        "save_every": 1,
        "dice_weight": 0.5,
        "ohem_threshold": 0.7,
        "ohem_min_kept": 100,
        "warmup_steps": 2,
        "warmup_ratio": 1e-6,
        "drop_path_rate": 0.2,
        "pictures": 1,
    }
    process_run(fields(tree, tmp_path / "one", **options))
    process_run(fields(tree, tmp_path / "two", **options), stop_after=3)
    process_run(fields(tree, tmp_path / "two", **options, num_workers=1), resume=True)
    one, two = states(tmp_path / "one"), states(tmp_path / "two")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    for name in ("metrics.csv", "classes.csv"):
        assert (tmp_path / "one" / name).read_text() == (tmp_path / "two" / name).read_text()
    for path in (tmp_path / "one/predictions").iterdir():
        assert path.read_bytes() == (tmp_path / "two/predictions" / path.name).read_bytes()


def test_models_of_one_size_have_windows(tree: Path) -> None:
    config = config_for(tree, **FIXED)
    network = build_network(config, 3)
    inference = preparation_of(config, network, numbered(3)).inference
    size = network.backbone.config.img_size
    assert (inference.mode, inference.window) == ("slide", size)
    assert inference.stride == tuple(side * 2 // 3 for side in size)
    for options in ({"inference": "whole"}, {"window": [16, 16]}, {"crop_size": [64, 64]}):
        wrong = config_for(tree, **{**FIXED, **options})
        with pytest.raises(InvalidConfig, match=rf"takes {size[0]}x{size[1]} only.*tile_overlap 0"):
            preparation_of(wrong, network, numbered(3))
    tiled = config_for(tree, **{**FIXED, "tile_overlap": 0, "crop_size": [64, 48]})
    assert preparation_of(tiled, build_network(tiled, 3), numbered(3)).inference.mode == "whole"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_size": [0, 32]}, "crop_size must be two sides of at least 1 pixel"),
        ({"scale_range": [2.0, 1.0]}, "scale_range must be two positive factors, the smaller first"),
        ({"max_class_share": 0.0}, "max_class_share must be in"),
        ({"hflip": 2.0}, "hflip must be in"),
        ({"contrast": 1.5}, "contrast must be in"),
        ({"brightness": -1.0}, "brightness must not be negative"),
        ({"ohem_threshold": 0.0}, "ohem_threshold must be in"),
        ({"head_dropout": 1.0}, "head_dropout must be in"),
        ({"num_classes": 0}, "num_classes must be at least 1"),
        ({"num_classes": 10**9}, "num_classes must be at least 1 and at most 255"),
        ({"mask_values": [0, 256]}, "mask_values must be in 0 to 255"),
        ({"head": "upernet"}, "upernet has no neck; leave neck_channels out"),
        ({"inference": "whole", "stride": [8, 8]}, "stride is of sliding windows"),
        ({"head": "psp"}, "head must be one of upernet, semantic_fpn"),
        ({"eval_batch_size": 0}, "eval_batch_size must be at least 1"),
        ({"auxiliary_channels": -1}, "auxiliary_channels must not be negative"),
    ],
)
def test_rules(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        config_for(**options)


def test_options_reach_the_network(tree: Path) -> None:
    network = build_network(config_for(tree, auxiliary_channels=4, head_dropout=0.3, out_channels=12), 5)
    assert network.options["channels"] == 16
    assert network.options["dropout"] == 0.3
    assert network.auxiliary_head is not None
    assert network.levels.feature_info.channels() == [12] * 4
    assert network.num_classes == 5
    preparation = preparation_of(
        config_for(tree, resize=[96, 48], size_divisor=8, mean=[0.1, 0.2, 0.3], exif_orientation=False),
        network,
        numbered(5),
    )
    assert (preparation.resize, preparation.size_divisor, preparation.mean) == ((96, 48), 8, (0.1, 0.2, 0.3))
    assert not preparation.exif_orientation


def test_shown_images_are_spread() -> None:
    assert shown_numbers(4, 101) == [12, 37, 63, 88]
    assert shown_numbers(4, 2) == [0, 1]
    assert shown_numbers(1, 5) == [2]


def test_a_video_becomes_a_video_of_overlays(trained: Path, tmp_path: Path, capsys: Any) -> None:
    clip, out, written = tmp_path / "drive.mp4", tmp_path / "out", Clip("drive", 8.0)
    with ClipWriter(force=False) as writer:
        for number in range(3):
            pixels = np.full((50, 70, 3), 60 * number, np.uint8)
            writer.write(clip, written, Image.fromarray(pixels))
    assert main(["predict", str(trained), str(clip), "--output", str(out), "--json"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["image"] for answer in answers] == [f"{clip}#{number}" for number in range(3)]
    assert {(answer["height"], answer["width"], answer["mask"]) for answer in answers} == {(50, 70, None)}
    assert [path.name for path in out.iterdir()] == ["drive_overlay.mp4"]
    frames = list(read_frames(str(out / "drive_overlay.mp4"), "RGB"))
    assert [(frame.image.size, frame.clip.rate) for frame in frames] == [((70, 50), 8.0)] * 3
    assert main(["predict", str(trained), str(clip), "--output", str(out)]) == 2
    assert "exists" in capsys.readouterr().err
