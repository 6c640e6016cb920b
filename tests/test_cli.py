"""Every command through ``main([...])``, on the tiny models."""

import csv
import functools
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console
from visionmlp.cli.evaluation import scores_table

import visionmlp
from visionmlp.cli import main
from visionmlp.cli.commands import COMMANDS
from visionmlp.deploy.certificate import randomise
from visionmlp.models.checkpoint import load_model, save_checkpoint
from visionmlp.recipes.published import RECIPES
from visionmlp.tasks.classify.run import ClassifyConfig

TRAIN = ["repmlpnet_test", "--data", "sklearn/digits", "--batch-size", "64", "--max-steps", "2", "--num-workers", "0"]


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """A trained-looking checkpoint with class names."""
    model, _ = load_model("resmlp_test")
    randomise(model)
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, model, class_names=[f"digit {i}" for i in range(10)])
    return path


@pytest.fixture
def image(tmp_path) -> Path:
    path = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run folder."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    assert main(["train", *TRAIN, "--output", str(folder)]) == 0
    return folder


def output_of(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


# help


def test_help_lists_every_command(capsys) -> None:
    for words in ([], ["--help"]):
        assert main(words) == 0
        text = output_of(capsys)
        assert all(name in text and command.summary in text for name, command in COMMANDS.items())


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_explains_every_option_and_shows_examples(name: str, capsys) -> None:
    assert main([name, "--help"]) == 0
    text = output_of(capsys)
    assert f"usage: visionmlp {name}" in text
    assert COMMANDS[name].description.splitlines()[0] in text
    for example in COMMANDS[name].examples:
        assert f"visionmlp {example}" in text
    assert "<class" not in text
    for line in text.splitlines():
        assert len(line) <= 120, line


def test_version(capsys) -> None:
    assert main(["--version"]) == 0
    assert output_of(capsys) == f"visionmlp {visionmlp.__version__}\n"


def test_the_command_line_itself_imports_nothing_heavy() -> None:
    # the package's own __init__ registers models with timm, so it is replaced by an empty one
    folder = str(Path(visionmlp.__file__).parent)
    code = f"""
import sys, types
package = types.ModuleType("visionmlp")
package.__path__ = [{folder!r}]
sys.modules["visionmlp"] = package
from visionmlp.cli import main
main(["--help"]), main(["bench", "--help"]), main(["export", "--help"])
heavy = {{"torch", "timm", "numpy", "rich", "onnx", "lightning_fabric"}} & sys.modules.keys()
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def test_a_reader_that_leaves_is_no_error() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "visionmlp", "models", "resmlp_s12", "--json"],
        stdout=closed_pipe(),
        stderr=subprocess.PIPE,
        timeout=120,
        check=False,
    )
    assert done.stderr == b""
    assert done.returncode == 141


def closed_pipe() -> int:
    import os

    reader, writer = os.pipe()
    os.close(reader)
    return writer


# models


def test_models(capsys) -> None:
    assert main(["models", "resmlp_s12"]) == 0
    text = output_of(capsys)
    assert "resmlp_s12_p8" in text
    assert "76.6" in text
    assert "ResMLP, Table 3" in text


def test_models_json_and_family(capsys) -> None:
    assert main(["models", "*_t*", "--family", "repmlpnet", "--json"]) == 0
    entries = json.loads(output_of(capsys))
    assert [entry["name"] for entry in entries] == ["repmlpnet_t224", "repmlpnet_t256"]
    assert entries[0]["paper_top1"] == 76.4


# train and eval


def test_train_writes_a_run_folder_that_every_command_takes(run: Path, image: Path, capsys) -> None:
    assert {"config.yaml", "model.safetensors", "metrics.csv"} <= {path.name for path in run.iterdir()}
    assert yaml.safe_load((run / "config.yaml").read_text())["max_steps"] == 2
    capsys.readouterr()
    assert main(["predict", str(run), str(image), "--json"]) == 0
    assert len(json.loads(output_of(capsys))[0]["classes"]) == 5
    assert main(["deploy", str(run), "--seconds", "0.02"]) == 0
    assert (run / "deploy.safetensors").is_file()
    capsys.readouterr()
    assert main(["eval", str(run), "--json"]) == 0
    before = json.loads(output_of(capsys))
    assert main(["eval", str(run / "deploy.safetensors"), "--data", "sklearn/digits", "--json"]) == 0
    after = json.loads(output_of(capsys))
    assert after["top1"] == pytest.approx(before["top1"], abs=0.3)
    assert after["images_per_second"] > 0
    (run / "deploy.safetensors").unlink()


def test_eval_table_batch_size_and_split(run: Path, capsys) -> None:
    assert main(["eval", str(run), "--batch-size", "32"]) == 0
    text = output_of(capsys)
    assert "top-1" in text
    assert "top-5" in text
    assert "images/s" in text


def test_train_takes_a_config_and_the_command_line_wins(tmp_path, capsys) -> None:
    config = {"model": "resmlp_test", "data": "sklearn/digits", "epochs": 7, "lr": "2e-3", "output": "x"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    assert main(["train", "--config", str(tmp_path / "run.yaml"), "--epochs", "9", "--print-config"]) == 0
    printed = output_of(capsys)
    resolved = yaml.safe_load(printed)
    assert main(["train", "--epochs", "9", f"--config={tmp_path / 'run.yaml'}", "--print-config"]) == 0
    assert output_of(capsys) == printed
    assert (resolved["model"], resolved["epochs"], resolved["lr"], resolved["output"]) == ("resmlp_test", 9, 2e-3, "x")
    assert "resume" not in resolved
    (tmp_path / "again.yaml").write_text(printed)
    assert main(["train", "--config", str(tmp_path / "again.yaml"), "--print-config"]) == 0
    assert output_of(capsys) == printed
    assert not Path("x").exists()


def test_a_recipe_gives_defaults_that_options_override(capsys) -> None:
    words = ["train", "--recipe", "resmlp_imagenet", "--data", "d", "--output", "o", "--lr", "1e-3", "--print-config"]
    assert main(words) == 0
    config = yaml.safe_load(output_of(capsys))
    assert (config["model"], config["optimizer"], config["epochs"], config["lr"]) == ("resmlp_s12", "lamb", 400, 1e-3)
    assert (config["data"], config["output"]) == ("d", "o")
    assert main(["train", "resmlp_s24", *words[1:]]) == 0
    assert yaml.safe_load(output_of(capsys))["model"] == "resmlp_s24"


def test_a_config_file_overrides_the_recipe(tmp_path, capsys) -> None:
    (tmp_path / "run.yaml").write_text("model: resmlp_s36\nepochs: 3\ndata: d\n")
    words = ["train", "--recipe", "resmlp_imagenet", "--config", str(tmp_path / "run.yaml"), "--output", "o"]
    assert main([*words, "--warmup-epochs", "1", "--print-config"]) == 0
    config = yaml.safe_load(output_of(capsys))
    assert (config["model"], config["optimizer"], config["epochs"]) == ("resmlp_s36", "lamb", 3)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_prints_a_valid_configuration(name: str, capsys) -> None:
    assert main(["train", "--recipe", name, "--data", "d", "--output", "o", "--print-config"]) == 0
    config = ClassifyConfig.from_plain(yaml.safe_load(output_of(capsys)))
    assert config.model in visionmlp.list_models()


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
    config = yaml.safe_load(output_of(capsys))
    assert (config["crop_scale"], config["mean"], config["std"]) == ([0.5, 1.0], [0.1, 0.2, 0.3], None)
    assert (config["model_args"], config["deterministic"]) == ({"kernel_sizes": [1, 3]}, True)


def test_resume_takes_the_configuration_of_the_run(tmp_path) -> None:
    folder = tmp_path / "run"
    assert main(["train", *TRAIN, "--save-every", "1", "--output", str(folder)]) == 0
    before = (folder / "metrics.csv").read_text()
    assert main(["train", "--resume", "--output", str(folder)]) == 0
    assert (folder / "metrics.csv").read_text() == before


# predict


def test_predict_table_and_json(checkpoint: Path, image: Path, capsys) -> None:
    assert main(["predict", str(checkpoint), str(image)]) == 0
    text = output_of(capsys)
    assert "digit" in text
    assert "image.png" in text
    assert main(["predict", str(checkpoint), str(image), "--top-k", "2", "--batch-size", "1", "--json"]) == 0
    (prediction,) = json.loads(output_of(capsys))
    assert len(prediction["classes"]) == 2
    assert prediction["classes"][0]["name"].startswith("digit ")


def test_predict_from_standard_input(checkpoint: Path, image: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(image.read_bytes())))
    assert main(["predict", str(checkpoint), "-", "--json"]) == 0
    piped = json.loads(output_of(capsys))[0]
    assert main(["predict", str(checkpoint), str(image), "--json"]) == 0
    assert piped["classes"] == json.loads(output_of(capsys))[0]["classes"]


def test_fresh_weights_are_pointed_out(image: Path, capsys) -> None:
    assert main(["predict", "resmlp_test", str(image)]) == 0
    assert capsys.readouterr().err.startswith("note: resmlp_test has fresh weights")


# deploy, export, bench


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


def test_a_name_that_is_no_text(checkpoint: Path, image: Path) -> None:
    odd = os.fsencode(image.parent) + b"/\xff.png"
    shutil.copy(image, odd)
    words = [sys.executable, "-m", "visionmlp", "predict", str(checkpoint), odd]
    done = subprocess.run(words, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"})
    assert done.returncode == 0, done.stderr
    assert rb"\udcff.png" in done.stdout


def test_eval_title_is_not_taken_for_markup() -> None:
    scores = dict.fromkeys(("top1", "top5", "loss", "images", "skipped", "images_per_second"), 0)
    console = Console(file=io.StringIO(), width=120)
    console.print(scores_table({**scores, "model": "m", "form": "training", "data": "[red]x[foo]", "split": "test"}))
    assert "[red]x[foo] (test)" in console.file.getvalue()


def test_deploy_prints_the_certificate_and_needs_force_to_overwrite(checkpoint: Path, capsys) -> None:
    words = ["deploy", str(checkpoint), "--seconds", "0.02", "--batch-size", "3"]
    assert main(words) == 0
    text = output_of(capsys)
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
    text = output_of(capsys)
    assert "batch 1" in text
    assert "batch 5" in text
    session = onnxruntime.InferenceSession(output)
    assert json.loads(session.get_modelmeta().custom_metadata_map["class_names"])[2] == "digit 2"
    assert main(["export", str(checkpoint), "--output", str(output), "--batch", "2", "--force"]) == 0
    assert onnxruntime.InferenceSession(output).get_inputs()[0].shape[0] == 2


@pytest.fixture
def small_gemm(monkeypatch: pytest.MonkeyPatch) -> None:
    from visionmlp.bench import bench, roofline

    monkeypatch.setattr(bench, "bench", functools.partial(bench.bench, gemm_sides=(64,)))
    profile = functools.partial(roofline.profile_models, gemm_sides=(64,), copy_bytes=4096)
    monkeypatch.setattr(roofline, "profile_models", profile)


@pytest.mark.usefixtures("small_gemm")
def test_bench(checkpoint: Path, tmp_path, capsys) -> None:
    output = tmp_path / "b.csv"
    words = [
        "bench",
        "repmlpnet_test",
        str(checkpoint),
        "--batch-size",
        "1",
        "2",
        "--seconds",
        "0.02",
        "--threads",
        "1",
    ]
    assert main([*words, "--csv", str(output)]) == 0
    assert "GFLOP/s" in output_of(capsys)
    rows = list(csv.DictReader(output.open()))
    assert len(rows) == 8
    assert {row["threads"] for row in rows} == {"1"}
    content = output.read_text()
    assert main([*words, "--csv", str(output)]) == 2
    assert output.read_text() == content
    assert main([*words, "--csv", str(output), "--force", "--form", "deploy", "--dtype", "bfloat16"]) == 0
    rows = list(csv.DictReader(output.open()))
    assert [row["form"] for row in rows] == ["deploy"] * 4
    assert {row["dtype"] for row in rows} == {"bfloat16"}


@pytest.mark.usefixtures("small_gemm")
def test_bench_names_what_failed_and_still_writes_the_rest(tmp_path, capsys) -> None:
    words = ["bench", "resmlp_test", "--form", "deploy", "--batch-size", "1", "--seconds", "0.02"]
    files = ["--csv", str(tmp_path / "b.csv"), "--plot", str(tmp_path / "b.png")]
    assert main([*words, *files, "--input-size", "32", "33"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: resmlp_test at 33x33: img_size 33x33 is not a multiple of 8")
    assert captured.err.count("\n") == 1
    assert "GFLOP/s" in captured.out
    assert len(list(csv.DictReader((tmp_path / "b.csv").open()))) == 1
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
    assert main([*words, "--input-size", "33", "--csv", str(tmp_path / "none.csv")]) == 2
    assert "nothing could be measured" in capsys.readouterr().err
    assert not (tmp_path / "none.csv").exists()


@pytest.mark.usefixtures("small_gemm")
def test_bench_options_reach_the_measurement(tmp_path) -> None:
    output = tmp_path / "b.csv"
    words = ["bench", "resmlp_test", "--batch-size", "2", "--seconds", "0.02", "--csv", str(output)]
    assert main([*words, "--training", "--dtype", "float32", "bfloat16"]) == 0
    rows = list(csv.DictReader(output.open()))
    assert [(row["dtype"], row["form"], row["task"]) for row in rows] == [
        (dtype, form, task)
        for form, tasks in (("training", ("inference", "training step")), ("deploy", ("inference",)))
        for dtype in ("float32", "bfloat16")
        for task in tasks
    ]


@pytest.mark.usefixtures("small_gemm")
def test_bench_profile(tmp_path, capsys) -> None:
    output = tmp_path / "p.csv"
    words = ["bench", "asmlp_test", "--form", "deploy", "--batch-size", "1", "--seconds", "0.02", "--profile"]
    assert main([*words, "--csv", str(output)]) == 0
    text = output_of(capsys)
    assert "where the time goes" in text
    assert "stages.0.blocks.*" in text
    assert any("blocks.0" in row["layer"] for row in csv.DictReader(output.open()))
    assert main([*words, "--runtime", "compile"]) == 2
    assert "--profile shows eager inference" in capsys.readouterr().err


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
    rest = {"predict": [str(image)], "export": ["--output", str(tmp_path / "x.onnx")]}.get(command, [])
    assert main([command, "mlpmixer_test", *rest, "--checkpoint", str(official)]) == 2
    assert "authors.npz does not fit mlpmixer_test" in capsys.readouterr().err
