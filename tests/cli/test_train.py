"""``train`` and ``eval`` through ``main([...])``, on the tiny models."""

import dataclasses
import io
import json
from pathlib import Path

import pytest
import yaml
from rich.console import Console

import visionmlp
from tests.cli.conftest import TRAIN
from visionmlp.cli import main
from visionmlp.cli.evaluate import scores_table
from visionmlp.recipes import RECIPES, TrainResult
from visionmlp.recipes.register import config_class
from visionmlp.tasks.definition import Scores
from visionmlp.tasks.translate.names import TRANSLATORS


def test_train_writes_a_run_folder_that_every_command_takes(run: Path, image: Path, capsys) -> None:
    assert {"config.yaml", "model.safetensors", "metrics.csv"} <= {path.name for path in run.iterdir()}
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["task"], config["max_steps"]) == ("classify", 2)
    capsys.readouterr()
    assert main(["predict", str(run), str(image), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["classes"]) == 5
    assert main(["deploy", str(run), "--seconds", "0.02"]) == 0
    assert (run / "deploy.safetensors").is_file()
    capsys.readouterr()
    assert main(["eval", str(run), "--json"]) == 0
    before = json.loads(capsys.readouterr().out)
    assert main(["eval", str(run / "deploy.safetensors"), "--data", "sklearn/digits", "--json"]) == 0
    after = json.loads(capsys.readouterr().out)
    assert after["top1"] == pytest.approx(before["top1"], abs=0.3)
    assert after["images_per_second"] > 0
    (run / "deploy.safetensors").unlink()


def test_eval_table_batch_size_and_split(run: Path, capsys) -> None:
    assert main(["eval", str(run), "--batch-size", "32"]) == 0
    text = capsys.readouterr().out
    assert "top-1" in text
    assert "top-5" in text
    assert "images/s" in text


def test_train_takes_a_config_and_the_command_line_wins(tmp_path, capsys) -> None:
    config = {"model": "resmlp_test", "data": "sklearn/digits", "epochs": 7, "lr": "2e-3", "output": "x"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    assert main(["train", "--config", str(tmp_path / "run.yaml"), "--epochs", "9", "--print-config"]) == 0
    printed = capsys.readouterr().out
    resolved = yaml.safe_load(printed)
    assert main(["train", "--epochs", "9", f"--config={tmp_path / 'run.yaml'}", "--print-config"]) == 0
    assert capsys.readouterr().out == printed
    assert (resolved["model"], resolved["epochs"], resolved["lr"], resolved["output"]) == ("resmlp_test", 9, 2e-3, "x")
    assert "resume" not in resolved
    (tmp_path / "again.yaml").write_text(printed)
    assert main(["train", "--config", str(tmp_path / "again.yaml"), "--print-config"]) == 0
    assert capsys.readouterr().out == printed
    assert not Path("x").exists()


def test_a_recipe_gives_defaults_that_options_override(capsys) -> None:
    words = ["train", "--recipe", "resmlp_imagenet", "--data", "d", "--output", "o", "--lr", "1e-3", "--print-config"]
    assert main(words) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert (config["model"], config["optimizer"], config["epochs"], config["lr"]) == ("resmlp_s12", "lamb", 400, 1e-3)
    assert (config["data"], config["output"]) == ("d", "o")
    assert main(["train", "resmlp_s24", *words[1:]]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"] == "resmlp_s24"


def test_a_config_file_overrides_the_recipe(tmp_path, capsys) -> None:
    (tmp_path / "run.yaml").write_text("model: resmlp_s36\nepochs: 3\ndata: d\n")
    words = ["train", "--recipe", "resmlp_imagenet", "--config", str(tmp_path / "run.yaml"), "--output", "o"]
    assert main([*words, "--warmup-epochs", "1", "--print-config"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert (config["model"], config["optimizer"], config["epochs"]) == ("resmlp_s36", "lamb", 3)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_prints_a_valid_configuration(name: str, capsys) -> None:
    kind = config_class(name)
    words = ["--data", "d", "--output", "o", "--print-config"]
    if "checkpoint" in {field.name for field in dataclasses.fields(kind)}:
        words += ["--checkpoint", "c"]
    assert main(["train", "--recipe", name, *words]) == 0
    config = kind.from_plain(yaml.safe_load(capsys.readouterr().out))
    assert config.to_plain()["model"] in (*visionmlp.list_models(), *TRANSLATORS)


def test_tuples_dictionaries_and_switches(capsys) -> None:
    words = [
        "train",
        "resmlp_test",
        "--data",
        "d",
        "--output",
        "o",
        "--crop-scale",
        "0.5",
        "1",
        "--mean",
        ".1",
        ".2",
        ".3",
    ]
    words += ["--model-args", "{kernel_sizes: [1, 3]}", "--deterministic", "--print-config"]
    assert main(words) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert (config["crop_scale"], config["mean"], config["std"]) == ([0.5, 1.0], [0.1, 0.2, 0.3], None)
    assert (config["model_args"], config["deterministic"]) == ({"kernel_sizes": [1, 3]}, True)


def test_resume_takes_the_configuration_of_the_run(tmp_path) -> None:
    folder = tmp_path / "run"
    assert main(["train", *TRAIN, "--save-every", "1", "--output", str(folder)]) == 0
    before = (folder / "metrics.csv").read_text()
    assert main(["train", "--resume", "--output", str(folder)]) == 0
    assert (folder / "metrics.csv").read_text() == before


def test_eval_title_is_not_taken_for_markup() -> None:
    console = Console(file=io.StringIO(), width=120)
    console.print(
        scores_table(
            Scores(title="m, [red]x[foo] (test)", columns={"top-1 %, wide": "3", "top-5 %, wide": "5"}, record={})
        )
    )
    assert "[red]x[foo] (test)" in console.file.getvalue()


def test_only_the_first_of_several_processes_says_how_it_ended(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    for rank in (0, 1):
        result = TrainResult(folder=Path("run"), metrics={"top1": 9.0}, best_step=1, steps=2, seconds=3.0, rank=rank)
        monkeypatch.setattr("visionmlp.tasks.classify.run.train", lambda *_, result=result, **__: result)
        assert main(["train", *TRAIN, "--output", "run"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert (
            lines
            == ["top1 9  (step 1 of 2, 3 s)", "wrote run: model.safetensors, report.html"][: 2 if rank == 0 else 0]
        )


def test_a_warm_up_that_fills_all_steps_is_refused(capsys) -> None:
    for warmup in (50, 10):
        words = ["train", "resmlp_test", "--data", "d", "--output", "o", "--max-steps", "10"]
        assert main([*words, "--warmup-epochs", str(warmup)]) == 2
        assert f"warmup_epochs {warmup}" in capsys.readouterr().err
