"""Whole runs on image folders: what they leave, exact resumption after SIGKILL, several processes, bad images."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from visionmlp.cli import main
from visionmlp.data.packing import pack
from visionmlp.engine.run_folder import Table
from visionmlp.errors import DataError, InvalidConfig, RunFolderError
from visionmlp.models.checkpoint import load_model
from visionmlp.recipes import ClassifyConfig, evaluate, read_config, train
from visionmlp.report.page import _reproduction
from visionmlp.tasks.classify.figures import read_confusion
from visionmlp.tasks.classify.task import Classification

EVERYTHING: dict[str, Any] = {
    "epochs": 4,
    "batch_size": 8,
    "accumulate": 2,
    "log_every": 1,
    "save_every": 3,
    "drop_path_rate": 0.3,
    "model_args": {"drop_rate": 0.3},
    "ema_decay": 0.9,
    "mixup": 0.4,
    "cutmix": 1.0,
    "label_smoothing": 0.1,
    "auto_augment": "rand-m9-mstd0.5-inc1",
    "erasing": 0.25,
    "clip_grad": 1.0,
    "warmup_epochs": 1.0,
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes that differ in brightness: 40 images to train, 12 held out."""
    root = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for split, count in (("train", 20), ("val", 6)):
        for level, name in enumerate(("dark", "light")):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(100 * level, 100 * level + 150, (36, 36, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


def config_for(images: Path, output: Path, **options: Any) -> ClassifyConfig:
    defaults: dict[str, Any] = {
        "model": "repmlpnet_test",
        "epochs": 2,
        "batch_size": 8,
        "num_workers": 0,
        "accelerator": "cpu",
    }
    return ClassifyConfig(data=str(images), output=output, **{**defaults, **options})


def untimed(path: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in Table(path).rows()]


def assert_same_end(a: Path, b: Path) -> None:
    weights = [sorted((run / "checkpoints").glob("*.safetensors"))[-1] for run in (a, b)]
    assert weights[0].name == weights[1].name
    for left, right in (weights, (a / "model.safetensors", b / "model.safetensors")):
        left, right = load_file(left), load_file(right)
        assert left.keys() == right.keys()
        assert all(torch.equal(left[name], right[name]) for name in left)
    for name in ("train.csv", "metrics.csv"):
        assert untimed(a / name) == untimed(b / name)


def test_a_run_folder_holds_everything(images: Path, tmp_path: Path) -> None:
    config = config_for(images, tmp_path / "run", epochs=5, lr=3e-3, crop="center")
    result = train(config)
    assert result.metrics["top1"] == 100.0
    assert result.folder == tmp_path / "run"
    names = {path.name for path in result.folder.iterdir()}
    assert names == {
        *("config.yaml", "data.json", "environment.json", "train.csv", "metrics.csv", "checkpoints"),
        *("model.safetensors", "confusion.csv", "curves.png", "confusion.png", "report.html"),
    }
    report = (result.folder / "report.html").read_text()
    assert report.count('src="data:image/png;base64,') == 2
    assert "100.00 %" in report
    for option in ("drop_path_rate", "batch_size", "repmlpnet_test"):
        assert option in report
    assert read_config(result.folder).to_plain() == config.to_plain()
    model, info = load_model(result.folder)
    assert info.class_names == ["dark", "light"]
    evaluation = evaluate(model, info, data=str(images), batch_size=5)
    assert {name: evaluation[name] for name in ("top1", "top5", "loss")} == pytest.approx(result.metrics)
    assert evaluation["confusion"].tolist() == [[6, 0], [0, 6]]
    confusion, names = read_confusion(result.folder / "confusion.csv")
    assert (confusion.tolist(), names) == ([[6, 0], [0, 6]], ["dark", "light"])
    assert (evaluation["images"], evaluation["skipped"]) == (12, 0)
    with pytest.raises(RunFolderError, match="exists already"):
        train(config)
    with pytest.raises(InvalidConfig, match="was started with epochs = 5, not 6"):
        train(config_for(images, tmp_path / "run", epochs=6, lr=3e-3, crop="center"), resume=True)


def test_routed_experts_are_not_compiled(images: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="compile does not take routed experts"):
        train(config_for(images, tmp_path / "run", model="sparsemlp_moe_test", compile=True))
    with pytest.raises(InvalidConfig, match="strategy ddp alone"):
        config_for(images, tmp_path / "run", compile=True, strategy="fsdp")


def test_routed_experts_are_told_of(images: Path, tmp_path: Path) -> None:
    config = config_for(images, tmp_path / "run", model="sparsemlp_moe_test", log_every=2, accumulate=2)
    folder = train(config).folder
    rows = Table(folder / "router.csv").rows()
    assert [row["step"] for row in rows] == [row["step"] for row in Table(folder / "train.csv").rows()]
    for row in rows:
        assert sum(row[f"block3.channel.load{i}"] for i in range(3)) == pytest.approx(1)
        assert row["balance"] > 0
        assert 0 <= row["block2.token.overflow"] < 1
        assert 0 < row["block2.token.entropy"] <= 1
    assert (folder / "report.html").read_text().count('src="data:image/png;base64,') == 3
    assert (folder / "router.png").exists()


def test_a_run_killed_by_sigkill_ends_bit_equal(images: Path, tmp_path: Path) -> None:
    train(config_for(images, tmp_path / "whole", **EVERYTHING))
    killed = config_for(images, tmp_path / "killed", num_workers=2, **EVERYTHING)
    process = subprocess.Popen(
        [sys.executable, "-c", _SCRIPT.format(options=killed.to_plain())], stderr=subprocess.PIPE, env=_environment()
    )
    table, deadline = tmp_path / "killed/train.csv", time.monotonic() + 60
    while len(Table(table).rows()) < 9:  # in the middle of the second epoch of five steps, behind step 6's checkpoint
        assert process.poll() is None, process.stderr and process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 9 <= len(Table(table).rows()) < 20
    newest = sorted((tmp_path / "killed/checkpoints").glob("*.state"))[-1]
    newest.write_bytes(newest.read_bytes()[:-40])
    with pytest.warns(UserWarning, match="is damaged .*; trying an earlier one"):
        # with another number of workers
        train(config_for(images, tmp_path / "killed", **EVERYTHING), resume=True)
    assert_same_end(tmp_path / "whole", tmp_path / "killed")
    assert [row["step"] for row in untimed(table)] == list(range(1, 21))


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_run_resumes_bit_equal_and_trains_what_a_plain_one_does(images: Path, tmp_path: Path) -> None:
    options = {"model": "resmlp_test", "model_args": {"depth": 2}, "log_every": 1, "save_every": 3}

    def whole(name: str, **more: Any) -> Path:
        return train(config_for(images, tmp_path / name, **options, **more)).folder

    plain = whole("plain")
    graphs = torch._dynamo.utils.counters["stats"]
    graphs.clear()
    compiled = whole("compiled", compile=True)
    assert graphs["unique_graphs"] >= 2  # of a training step and of an evaluation
    losses = [[row["loss"] for row in untimed(folder / "train.csv")] for folder in (plain, compiled)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    names = [set(load_file(folder / "model.safetensors")) for folder in (plain, compiled)]
    assert names[0] == names[1]

    # with random numbers within the graph
    options |= {"ema_decay": 0.9, "accumulate": 2, "compile": True}
    all_paths, dropped = whole("paths"), whole("dropped", drop_path_rate=0.3)
    options |= {"drop_path_rate": 0.3}
    first, other = (untimed(folder / "train.csv")[0]["loss"] for folder in (all_paths, dropped))
    assert abs(first - other) > 1e-5 * first  # rounding is 1e-7

    def stop(_self: Classification, _model: nn.Module, step: int, _processes: Any) -> None:
        if step == 7:  # in the second epoch, behind step 6's checkpoint
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Classification, "after_step", stop)
        with pytest.raises(KeyboardInterrupt):
            whole("stopped")
    train(config_for(images, tmp_path / "stopped", **options), resume=True)
    assert_same_end(dropped, tmp_path / "stopped")


def test_two_processes_train_what_one_does(images: Path, tmp_path: Path) -> None:
    """ResMLP has no statistics over the batch, so only rounding differs; shards are read as their folder is."""
    pack(images, tmp_path / "shards", images_per_shard=15)
    options: dict[str, Any] = {"model": "resmlp_test", "epochs": 2, "log_every": 1, "auto_augment": "rand-m5-inc1"}
    train(config_for(images, tmp_path / "one", **options))
    two = config_for(tmp_path / "shards", tmp_path / "two", devices=2, num_workers=2, **options)
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT.format(options=two.to_plain()))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300, env=_environment())
    assert done.returncode == 0, done.stderr
    for one, other in zip(untimed(tmp_path / "one/train.csv"), untimed(tmp_path / "two/train.csv"), strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    rows = [untimed(tmp_path / name / "metrics.csv") for name in ("one", "two")]
    assert [row["loss"] for row in rows[0]] == pytest.approx([row["loss"] for row in rows[1]], rel=1e-3)


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_two_compiled_processes_train_what_one_does(images: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"model": "resmlp_test", "model_args": {"depth": 1}, "epochs": 1, "log_every": 1}
    train(config_for(images, tmp_path / "one", **options))
    two = config_for(images, tmp_path / "two", devices=2, compile=True, **options)
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT.format(options=two.to_plain()) + _GRAPHS)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300, env=_environment())
    assert done.returncode == 0, done.stderr
    for one, other in zip(untimed(tmp_path / "one/train.csv"), untimed(tmp_path / "two/train.csv"), strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_a_truncated_image_stops_or_is_skipped_as_asked(images: Path, tmp_path: Path) -> None:
    root = tmp_path / "images"
    for path in images.rglob("*.png"):
        copy = root / path.relative_to(images)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    for name in ("train/dark/3.png", "val/light/2.png"):
        (root / name).write_bytes((root / name).read_bytes()[:200])
    with pytest.raises(DataError, match=r"cannot read image .*(dark/3|light/2).png"):
        train(config_for(root, tmp_path / "stop", num_workers=1))
    with pytest.warns(UserWarning, match="skipped image"):
        train(config_for(root, tmp_path / "skip", on_bad_image="skip"))
    listed = [line.split("\t")[0] for line in (tmp_path / "skip/bad_images.txt").read_text().splitlines()]
    assert sorted(listed) == [str(root / "train/dark/3.png"), str(root / "val/light/2.png")]
    assert "Images left out" in (tmp_path / "skip/report.html").read_text()
    model, info = load_model(tmp_path / "skip")
    with pytest.warns(UserWarning, match="light/2.png"):
        evaluation = evaluate(model, info, data=str(root), on_bad_image="skip")
    assert (evaluation["images"], evaluation["skipped"]) == (11, 1)


def test_nothing_is_written_before_everything_is_checked(images: Path, tmp_path: Path) -> None:
    for options, error in (
        ({"batch_size": 64}, DataError),
        ({"mean": (0.5,)}, InvalidConfig),
        ({"optimizer_args": {"wings": 2}}, InvalidConfig),
        ({"devices": 2, "accelerator": "cuda"}, InvalidConfig),
    ):
        with pytest.raises(error):
            train(config_for(images, tmp_path / "run", **options))
        assert not (tmp_path / "run").exists(), options


def test_evaluation_refuses_classes_that_the_model_lacks(images: Path, tmp_path: Path) -> None:
    model, unnamed = load_model("repmlpnet_test", num_classes=2)
    with pytest.raises(DataError, match="'dark', but the model does not say what its 2 outputs are"):
        evaluate(model, unnamed, data=str(images))
    info = dataclasses.replace(unnamed, class_names=["dark", "light"])
    assert evaluate(model, info, data=str(images))["images"] == 12
    (tmp_path / "grey").mkdir()
    for name in ("grey", "dark", "light"):
        (tmp_path / name).mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name / "0.png")
    with pytest.raises(InvalidConfig, match="batch_size must be at least 1, got 0"):
        evaluate(model, info, data=str(images), batch_size=0)
    with pytest.raises(InvalidConfig, match="num_workers must not be negative, got -1"):
        evaluate(model, info, data=str(images), num_workers=-1)
    with pytest.raises(DataError, match="has 3 classes, but the model 2"):
        evaluate(model, unnamed, data=str(tmp_path))
    with pytest.raises(DataError, match="class folder 'grey', which is none of the 2 classes"):
        evaluate(model, info, data=str(tmp_path))


def test_to_resume_takes_the_folder_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--resume"]) == 2
    assert capsys.readouterr().err == "error: --resume needs --output, the run folder to continue\n"


def test_the_report_says_what_to_type() -> None:
    session: dict[str, Any] = {"versions": {}, "git": None}
    arguments = ["train", "--data", "a b"]
    for program in ("/venv/bin/visionmlp", "/lib/visionmlp/__main__.py"):
        text = _reproduction([{**session, "command": [program, *arguments]}])
        assert text == "<pre>visionmlp train --data &#x27;a b&#x27;</pre>"
    assert _reproduction([{**session, "command": ["own.py"]}]) == "<pre>own.py</pre>"


_SCRIPT = """
from visionmlp.recipes import ClassifyConfig, train
if __name__ == "__main__":
    train(ClassifyConfig.from_plain({options!r}))
"""
_GRAPHS = """
    import torch
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
"""


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}


def test_a_run_is_not_continued_on_other_data(images: Path, tmp_path: Path) -> None:
    root = tmp_path / "images"
    shutil.copytree(images, root)
    config = config_for(root, tmp_path / "run", epochs=1)
    train(config)

    def refused(message: str) -> None:
        with pytest.raises(InvalidConfig, match=rf"was started on other data; {message}.*; restore the data, or give"):
            train(config, resume=True)

    for split in ("train", "val"):
        (root / split / "dark").rename(root / split / "night")
    refused("training data: class 'dark' is")
    for split in ("train", "val"):
        (root / split / "night").rename(root / split / "dark")
    shutil.copy(root / "train/dark/0.png", root / "train/dark/99.png")
    refused("training data: class 'dark' had 20 images and has 21")
    (root / "train/dark/99.png").unlink()
    (root / "val/light/0.png").unlink()
    refused("evaluation data: class 'light' had 6 images and has 5")
    shutil.copy(images / "val/light/0.png", root / "val/light/0.png")
    assert train(config, resume=True).steps == 5
