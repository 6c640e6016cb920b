"""One dataset with every fault at once, through every task that reads images, and through ``check-data``."""

import json
import re
from pathlib import Path

import pytest

from visionmlp.cli import main
from visionmlp.engine.run_folder import RunFolder

from .hostile import UMLAUT, Hostile, write_hostile

TASKS = {
    "classify": [],
    "dino": [*("--out-dim", "8", "--hidden-dim", "8", "--bottleneck-dim", "4", "--local-crops", "0")],
    "moco": [*("--projector-dim", "4", "--projector-hidden", "8")],
}
BATCH = 7
"""Divides the training images, or an epoch would leave some out."""


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Hostile:
    return write_hostile(tmp_path_factory.mktemp("hostile") / "data")


def train(data: Path, run: Path, task: str, *more: str) -> int:
    words = ["train", "resmlp_test", "--task", task, "--data", str(data), "--output", str(run), "--epochs", "1"]
    common = ["--warmup-epochs", "0", "--batch-size", str(BATCH), "--num-workers", "0", "--threads", "1", *TASKS[task]]
    return main([*words, *common, *more])


def reasons(lines: list[str], hostile: Hostile) -> dict[str, str]:
    """The reason on each line of ``path<separator>reason``, by path below the dataset."""
    prefix = f"{hostile.root}/"
    pairs = [re.split(r": |\t", plain(line).removeprefix(prefix), maxsplit=1) for line in lines]
    assert len({name for name, _ in pairs}) == len(pairs)  # each once
    return dict(pairs)


def plain(text: str) -> str:
    """However the stream shows the byte that is not UTF-8."""
    return text.replace("\udce9", "?").replace("\\udce9", "?")


def assert_all_named(found: dict[str, str], hostile: Hostile) -> None:
    assert found.keys() == {plain(name) for name in hostile.bad}
    for name, reason in hostile.bad.items():
        assert re.search(reason, found[plain(name)]), (name, found[plain(name)])


@pytest.mark.parametrize("task", TASKS)
def test_a_run_stops_at_a_bad_image_or_skips_them_all(
    task: str, hostile: Hostile, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train(hostile.root, run, task) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("warning: ")]
    assert len(errors) == 1
    stopped = re.fullmatch(
        r"error: cannot read image (.*) \((.*)\); repair or remove it, or set on_bad_image to skip", errors[0]
    )
    assert stopped
    assert stopped[1] in hostile.bad_paths
    # nothing is lost: the same run goes on with the other policy
    assert train(hostile.root, run, task, "--on-bad-image", "skip", "--resume") == 0
    said = capfd.readouterr()
    skipped = "warning: skipped image "
    lines = [line.removeprefix(skipped) for line in said.err.splitlines() if line.startswith(skipped)]
    assert_all_named(reasons(lines, hostile), hostile)
    listed = (run / "bad_images.txt").read_text(encoding="utf-8", errors="surrogateescape")
    assert_all_named(reasons(listed.splitlines(), hostile), hostile)
    assert f"left out {len(hostile.bad)} images that cannot be read: {run}/bad_images.txt\n" in said.out
    assert f"Images left out: {len(hostile.bad)}</h2>" in (run / "report.html").read_text()
    notes = "\n".join(line for line in said.err.splitlines() if skipped not in line)
    for note in (f"such as {UMLAUT}/._case.png", f"1, such as {UMLAUT}/around", f"1, such as {UMLAUT}/folder.png"):
        assert notes.count(note) == 2  # of training and of evaluation
    record = json.loads((run / "data.json").read_text())
    for part, split in (("training", "train"), ("evaluation", "val")):
        bad = sum(name.startswith(f"{split}/") for name in hostile.bad)
        assert record[part]["images"] == sum(hostile.good[split].values()) + bad
    assert record["training"]["images"] % BATCH == 0
    assert len(RunFolder(run).metrics.rows()) == 1
    good = sum(hostile.good["val"].values())
    assert main(["eval", str(run), "--data", str(hostile.root), "--on-bad-image", "skip", "--json"]) == 0
    scores = json.loads(capfd.readouterr().out)
    assert scores["images"] == good
    bad = [name for name in hostile.bad if task != "classify" or name.startswith("val/")]  # k-NN reads both
    assert scores["skipped"] == len(bad)


def test_check_data_names_and_counts_all(hostile: Hostile, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["check-data", str(hostile.root), "--json"]) == 0
    report = json.loads(capfd.readouterr().out)
    broken: dict[str, str] = {}
    for split, good in hostile.good.items():
        found = report["splits"][split]
        assert found["per_class"] == good
        assert found["images"] == sum(good.values()) + len(found["broken"])
        broken |= found["broken"]
    assert_all_named(reasons([f"{name}: {why}" for name, why in broken.items()], hostile), hostile)
    assert [sorted(pair) for pair in report["leaks"]] == [[str(hostile.root / name) for name in hostile.leak]]
    assert [sorted(pair) for pair in report["duplicates"]] == [[str(hostile.root / name) for name in hostile.twins]]
    assert main(["check-data", str(hostile.root)]) == 0
    text = plain(capfd.readouterr().out)
    for name in hostile.bad_paths:
        assert f"  {plain(name)}: " in text


@pytest.mark.parametrize(
    ("task", "split", "word"),
    [("classify", "val", "evaluation"), ("dino", "val", "evaluation"), ("moco", "train", "training")],
)
def test_a_split_without_a_good_image_is_one_line(
    task: str, split: str, word: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = write_hostile(tmp_path / "data").root
    for image in (root / split).rglob("*.*"):
        if image.is_file() and not image.is_symlink():
            image.write_bytes(b"no image")
    assert train(root, tmp_path / "run", task, "--on-bad-image", "skip") == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert errors == [f"error: no image of the {word} data can be read"]
