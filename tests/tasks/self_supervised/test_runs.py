"""Whole runs without classes: what they leave, exact resumption, several processes, and what follows them."""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from visionmlp.cli import main
from visionmlp.engine.run_folder import RunFolder
from visionmlp.errors import InvalidConfig
from visionmlp.models.checkpoint import load_model, read_info
from visionmlp.tasks.register import load_task

SMALL: dict[str, dict[str, Any]] = {
    "dino": {"out_dim": 32, "hidden_dim": 16, "bottleneck_dim": 8, "local_crops": 2, "local_size": 16},
    "moco": {"projector_dim": 8, "projector_hidden": 16},
}
COMMON: dict[str, Any] = {
    "model": "resmlp_test",
    "epochs": 3,
    "warmup_epochs": 1.0,
    "batch_size": 8,
    "num_workers": 0,
    "log_every": 1,
    "save_every": 2,
    "lr": 1e-3,
    "threads": 1,
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes that differ in brightness: 24 images to train, 8 held out."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4)):
        for level, name in enumerate(("dark", "light")):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(100 * level, 100 * level + 150, (36, 36, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


def config_for(task: str, images: Path, output: Path, **options: Any) -> Any:
    fields = {**COMMON, **SMALL[task], "data": str(images), "output": str(output), **options}
    return load_task(task).config.from_plain(fields)


def states(folder: Path) -> dict[str, torch.Tensor]:
    newest = max((folder / "checkpoints").glob("*.safetensors"))
    return {**load_file(newest), **{f"shipped.{k}": v for k, v in load_file(folder / "model.safetensors").items()}}


@pytest.mark.parametrize(("task", "shipped"), [("dino", "teacher"), ("moco", "query encoder")])
def test_a_run_ships_its_network_and_can_be_used(task: str, shipped: str, images: Path, tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    result = load_task(task).train(config_for(task, images, run), resume=False)
    assert 0 <= result.metrics["knn"] <= result.metrics["knn5"] <= 100
    info = read_info(run / "model.safetensors")
    assert info.network == shipped
    model, _ = load_model(run)
    assert model.num_classes == 0
    rows = list(csv.DictReader((run / "train.csv").open()))
    assert {"entropy", "kl", "spread"} <= rows[0].keys()
    assert all(np.isfinite(float(row["spread"])) for row in rows)
    assert {"report.html", "curves.png", "collapse.png"} <= {path.name for path in run.iterdir()}
    # k-NN as a command gives what the run's last best evaluation gave
    assert main(["eval", str(run), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["knn"] == pytest.approx(result.metrics["knn"])
    # features of an image, a linear classifier, fine-tuning
    assert main(["predict", str(run), str(images / "val" / "dark" / "0.png"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["features"]) == model.num_features
    words = ["eval", str(run), "--protocol", "linear", "--epochs", "2", "--batch-size", "8", "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["run"] == str(run / "linear")
    probe = load_file(run / "linear" / "model.safetensors")
    for name, value in load_file(run / "model.safetensors").items():
        assert torch.equal(probe[name], value), name  # nothing but the classifier moved
    words = ["train", str(run), "--data", str(images), "--output", str(tmp_path / "tuned"), "--max-steps", "2"]
    assert main([*words, "--batch-size", "8", "--num-workers", "0"]) == 0
    assert load_file(tmp_path / "tuned" / "model.safetensors")["head.fc.weight"].shape[0] == 2


@pytest.mark.parametrize("task", SMALL)
def test_a_run_without_its_last_checkpoint_ends_bit_equal(task: str, images: Path, tmp_path: Path, monkeypatch) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    definition = load_task(task)
    definition.train(config_for(task, images, whole), resume=False)
    from visionmlp.engine.loop import _Loop

    update, left = _Loop.update, iter(range(5))

    def stop_after_five(self: Any, parts: Any) -> Any:
        if next(left, None) is None:
            raise RuntimeError("killed")
        return update(self, parts)

    monkeypatch.setattr(_Loop, "update", stop_after_five)
    with pytest.raises(RuntimeError, match="killed"):
        definition.train(config_for(task, images, stopped), resume=False)
    monkeypatch.undo()
    newest = stopped / "checkpoints" / "step-000004.state"
    newest.write_bytes(newest.read_bytes()[:-40])
    with pytest.warns(UserWarning, match="checkpoint of step 4 is damaged .*; trying an earlier one"):
        definition.train(config_for(task, images, stopped), resume=True)
    first, second = states(whole), states(stopped)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert RunFolder(whole).metrics.rows() == RunFolder(stopped).metrics.rows()


@pytest.mark.parametrize("task", SMALL)
@pytest.mark.parametrize("model", ["cyclemlp_test", "sparsemlp_moe_test", "repmlpnet_test"])
def test_every_kind_of_family_can_learn_so(task: str, model: str, images: Path, tmp_path: Path) -> None:
    load_task(task).train(
        config_for(task, images, tmp_path / "run", model=model, max_steps=2, warmup_epochs=0.0), resume=False
    )
    assert (tmp_path / "run" / "router.csv").exists() == model.startswith("sparsemlp")  # routers are kept in balance


def test_local_crops_that_a_model_cannot_take_are_refused_by_name(images: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"resmlp_test takes images of its own size only.*local_fit resize"):
        load_task("dino").train(config_for("dino", images, tmp_path / "run", local_fit="native"), resume=False)
    assert not (tmp_path / "run").exists()


def test_parts_that_would_change_the_contrast_are_refused(images: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="no negatives, which changes the method"):
        config_for("moco", images, tmp_path / "run", accumulate=2)


def test_parts_do_not_change_dino(images: Path, tmp_path: Path) -> None:
    """Teacher and centre move once a step; float32, and parts draw their drop-path anew, so there is none."""
    options = {"max_steps": 3, "drop_path_rate": 0.0, "warmup_epochs": 0.0}
    for name, parts in (("one", 1), ("four", 4)):
        config = config_for("dino", images, tmp_path / name, **options)
        load_task("dino").train(dataclasses.replace(config, accumulate=parts), resume=False)
    one, four = states(tmp_path / "one"), states(tmp_path / "four")
    for name, value in one.items():
        torch.testing.assert_close(four[name], value, rtol=1e-3, atol=2e-5)
