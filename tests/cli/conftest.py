"""Fixtures of the command-line tests."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visionmlp.cli import main
from visionmlp.deploy.certificate import randomise
from visionmlp.models.checkpoint import load_model, save_checkpoint

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


@pytest.fixture(scope="package")
def run(tmp_path_factory) -> Path:
    """A run folder."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    assert main(["train", *TRAIN, "--output", str(folder)]) == 0
    return folder
