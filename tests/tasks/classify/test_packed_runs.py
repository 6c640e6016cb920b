"""Whole runs on shards: they end as the run on the folder, resumed in the middle of an epoch too."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from visionmlp.data.packing import pack
from visionmlp.models.checkpoint import load_model
from visionmlp.recipes import ClassifyConfig, evaluate, train

from ...data.test_sources import write_images
from .test_train import assert_same_end

OPTIONS: dict[str, Any] = {
    "model": "resmlp_test",
    "epochs": 2,
    "batch_size": 4,
    "log_every": 1,
    "save_every": 1,
    "keep_checkpoints": 20,
    "auto_augment": "rand-m5-inc1",
    "accelerator": "cpu",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``images`` with 20 to train and 6 held out, its ``shards``, and a run on each."""
    root = tmp_path_factory.mktemp("packed")
    write_images(root / "images", {"train/a": 9, "train/b": 11, "val/a": 3, "val/b": 3}, size=32)
    pack(root / "images", root / "shards", images_per_shard=6)
    for name, workers in (("images", 0), ("shards", 2)):
        train(ClassifyConfig(data=str(root / name), output=root / f"run-{name}", num_workers=workers, **OPTIONS))
    return root


def test_shards_train_as_their_folder(data: Path) -> None:
    assert_same_end(data / "run-images", data / "run-shards")
    assert (data / "run-images/data.json").read_bytes() == (data / "run-shards/data.json").read_bytes()
    model, info = load_model(data / "run-images")
    scores = [evaluate(model, info, data=str(data / name), batch_size=4) for name in ("images", "shards")]
    assert scores[0]["loss"] == scores[1]["loss"]
    assert scores[1]["confusion"].tolist() == scores[0]["confusion"].tolist()


def test_a_run_on_shards_goes_on_in_the_middle_of_an_epoch(data: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(data / "run-shards", tmp_path / "run"))
    for path in (run / "checkpoints").iterdir():
        if int("".join(filter(str.isdigit, path.name.partition(".")[0]))) > 7:  # of ten steps, five an epoch
            path.unlink()
    train(ClassifyConfig(data=str(data / "shards"), output=run, num_workers=1, **OPTIONS), resume=True)
    assert_same_end(data / "run-shards", run)
