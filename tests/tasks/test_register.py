"""A new task is its own folder and one line of the register; its name is found in runs and checkpoints."""

import csv
import json
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from visionmlp.cli import main
from visionmlp.errors import InvalidConfig
from visionmlp.models.checkpoint import load_model, save_checkpoint
from visionmlp.tasks.register import TASKS, load_task, task_of


@pytest.fixture
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "toy", "tests.tasks.toy")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for level in (0, 50, 100):
        Image.new("L", (4, 4), level).save(folder / f"{level}.png")
    return folder


def run_of(task: str | None, folder: Path) -> Path:
    """What of a run folder says its task."""
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": "m"} | ({} if task is None else {"task": task})))
    return folder


@pytest.mark.parametrize("name", TASKS)
def test_the_register_agrees_with_the_configurations(name: str) -> None:
    assert load_task(name).config.task == name


@pytest.mark.usefixtures("_toy")
def test_a_task_is_trained_evaluated_and_asked_through_the_register_alone(images: Path, tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    words = ["train", "mean", "--data", str(images), "--output", str(run)]
    assert main([*words, "--task", "toy", "--shift", "10"]) == 0
    assert "guess 60" in capsys.readouterr().out
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["task"], config["shift"]) == ("toy", 10.0)

    assert main(["eval", str(run), "--data", str(images), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"error": pytest.approx(110 / 3)}
    # an option of this task alone, before the model's name
    assert main(["eval", "--protocol", "worst", str(run), "--data", str(images)]) == 0
    assert "60.0" in capsys.readouterr().out

    image, output = images / "0.png", tmp_path / "guesses.csv"
    assert main(["predict", str(run), str(image), "missing.png", "--digits", "3"]) == 2
    captured = capsys.readouterr()
    assert captured.out.split() == [str(image), "brightness", "60.000"]
    assert captured.err == "error: missing.png: no such file\n"
    assert main(["predict", str(run), str(image), "--output", str(output)]) == 0
    assert list(csv.DictReader(output.open())) == [{"image": str(image), "brightness": "60.0"}]
    capsys.readouterr()

    assert main(["train", "--resume", "--output", str(run)]) == 0
    assert main(["train", "--help", "--task", "toy"]) == 0
    text = capsys.readouterr().out
    assert "--shift" in text
    assert "--mixup" not in text


@pytest.mark.usefixtures("_toy")
def test_a_configuration_file_says_the_task(images: Path, tmp_path: Path, capsys) -> None:
    file = tmp_path / "run.yaml"
    words = ["train", "--config", str(file), "--print-config"]
    file.write_text(yaml.safe_dump({"task": "toy", "model": "mean", "data": str(images), "output": "o", "shift": 2}))
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["shift"] == 2.0
    file.write_text(printed)
    assert main(words) == 0
    assert capsys.readouterr().out == printed


@pytest.mark.usefixtures("_toy")
def test_two_that_say_different_tasks_are_one_line(tmp_path: Path, capsys) -> None:
    run = run_of("toy", tmp_path / "run")
    file = tmp_path / "run.yaml"
    file.write_text("task: toy\nmodel: m\n")
    for words, part in (
        (["train", "--resume", "--output", run, "--task", "classify"], f"{run} says toy"),
        (["train", "--config", file, "--task", "classify"], f"{file} says toy"),
        (["train", "--recipe", "digits", "--task", "toy"], "--recipe digits says classify"),
        (["train", "--recipe", "digits", "--config", file], "--recipe digits says classify"),
        (["eval", run, "--task", "classify"], f"{run} says toy"),
        (["predict", run, "x.png", "--task", "classify"], f"{run} says toy"),
    ):
        assert main([str(word) for word in words]) == 2
        captured = capsys.readouterr()
        assert part in captured.err
        assert captured.err.count("\n") == 1


@pytest.mark.parametrize("command", ["train", "eval", "predict"])
def test_an_unknown_task_is_one_line_with_the_nearest(command: str, tmp_path: Path, capsys) -> None:
    run = run_of("clasify", tmp_path / "run")
    inputs = ["x.png"] if command == "predict" else []
    resumed = ["--resume", "--output", str(run)] if command == "train" else [str(run), *inputs]
    for words in (["resmlp_test", *inputs, "--task", "clasify"], resumed):
        assert main([command, *words]) == 2
        assert capsys.readouterr().err == "error: no task 'clasify'; did you mean classify?\n"


def test_the_task_of_runs_files_and_checkpoints(tmp_path: Path) -> None:
    old, new = run_of(None, tmp_path / "old"), run_of("toy", tmp_path / "new")
    assert (task_of(str(old)), task_of(str(new))) == ("classify", "toy")
    (new / "deploy.safetensors").touch()
    assert task_of(str(new / "deploy.safetensors")) == "toy"
    assert task_of(str(new / "missing.safetensors")) is None

    alone = tmp_path / "alone"
    alone.mkdir()
    save_checkpoint(alone / "ours.safetensors", load_model("resmlp_test")[0])
    metadata = {"visionmlp": json.dumps({"task": "toy"})}
    save_file({"weight": torch.zeros(1)}, alone / "said.safetensors", metadata=metadata)
    save_file({"weight": torch.zeros(1)}, alone / "others.safetensors")
    (alone / "cut.safetensors").write_bytes((alone / "said.safetensors").read_bytes()[:20])
    (alone / "empty.safetensors").touch()
    (alone / "text.safetensors").write_text("not a checkpoint at all")
    found = {path.stem: task_of(str(path)) for path in alone.iterdir()}
    assert found == {"ours": "classify", "said": "toy", "others": None, "cut": None, "empty": None, "text": None}
    assert task_of("resmlp_s12") is None
    assert task_of(str(alone)) is None


def test_a_configuration_of_another_task_is_refused() -> None:
    config = load_task("classify").config
    with pytest.raises(InvalidConfig, match="options of task 'toy', not of 'classify'"):
        config.from_plain({"task": "toy", "model": "m", "data": "d", "output": "o"})
