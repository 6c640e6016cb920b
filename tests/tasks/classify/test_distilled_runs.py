"""Whole runs with a teacher: from the command line, resumed, with a cache, over parts and processes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from visionmlp.cli import main
from visionmlp.engine.run_folder import Table
from visionmlp.errors import InvalidConfig
from visionmlp.recipes import ClassifyConfig, train
from visionmlp.tasks.classify.config import DEFAULT_TEACHER
from visionmlp.tasks.classify.distillation import Distillation
from visionmlp.tasks.classify.teacher import Teacher

MIXED: dict[str, Any] = {
    "mixup": 0.4,
    "cutmix": 1.0,
    "label_smoothing": 0.1,
    "auto_augment": "rand-m9-mstd0.5-inc1",
    "drop_path_rate": 0.3,
    "ema_decay": 0.9,
    "accumulate": 2,
}
SOFT: dict[str, Any] = {"distill": "soft", "distill_reduction": "batchmean", "distill_temperature": 3.0}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes that differ in brightness: 16 images to train, 4 held out."""
    root = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 2)):
        for level, name in enumerate(("dark", "light")):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(100 * level, 100 * level + 150, (36, 36, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def teacher(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run, with a normalisation of its own."""
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    return train(config_for(images, folder, teacher=None, mean=(0.5, 0.4, 0.3), std=(0.3, 0.3, 0.3))).folder


def config_for(images: Path, output: Path, **options: Any) -> ClassifyConfig:
    defaults: dict[str, Any] = {
        "model": "resmlp_test",
        "epochs": 2,
        "batch_size": 4,
        "log_every": 1,
        "num_workers": 0,
        "accelerator": "cpu",
    }
    return ClassifyConfig(data=str(images), output=output, **{**defaults, **options})


def rows(folder: Path, name: str = "train.csv") -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in Table(folder / name).rows()]


def assert_same_end(a: Path, b: Path) -> None:
    weights = [sorted((run / "checkpoints").glob("*.safetensors"))[-1] for run in (a, b)]
    left, right = map(load_file, weights)
    assert weights[0].name == weights[1].name
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert rows(a) == rows(b)
    assert rows(a, "metrics.csv") == rows(b, "metrics.csv")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What the teacher tells the student, in the order of parts."""
    answers: list[Tensor] = []
    original = Distillation.answers

    def recorded(self: Distillation, *arguments: Any) -> Tensor:
        answers.append(original(self, *arguments))
        return answers[-1]

    monkeypatch.setattr(Distillation, "answers", recorded)
    return answers


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each batch that the network of a teacher computes."""
    batches: list[int] = []
    original = Teacher.logits

    def counted(self: Teacher, images: Tensor) -> Tensor:
        batches.append(len(images))
        return original(self, images)

    monkeypatch.setattr(Teacher, "logits", counted)
    return batches


def test_the_command_line_trains_a_student_that_never_needs_its_teacher_again(
    images: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(teacher, tmp_path / "teacher")
    words = ["train", "resmlp_test", "--data", str(images), "--output", str(tmp_path / "run"), "--max-steps", "4"]
    words += ["--batch-size", "4", "--num-workers", "0", "--log-every", "1", "--accelerator", "cpu"]
    words += ["--teacher", str(tmp_path / "teacher"), "--distill", "hard", "--distill-alpha", "0.25"]
    assert main(words) == 0, capsys.readouterr().err
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert (config["teacher"], config["distill"], config["distill_alpha"]) == (str(tmp_path / "teacher"), "hard", 0.25)
    for row in rows(tmp_path / "run"):
        assert row["loss"] == pytest.approx(0.75 * row["base_loss"] + 0.25 * row["distill_loss"], rel=1e-5)
        assert row["teacher_agreement"] in (0, 25, 50, 75, 100)
    assert (tmp_path / "run/distillation.png").exists()
    shutil.rmtree(tmp_path / "teacher")
    assert main(["eval", str(tmp_path / "run")]) == 0
    assert main(["predict", str(tmp_path / "run"), str(images / "val/dark/0.png")]) == 0
    assert main(["deploy", str(tmp_path / "run"), "--seconds", "0.02"]) == 0


def test_what_the_command_line_refuses(
    images: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "resmlp_test", "--data", str(images), "--output", str(tmp_path / "run"), "--batch-size", "4"]
    for given, message in (
        (["--distill", "soft"], f"distill without teacher; give one, such as {DEFAULT_TEACHER}"),
        (["--teacher", DEFAULT_TEACHER], f"teacher {DEFAULT_TEACHER} has 1000 classes, but the data 2; take"),
        (["--teacher", str(teacher), "--teacher-checkpoint", "x.pth"], "has weights already"),
        (["--teacher", str(tmp_path / "gone")], "no checkpoint file"),
    ):
        assert main([*words, *given]) == 2
        error = capsys.readouterr().err
        assert message in " ".join(error.split())
        assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_offline_is_one_line(images: Path, tmp_path: Path) -> None:
    """A real attempt to fetch the smallest teacher, in a process that may not; its classes are made to fit."""
    for split in ("train", "val"):
        for number in range(1000):
            (tmp_path / "data" / split / f"{number:04d}").mkdir(parents=True)
            shutil.copy(images / "val/dark/0.png", tmp_path / "data" / split / f"{number:04d}")
    words = ["train", "resmlp_test", "--data", str(tmp_path / "data"), "--output", str(tmp_path / "run")]
    words += ["--teacher", "test_resnet.r160_in1k", "--accelerator", "cpu"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "TORCH_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "visionmlp", *words], capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 2, done.stderr
    assert "error: the weights of teacher test_resnet.r160_in1k cannot be fetched (" in " ".join(done.stderr.split())
    assert "give teacher_checkpoint" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("options", [{}, {**MIXED, **SOFT}], ids=["hard", "soft and mixed"])
@pytest.mark.parametrize("cached", [False, True])
def test_a_killed_run_ends_bit_equal(
    options: dict[str, Any],
    cached: bool,
    images: Path,
    teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = {**options, "teacher": str(teacher), "save_every": 3, "batch_size": 8 if "mixup" in options else 4}
    train(config_for(images, tmp_path / "whole", **options))
    if cached:
        options["teacher_cache"] = tmp_path / "cache"
    killed = config_for(images, tmp_path / "killed", **options)
    original, calls = Distillation.combine, 0

    def dying(self: Distillation, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise MemoryError("killed")
        return original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Distillation, "combine", dying)
        with pytest.raises(MemoryError):
            train(killed)
    if cached:  # its last checkpoint is lost too, and the answers are asked for again
        max((tmp_path / "killed/checkpoints").glob("*.safetensors")).write_bytes(b"half")
        with pytest.warns(UserWarning, match="is damaged .*; trying an earlier one"):
            train(killed, resume=True)
    else:
        train(killed, resume=True)
    assert_same_end(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize("options", [{}, SOFT, {**MIXED, **SOFT}], ids=["hard", "soft", "soft and mixed"])
def test_another_student_finds_every_answer_in_the_cache(
    options: dict[str, Any],
    images: Path,
    teacher: Path,
    tmp_path: Path,
    told: list[Tensor],
    asked: list[int],
) -> None:
    options = {**options, "teacher": str(teacher), "batch_size": 8}
    train(config_for(images, tmp_path / "without", **options))
    expected = list(told)
    told.clear()
    asked.clear()
    options["teacher_cache"] = tmp_path / "cache"
    train(config_for(images, tmp_path / "first", **options))
    assert sum(asked) == 32
    assert_same_end(tmp_path / "without", tmp_path / "first")
    files = sorted((tmp_path / "cache").iterdir())
    told.clear()
    asked.clear()
    train(config_for(images, tmp_path / "second", model_args={"depth": 2}, num_workers=1, lr=1e-2, **options))
    assert asked == []
    assert len(told) == len(expected) > 0
    assert all(torch.equal(a, b) for a, b in zip(told, expected, strict=True))
    assert sorted((tmp_path / "cache").iterdir()) == files
    assert rows(tmp_path / "first") != rows(tmp_path / "second")


def test_a_stopped_run_leaves_a_cache_that_the_next_goes_on_with(
    images: Path, teacher: Path, tmp_path: Path, told: list[Tensor], asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"teacher": str(teacher), "teacher_cache": tmp_path / "cache"}
    original = Distillation.combine

    def stopping(self: Distillation, *arguments: Any) -> Any:
        if len(told) == 6:
            raise KeyboardInterrupt
        return original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Distillation, "combine", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(config_for(images, tmp_path / "stopped", **options))
    expected = list(told)
    told.clear()
    asked.clear()
    # images that are not mixed are found whatever batch they are in, whole batches at a time
    train(config_for(images, tmp_path / "next", **{**options, "batch_size": 2}))
    assert len(asked) == 4
    assert torch.equal(torch.cat(told[:12]), torch.cat(expected))


def test_answers_to_other_images_are_refused(images: Path, teacher: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"teacher": str(teacher), "teacher_cache": tmp_path / "cache", "max_steps": 1}
    train(config_for(images, tmp_path / "run", **options))
    other = tmp_path / "other"
    shutil.copytree(images, other)
    (other / "train/dark/0.png").rename(other / "train/dark/99.png")
    second = tmp_path / "second"
    train(config_for(images, second, max_steps=1))
    for changed, data, what in (
        ({"seed": 1}, images, "seed = 0, not 1"),
        (SOFT, images, "distill = hard, not soft"),
        ({"hflip": 0.0}, images, "hflip = 0.5, not 0.0"),
        ({"mixup": 0.2}, images, "mixup = 0.0, not 0.2"),
        ({"repeated_augmentation": 2}, images, "repeated_augmentation = 1, not 2"),
        ({"teacher_precision": "bf16"}, images, "teacher_precision = 32-true, not bf16"),
        ({"mean": (0.1, 0.1, 0.1)}, images, "mean = "),
        ({"img_size": 48}, images, "input_size = "),
        ({"teacher": str(second)}, images, "the teacher's weights = "),
        ({}, other, "the data's names and classes = "),
    ):
        with pytest.raises(InvalidConfig, match=f"holds a teacher's answers for {what}") as caught:
            train(config_for(data, tmp_path / "refused", **{**options, **changed}))
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "refused").exists()


def test_a_teacher_may_move_but_not_change(images: Path, teacher: Path, tmp_path: Path) -> None:
    shutil.copytree(teacher, tmp_path / "before")
    options: dict[str, Any] = {"teacher": str(tmp_path / "before"), "epochs": 1}
    train(config_for(images, tmp_path / "run", **options))
    (tmp_path / "before").rename(tmp_path / "moved")
    assert train(config_for(images, tmp_path / "run", **{**options, "teacher": str(tmp_path / "moved")}), resume=True)
    train(config_for(images, tmp_path / "other", max_steps=1))
    with pytest.raises(InvalidConfig, match=r"the run was started with another teacher than .*other"):
        train(config_for(images, tmp_path / "run", **{**options, "teacher": str(tmp_path / "other")}), resume=True)
    with pytest.raises(InvalidConfig, match=r"was started with distill_alpha = 0.5, not 0.1"):
        train(
            config_for(
                images, tmp_path / "run", **{**options, "teacher": str(tmp_path / "moved"), "distill_alpha": 0.1}
            ),
            resume=True,
        )


def test_bf16_teaches(images: Path, teacher: Path, tmp_path: Path) -> None:
    options = {"teacher": str(teacher), "teacher_precision": "bf16", "precision": "bf16-mixed", **SOFT}
    train(config_for(images, tmp_path / "run", **options))
    assert all(np.isfinite(row["distill_loss"]) for row in rows(tmp_path / "run"))


@pytest.mark.parametrize("options", [{}, SOFT], ids=["hard", "soft"])
def test_parts_equal_one_batch(options: dict[str, Any], images: Path, teacher: Path, tmp_path: Path) -> None:
    options = {**options, "teacher": str(teacher), "batch_size": 8}
    train(config_for(images, tmp_path / "one", **options))
    train(config_for(images, tmp_path / "parts", accumulate=4, **options))
    for one, other in zip(rows(tmp_path / "one"), rows(tmp_path / "parts"), strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)


def test_two_processes_equal_one_and_share_a_cache(
    images: Path, teacher: Path, tmp_path: Path, asked: list[int]
) -> None:
    options: dict[str, Any] = {"teacher": str(teacher), "batch_size": 8, **SOFT, "teacher_cache": tmp_path / "cache"}
    two = config_for(images, tmp_path / "two", devices=2, **options)
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT.format(options=two.to_plain()))
    done = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    assert done.returncode == 0, done.stderr
    train(config_for(images, tmp_path / "one", **options))
    assert asked == []  # positions are the same for any number of processes
    for one, other in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)


_SCRIPT = """
from visionmlp.recipes import ClassifyConfig, train
if __name__ == "__main__":
    train(ClassifyConfig.from_plain({options!r}))
"""
