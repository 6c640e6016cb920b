"""Whole runs: what they leave, exact resumption, evaluation and prediction, and what is refused."""

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.tasks.detect.scenes import COLOURS, make_scenes
from visionmlp.cli import main
from visionmlp.data.videos import Clip, ClipWriter, read_frames
from visionmlp.engine.config import TrainingConfig
from visionmlp.engine.optimization import parameter_groups
from visionmlp.engine.run_folder import RunFolder
from visionmlp.errors import DataError, InvalidConfig, Note
from visionmlp.models.dense_network import load_dense, save_dense
from visionmlp.tasks.detect.annotations import Categories
from visionmlp.tasks.detect.config import DetectConfig
from visionmlp.tasks.detect.run import build_network, open_data, train

TINY: dict[str, Any] = {
    "model": "cyclemlp_test",
    "head": "mask_rcnn",
    "settings": {"fc_channels": 16, "roi_batch": 32, "rpn_post_nms": [40, 40], "score_thresh": 0.0},
    "fpn_channels": 8,
    "min_size": [48, 64],
    "max_size": 96,
    "crop": 0.5,
    "crop_resize": [48],
    "crop_range": [32, 48],
    "photometric": True,
    "epochs": 2,
    "batch_size": 2,
    "lr": 1e-3,
    "num_workers": 0,
    "log_every": 1,
    "save_every": 2,
    "pictures": 2,
    "threads": 1,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    make_scenes(folder, "train", 7, seed=0)
    make_scenes(folder, "val", 5, seed=1)
    return folder


def config_for(data: Path, output: Path, **options: Any) -> DetectConfig:
    return DetectConfig.from_plain({**TINY, "data": str(data), "output": str(output), **options})


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "mask"
    with pytest.warns(Note, match="left out 1 images without objects"):
        train(config_for(data, folder))
    return folder


def test_what_a_run_leaves(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert {"model.safetensors", "report.html", "curves.png", "losses.png", "classes.csv"} <= names
    assert {path.name for path in (run / "pictures").iterdir()} == {"truth.png", "step_0000003.png", "step_0000006.png"}
    rows = RunFolder(run).metrics.rows()
    head = (run / "metrics.csv").read_text().splitlines()[0].split(",")
    assert head[:6] == ["step", "epoch", "ap", "ap50", "ap75", "ap_small"]
    assert {"ap_medium", "ap_large", "mask_ap", "mask_ap50"} <= {*head}
    assert all(0 <= row["ap"] <= row["ap50"] <= 100 for row in rows)
    losses = list(csv.DictReader((run / "train.csv").open()))
    parts = losses[0].keys() - {"step", "epoch", "loss", "lr", "images_per_second"}
    assert len(parts) >= 5
    for row in losses:
        assert float(row["loss"]) == pytest.approx(sum(float(row[part]) for part in parts), rel=1e-5)
    classes = list(csv.DictReader((run / "classes.csv").open()))
    assert [(row["id"], row["class"]) for row in classes] == [("3", "car"), ("7", "cup"), ("90", "kite")]
    assert "Found at step" in (run / "report.html").read_text()


def test_the_checkpoint_says_what_its_labels_are(run: Path) -> None:
    network, info = load_dense(run)
    assert (info.class_names, info.preprocessing["category_ids"]) == (["car", "cup", "kite"], [3, 7, 90])
    assert not network.training


def test_eval_gives_what_the_run_gave(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = max(RunFolder(run).metrics.rows(), key=lambda row: row["ap"])
    results = tmp_path / "results.json"
    assert main(["eval", str(run), "--json", "--output", str(results), "--batch-size", "2"]) == 0
    record = json.loads(capsys.readouterr().out)
    for name in ("ap", "ap50", "mask_ap"):
        assert record[name] == pytest.approx(best[name], abs=1e-6), name
    assert record["images"] == 5
    assert [row["class"] for row in record["classes"]] == ["car", "cup", "kite"]
    found = json.loads(results.read_text())
    assert {one["image_id"] for one in found} <= {100, 101, 102, 103, 104}
    assert {one["category_id"] for one in found} <= COLOURS.keys()
    assert {"image_id", "category_id", "bbox", "score", "segmentation"} == found[0].keys()
    # not again over it; a table for people; another part
    assert main(["eval", str(run), "--output", str(results)]) == 2
    assert "--force" in capsys.readouterr().err
    assert main(["eval", str(run), "--split", "train", "--data", str(data)]) == 0
    table = capsys.readouterr().out
    assert "AP50" in table
    assert "kite" in table


def test_predict(run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, output = data / "images" / "val0.png", tmp_path / "found"
    words = ["predict", str(run), str(image), "--score", "0", "--json", "--output", str(output)]
    assert main(words) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["image"] == str(image)
    assert record["objects"]
    assert {"label", "score", "box", "mask"} == record["objects"][0].keys()
    scores = [one["score"] for one in record["objects"]]
    assert scores == sorted(scores, reverse=True)
    with Image.open(record["picture"]) as picture:
        assert picture.size == (64, 48)
        assert not np.array_equal(np.asarray(picture), np.asarray(Image.open(image)))
    rows = list(csv.DictReader((output / "objects.csv").open()))
    assert len(rows) == len(record["objects"])
    assert rows[0].keys() == {"image", "label", "score", "left", "top", "right", "bottom"}
    assert main(words) == 2
    assert "exists; give another" in capsys.readouterr().err
    # a folder with an image that is none, and one that is given twice
    broken = tmp_path / "images"
    broken.mkdir()
    shutil.copy(image, broken)
    (broken / "broken.png").write_bytes(b"x")
    Image.new("RGB", (3000, 2)).save(broken / "thin.png")
    assert (
        main(["predict", str(run), str(broken), str(image), "--score", "0.999", "--output", str(tmp_path / "b")]) == 2
    )
    captured = capsys.readouterr()
    assert "broken.png: not an image" in captured.err
    assert "thin.png: too thin" in captured.err
    assert "nothing found" in captured.out
    assert {"val0.png", "val0-2.png", "objects.csv"} <= {path.name for path in (tmp_path / "b").iterdir()}
    # pictures do not take the place of the images that they are of
    before = (broken / "val0.png").read_bytes()
    assert main(["predict", str(run), str(broken), "--output", str(broken), "--force"]) == 2
    assert "lies in" in capsys.readouterr().err
    assert (broken / "val0.png").read_bytes() == before


def test_weights_that_are_no_numbers_are_not_nothing_found(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network, info = load_dense(run)
    with torch.no_grad():
        next(network.parameters()).fill_(torch.nan)
    path = tmp_path / "broken.safetensors"
    save_dense(path, network, class_names=info.class_names, preprocessing=info.preprocessing)
    assert main(["predict", str(path), str(data / "images" / "val0.png")]) == 2
    assert "NaN or infinite" in capsys.readouterr().err


@pytest.mark.parametrize("ids", [7, [[3], [7], [90]], [3, 7], [3, 3, 7], "abc"])
def test_category_ids_that_cannot_be(
    run: Path, data: Path, tmp_path: Path, ids: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    network, info = load_dense(run)
    path = tmp_path / "hostile.safetensors"
    save_dense(path, network, class_names=info.class_names, preprocessing={"category_ids": ids})
    assert main(["predict", str(path), str(data / "images" / "val0.png")]) == 2
    assert "category ids" in capsys.readouterr().err


@torch.inference_mode()
def test_what_is_found_does_not_depend_on_the_others_of_a_batch(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [str(data / "images" / "val0.png"), str(tmp_path / "tall.png"), str(data / "images" / "val1.png")]
    with Image.open(images[0]) as image:
        image.resize((30, 96)).save(images[1])
    answers = []
    for size in ("1", "3"):
        assert main(["predict", str(run), *images, "--score", "0", "--json", "--batch-size", size]) == 0
        answers.append([json.loads(line)["objects"] for line in capsys.readouterr().out.splitlines()])
    for alone, together in zip(*answers, strict=True):
        assert alone
        assert [one["label"] for one in alone] == [one["label"] for one in together]
        boxes = [np.array([one["box"] for one in objects]) for objects in (alone, together)]
        np.testing.assert_allclose(*boxes, atol=1e-3)


def test_predict_reads_standard_input(
    run: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = (data / "images" / "val0.png").read_bytes()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert main(["predict", str(run), "-", "--score", "0"]) == 0
    assert "%" in capsys.readouterr().out


def test_predict_draws_into_a_video(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip, out, written = tmp_path / "a.mp4", tmp_path / "out", Clip("a", 8.0)
    with ClipWriter(force=False) as writer:
        for number in range(3):
            writer.write(clip, written, Image.new("RGB", (80, 60), (80 * number, 20, 20)))
    assert main(["predict", str(run), str(clip), "--score", "0", "--output", str(out), "--json"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["image"] for answer in answers] == [f"{clip}#{number}" for number in range(3)]
    assert {answer["picture"] for answer in answers} == {str(out / "a.mp4")}
    assert {frame.image.size for frame in read_frames(str(out / "a.mp4"), "RGB")} == {(80, 60)}
    rows = (out / "objects.csv").read_text().splitlines()[1:]
    assert len(rows) == sum(len(answer["objects"]) for answer in answers) > 0


@pytest.fixture
def _no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visionmlp.tasks.detect.run.write_report", lambda _folder: None)


def states(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(max((folder / "checkpoints").glob("*.safetensors")))


@pytest.mark.usefixtures("_no_report")
@pytest.mark.filterwarnings("ignore::visionmlp.errors.Note")
def test_a_run_begins_with_what_another_has_learnt(run: Path, data: Path, tmp_path: Path) -> None:
    given, info = load_dense(run)
    assert info.class_names is not None
    config = config_for(data, tmp_path, model=str(run), frozen_stages=1)
    names = [*zip([3, 7, 90], info.class_names, strict=True)]
    with pytest.warns(Note, match="all of its weights fit"):
        same = build_network(config, Categories.of(names, ""))
    theirs = given.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in same.state_dict().items())
    assert not next(same.backbone.parameters()).requires_grad
    with pytest.warns(
        Note, match="fresh are head.box_stages.0.cls_score, head.box_stages.0.bbox_pred, head.mask_stages"
    ):
        other = build_network(config, Categories.of([(1, "a"), (2, "b")], ""))
    assert torch.equal(next(other.neck.parameters()), next(same.neck.parameters()))


def test_a_run_that_was_killed_ends_bit_equal(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from visionmlp.engine.loop import _Loop

    stopped = config_for(data, tmp_path / "stopped")
    update, left = _Loop.update, iter(range(5))

    def stop_after_five(self: Any, parts: Any) -> Any:
        if next(left, None) is None:
            raise RuntimeError("killed")
        return update(self, parts)

    monkeypatch.setattr(_Loop, "update", stop_after_five)
    with pytest.raises(RuntimeError, match="killed"):
        train(stopped)
    monkeypatch.setattr(_Loop, "update", update)
    train(stopped, resume=True)
    first, second = states(run), states(stopped.output)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    for name in ("metrics.csv", "classes.csv"):
        assert (run / name).read_text() == (stopped.output / name).read_text()


@pytest.mark.usefixtures("_no_report")
@pytest.mark.filterwarnings("ignore::visionmlp.errors.Note")
def test_images_without_objects_in_bfloat16(tmp_path: Path) -> None:
    for split in ("train", "val"):
        make_scenes(tmp_path, split, 2, seed=0)  # the last one is empty
    config = config_for(
        tmp_path,
        tmp_path / "run",
        head="retinanet",
        settings={},
        empty_images="keep",
        batch_size=1,
        epochs=1,
        precision="bf16-mixed",
        frozen_stages=1,
        pictures=0,
    )
    result = train(config)
    assert result.steps == 2
    assert np.isfinite([row["loss"] for row in RunFolder(config.output).train.rows()]).all()
    assert not (config.output / "pictures").exists()
    assert "mask_ap" not in result.metrics
    before = build_network(config, Categories.of([(3, "car"), (7, "cup"), (90, "kite")], ""))
    after = load_dense(config.output)[0]
    moved = {
        name
        for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True)
        if not torch.equal(old, new)
    }
    assert not any(".stem." in name or ".stages.0." in name for name in moved)
    assert any(".stages.1." in name for name in moved)
    assert any(name.startswith("neck.") for name in moved)


def test_layers_of_the_backbone_learn_more_slowly(data: Path, tmp_path: Path) -> None:
    network = build_network(config_for(data, tmp_path), Categories.of([(1, "a")], ""))
    options = TrainingConfig(output=tmp_path, layer_decay=0.5)
    scales = {
        id(parameter): group["lr_scale"]
        for group in parameter_groups(network, options)
        for parameter in group["params"]
    }
    by_name = {name: scales[id(parameter)] for name, parameter in network.named_parameters()}
    assert {scale for name, scale in by_name.items() if ".model." not in name} == {1.0}
    parts = ["model.stem.", *(f"model.stages.{stage}.blocks.{block}." for stage in range(2) for block in range(2))]
    rates = [{scale for name, scale in by_name.items() if part in name} for part in parts]
    assert rates == [{0.5**5}, {0.5**4}, {0.5**3}, {0.5**2}, {0.5}]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "bf16-true"}, "precision bf16-true rounds boxes"),
        ({"hflip": 2}, "hflip is a probability"),
        ({"min_size": []}, "min_size must be sizes in pixels"),
        ({"min_size": [800], "max_size": 700}, "max_size 700 must be at least the largest of min_size"),
        ({"crop_range": [9, 3]}, "crop_range must be two sizes in pixels, the smaller first"),
        ({"frozen_stages": -2}, "frozen_stages must be at least -1"),
        ({"max_detections": 0}, "max_detections must be at least 1"),
        ({"settings": {"detections_per_img": 5}}, "which is max_detections here; give that"),
        ({"pictures": -1}, "pictures must not be negative"),
        ({"head": "yolo"}, "head must be one of retinanet, faster_rcnn"),
    ],
)
def test_rules(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        config_for(tmp_path, tmp_path, **options)


def test_masks_need_outlines_and_the_rest_of_the_data_the_same_classes(tmp_path: Path) -> None:
    make_scenes(tmp_path, "train", 3, seed=0, masks=False)
    make_scenes(tmp_path, "val", 3, seed=0)
    with pytest.raises(DataError, match=r"train\.json has boxes only, but mask_rcnn learns masks; use faster_rcnn"):
        open_data(config_for(tmp_path, tmp_path))
    with pytest.warns(Note):
        open_data(config_for(tmp_path, tmp_path, head="faster_rcnn"))
    make_scenes(tmp_path, "train", 3, seed=0)
    content = json.loads((tmp_path / "val.json").read_text())
    content["categories"][0]["name"] = "dragon"
    (tmp_path / "val.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="calls category 90 'dragon'"):
        open_data(config_for(tmp_path, tmp_path))


def test_a_part_without_objects_is_refused(tmp_path: Path) -> None:
    make_scenes(tmp_path, "train", 3, seed=0)
    content = json.loads(make_scenes(tmp_path, "val", 3, seed=1).read_text())
    content["images"].reverse()
    (tmp_path / "val.json").write_text(json.dumps(content))
    with pytest.raises(InvalidConfig, match=r"the first 1 images of .*val.json have no object"):
        open_data(config_for(tmp_path, tmp_path, max_images=1))
    assert len(open_data(config_for(tmp_path, tmp_path, max_images=2))[1].images) == 2


def test_refusals_are_one_line(run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["eval", str(run), "--data", str(tmp_path)], "no annotations to evaluate on"),
        (["eval", str(run), "--annotations", "none.json"], "no annotation file"),
        (["predict", str(run), str(data), "--score", "2"], "score must be in [0, 1]"),
        (["predict", str(run), str(data), "--batch-size", "0"], "batch-size must be at least 1"),
        (["eval", str(run / "model.safetensors"), "--force"], "--force is about the file of --output"),
    ):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
