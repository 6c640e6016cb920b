"""``pack`` through ``main([...])``: what it says, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visionmlp.cli import main


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    for number, name in enumerate(("train/cat/a.png", "train/cat/b.png", "train/dog/a.png", "val/dog/a.png")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(root / name)
    return root


def test_pack_verify_and_check(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(tmp_path / "shards")
    words = ["pack", str(photos), "--output", output, "--images-per-shard", "2", "--seed", "3"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "train: 3 images of 2 classes in 2 shards\nval: 1 images of 1 classes in 1 shards\n" in out
    assert f"wrote {output}: 0.0 MiB, every image read back and compared" in out
    assert main(words) == 0
    assert f"nothing to do for {output}" in capsys.readouterr().out
    assert main(["pack", "--verify", output]) == 0
    assert "4 images in 3 shards, every one as it was packed" in capsys.readouterr().out
    assert main(["pack", str(photos), "--verify", output]) == 0
    assert f"every one that of {photos}" in capsys.readouterr().out
    assert main(["check-data", output, "--json"]) == 0
    assert '"leaks": []' in capsys.readouterr().out
    shard = tmp_path / "shards/train-000001.tar"
    shard.write_bytes(shard.read_bytes().replace(b"PNG", b"png"))
    assert main(["pack", "--verify", output]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: 1 of 3 shards of {output} are not as packed: train-000001.tar has other bytes")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{photos}"], "give the FOLDER to pack and --output, or --verify with a packed folder"),
        (["--output", "{photos}"], "give the FOLDER to pack and --output"),
        (["{photos}", "--output", "{photos}/new"], "which it would change"),
        (["nowhere", "--output", "{photos}2"], "nowhere is no folder"),
        (["{photos}", "--output", "{photos}2", "--images-per-shard", "0"], "images_per_shard must be from 1 to"),
        (["{photos}", "--output", "{photos}2", "--seed", "-1"], "seed must not be negative, got -1"),
        (["--verify", "{photos}"], "is no packed folder; visionmlp pack makes one"),
        (["--verify", "{photos}", "--seed", "1"], "--verify reads a packed folder only; leave out --seed"),
    ],
)
def test_wrong_words_are_one_line(
    photos: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pack", *(word.format(photos=photos) for word in words)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path(f"{photos}2").exists()
