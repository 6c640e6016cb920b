"""Bad input: exit code 2, exactly one line on standard error, nothing lost and nothing left behind."""

import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from visionmlp.cli import main
from visionmlp.cli.commands import COMMANDS
from visionmlp.models.checkpoint import load_model, save_checkpoint

QUICK = ["--batch-size", "4", "--max-steps", "1", "--num-workers", "0"]

Fails = Callable[..., str]


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Fails:
    """Runs a command that must fail; returns its one line."""

    def run(*words: object, code: int = 2) -> str:
        capsys.readouterr()
        assert main([str(word) for word in words]) == code
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1, captured.err
        assert captured.err.endswith("\n")
        assert "Traceback" not in captured.err
        assert captured.out == ""
        return captured.err

    return run


@pytest.fixture
def images(tmp_path) -> Path:
    """An image folder: two classes of eight images, for training and validation."""
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in ("cat", "dog"):
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            for i in range(8):
                Image.fromarray(random.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "images"


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    model, _ = load_model("resmlp_test")
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, model)
    return path


@pytest.fixture
def read_only() -> Iterator[Path]:
    """A folder that cannot be written; for root, whom no permission stops, a path below a file."""
    folder = Path(tempfile.mkdtemp())
    try:
        if os.geteuid() == 0:
            (folder / "file").touch()
            yield folder / "file"
        else:
            (folder / "run").mkdir()
            for path in (folder / "run", folder):
                path.chmod(0o555)
            yield folder
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


def train(data: Path, output: Path, *words: object) -> list[object]:
    return ["train", "resmlp_test", "--data", data, "--output", output, *QUICK, *words]


# models and checkpoints


def test_unknown_model_names_the_nearest(fails: Fails, images: Path, tmp_path) -> None:
    for words in (
        ["train", "resmpl_s12", "--data", images, "--output", tmp_path / "run"],
        ["eval", "resmpl_s12", "--data", images],
        ["predict", "resmpl_s12", images],
        ["deploy", "resmpl_s12", "--output", tmp_path / "d.safetensors"],
        ["export", "resmpl_s12", "--output", tmp_path / "m.onnx"],
        ["bench", "resmpl_s12", "--csv", tmp_path / "b.csv"],
        ["models", "resmpl_s12"],
    ):
        line = fails(*words)
        assert "resmpl_s12" in line
        assert "did you mean resmlp_s12" in line
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_wrong_image_size_names_one_that_works(fails: Fails, images: Path, tmp_path) -> None:
    line = fails(*train(images, tmp_path / "run", "--img-size", 33))
    assert "33x33" in line
    assert "32x32" in line
    assert not (tmp_path / "run").exists()


def test_checkpoint_of_another_model(fails: Fails, checkpoint: Path, images: Path, tmp_path) -> None:
    before = checkpoint.read_bytes()
    assert "resmlp_test" in fails("predict", "repmlpnet_test", images / "val", "--checkpoint", checkpoint)
    assert "resmlp_test" in fails("deploy", "mlpmixer_test", "--checkpoint", checkpoint, "--output", tmp_path / "d")
    words = train(images, tmp_path / "run", "--checkpoint", checkpoint)
    words[1] = "mlpmixer_test"
    assert "resmlp_test" in fails(*words)
    assert checkpoint.read_bytes() == before
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_truncated_checkpoint(size: int, fails: Fails, checkpoint: Path, tmp_path) -> None:
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[:size])
    for words in (
        ["deploy", checkpoint],
        ["export", checkpoint, "--output", tmp_path / "m.onnx"],
        ["bench", checkpoint],
    ):
        assert f"{checkpoint} is truncated" in fails(*words)
    assert list(tmp_path.iterdir()) == [checkpoint]


def test_truncated_file_of_the_authors(fails: Fails, tmp_path) -> None:
    model, _ = load_model("resmlp_test")
    path = tmp_path / "authors.pth"
    torch.save(model.state_dict(), path)
    path.write_bytes(path.read_bytes()[:-500])
    assert "truncated" in fails("deploy", "resmlp_test", "--checkpoint", path, "--output", tmp_path / "d")


class Evil:
    """Runs code when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_pickle_that_would_run_code_does_not(save, fails: Fails, tmp_path) -> None:
    path, target = tmp_path / "evil.pth", tmp_path / "was_here"
    save({"model": Evil(target)}, path)
    line = fails("deploy", "resmlp_test", "--checkpoint", path, "--output", tmp_path / "d")
    assert "evil.pth" in line
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_checkpoint(fails: Fails, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no model.safetensors" in fails("deploy", tmp_path / "empty")
    assert "no checkpoint file" in fails("deploy", tmp_path / "missing.safetensors")
    assert list(tmp_path.iterdir()) == [tmp_path / "empty"]


# data


def test_truncated_training_image_stops_or_is_skipped_and_is_named(
    fails: Fails, images: Path, tmp_path, capsys
) -> None:
    for path in (images / "train").rglob("*.png"):
        path.write_bytes(path.read_bytes()[:-1500])
    line = fails(*train(images, tmp_path / "stopped", "--on-bad-image", "stop"))
    assert ".png" in line
    for path in sorted((images / "train").rglob("*.png"))[1:]:
        shutil.copy(images / "val" / path.parent.name / path.name, path)
    bad = sorted((images / "train").rglob("*.png"))[0]
    words = train(images, tmp_path / "skipped", "--on-bad-image", "skip", "--max-steps", 4)
    assert main([str(word) for word in words]) == 0
    named = capsys.readouterr().err + "".join(path.read_text() for path in (tmp_path / "skipped").glob("bad_images*"))
    assert f"{bad.parent.name}/{bad.name}" in named
    assert (tmp_path / "skipped" / "model.safetensors").is_file()


def test_empty_folder(fails: Fails, checkpoint: Path, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    assert "empty" in fails(*train(tmp_path / "empty", tmp_path / "run"))
    assert "no images" in fails("predict", checkpoint, tmp_path / "empty")
    assert "empty" in fails("eval", checkpoint, "--data", tmp_path / "empty")
    assert not (tmp_path / "run").exists()


def test_missing_folder(fails: Fails, checkpoint: Path, tmp_path) -> None:
    assert "nowhere" in fails(*train(tmp_path / "nowhere", tmp_path / "run"))
    assert "nowhere" in fails("eval", checkpoint, "--data", tmp_path / "nowhere")
    assert not (tmp_path / "run").exists()


def test_one_class_only(fails: Fails, images: Path, tmp_path) -> None:
    for split in ("train", "val"):
        shutil.rmtree(images / split / "dog")
    assert "class" in fails(*train(images, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_batch_size_larger_than_the_dataset(fails: Fails, images: Path, tmp_path) -> None:
    line = fails(*train(images, tmp_path / "run", "--batch-size", 64))
    assert "64" in line
    assert "16" in line
    assert not (tmp_path / "run").exists()


def test_unreadable_images_to_predict_are_named_and_the_others_predicted(images: Path, checkpoint, capsys) -> None:
    bad = images / "val" / "cat" / "3.png"
    bad.write_bytes(bad.read_bytes()[:-1500])
    assert main(["predict", str(checkpoint), str(images / "val" / "cat")]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert str(bad) in captured.err
    assert "4.png" in captured.out


def test_eval_without_data(fails: Fails, checkpoint: Path) -> None:
    assert "--data" in fails("eval", checkpoint)


# output


def test_read_only_output_folder(fails: Fails, read_only: Path) -> None:
    for words in (
        train(Path("sklearn/digits"), read_only / "new"),
        train(Path("sklearn/digits"), read_only / "run"),
        ["deploy", "resmlp_test", "--output", read_only / "d.safetensors"],
        ["export", "resmlp_test", "--output", read_only / "m.onnx"],
        ["bench", "resmlp_test", "--csv", read_only / "b.csv"],
    ):
        line = fails(*words)
        assert str(read_only) in line
        assert "ermission denied" in line or "ot a directory" in line


def test_paths_that_are_not_utf8_are_refused_before_the_work(
    fails: Fails, checkpoint: Path, images: Path, tmp_path
) -> None:
    odd = tmp_path / os.fsdecode(b"\xff")
    shutil.copy(checkpoint, tmp_path / os.fsdecode(b"\xff.safetensors"))
    for words in (
        train(images, odd),
        ["deploy", checkpoint, "--output", odd.with_suffix(".safetensors")],
        ["eval", odd.with_suffix(".safetensors"), "--data", images],
    ):
        assert "is not UTF-8" in fails(*words)
    assert not odd.exists() or not any(odd.iterdir())


def test_run_folder_that_exists_already(fails: Fails, images: Path, tmp_path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "precious.txt").write_text("kept")
    assert "exists" in fails(*train(images, folder))
    assert [path.name for path in folder.iterdir()] == ["precious.txt"]
    assert (folder / "precious.txt").read_text() == "kept"


def test_nothing_to_resume(fails: Fails, images: Path, tmp_path) -> None:
    assert "nothing to resume" in fails(*train(images, tmp_path / "run", "--resume"))
    assert "nothing to resume" in fails("train", "--resume", "--output", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_full_disk(fails: Fails, checkpoint: Path, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("visionmlp.deploy.certificate.save_checkpoint", full)
    line = fails("deploy", checkpoint, "--output", tmp_path / "d.safetensors", "--seconds", 0.02)
    assert "d.safetensors" in line
    assert "No space left" in line
    assert list(tmp_path.iterdir()) == [checkpoint]


# the command line itself


def test_unknown_option_names_the_nearest(fails: Fails, checkpoint: Path) -> None:
    assert "did you mean --batch-size" in fails("eval", checkpoint, "--batch_size", 4)
    assert "did you mean --batch-size" in fails("train", "resmlp_test", "--batchsize=4")
    assert "did you mean --output" in fails("export", checkpoint, "--outptu", "x")


def test_unknown_command_names_the_nearest(fails: Fails) -> None:
    assert "did you mean export" in fails("exprt")
    assert all(name in fails("qqqq") for name in COMMANDS)
    assert "did you mean --version" in fails("--versoin")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["eval", "m", "--batch-size", "x"], "--batch-size takes an integer, got 'x'"),
        (["bench", "m", "--batch-size", "1", "2.5"], "--batch-size takes an integer, got '2.5'"),
        (["bench", "m", "--form", "fast"], "--form takes training or deploy, got 'fast'"),
        (["bench", "m", "--batch-size"], "batch-size"),
        (["bench", "resmlp_test", "--threads", "0"], "threads"),
        (["bench", "resmlp_test", "--input-size", "0"], "input-size"),
        (["bench", "resmlp_test", "--dtype", "int8"], "add --runtime openvino"),
        (["bench", "m", "--compare", "cnn"], "--compare takes timm or peers, got 'cnn'"),
        (["bench", "resmlp_test", "--plot", "speed.pdf"], "speed.pdf must end in .png"),
        (["export", "m"], "--output must be given"),
        (["export", "m", "--output", "x.onnx", "--batch", "many"], "--batch takes 'dynamic' or a number, got 'many'"),
        (["export", "m", "--output"], "--output"),
        (["predict", "m"], "INPUT must be given"),
        (["predict"], "MODEL"),
        (["eval", "m", "more"], "unexpected argument more"),
        (["train", "m", "--lr", "fast"], "--lr takes a number, got 'fast'"),
        (["train", "m", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["train", "m", "--recipe", "cake"], "no recipe 'cake'"),
    ],
)
def test_bad_values(words: list[str], part: str, fails: Fails, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert part in fails(*words)
    assert not list(tmp_path.iterdir())


def test_bad_config_files(fails: Fails, tmp_path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: resmlp_test\nbatchsize: 4\n")
    assert "did you mean batch_size" in fails("train", "--config", path)
    path.write_text("model: [resmlp_test\n")
    assert "config" in fails("train", "--config", path)
    path.write_text("model: resmlp_test\nepochs: many\n")
    assert "--epochs takes an integer, got 'many'" in fails("train", "--config", path)


def test_interrupt(fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("visionmlp.measure.catalog.catalog", interrupt)
    assert fails("models", code=130) == "interrupted\n"


def test_interrupt_says_what_is_saved_in_one_line(fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt("stopped at step 3;\ncontinue with --resume")

    monkeypatch.setattr("visionmlp.measure.catalog.catalog", interrupt)
    assert fails("models", code=130) == "stopped at step 3; continue with --resume\n"


def test_preprocessing_of_another_number_of_channels(fails: Fails, images: Path, tmp_path) -> None:
    path = tmp_path / "grey.safetensors"
    save_checkpoint(path, load_model("resmlp_test", in_chans=1)[0], preprocessing={"mean": [0.5] * 3, "std": [0.5] * 3})
    for words in (["predict", path, images / "val"], ["eval", path, "--data", images]):
        assert f"{path}: its preprocessing has 3 values of mean, but the model takes 1 channels" in fails(*words)


def test_an_impossible_opset_is_one_line(fails: Fails, checkpoint: Path, tmp_path) -> None:
    words = ["export", checkpoint, "--output", tmp_path / "m.onnx", "--batch", 1, "--opset", 99]
    assert "cannot export to opset 99" in fails(*words)


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(ValueError, match="resmpl"):
        main(["deploy", "resmpl_s12", "--debug"])


def test_a_bug_is_not_dressed_up_as_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("visionmlp.measure.catalog.catalog", crash)
    with pytest.raises(ZeroDivisionError):
        main(["models"])
