"""``eval`` of classifiers: ReaL labels, ImageNet-V2, ten crops, and the files that it leaves."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image
from timm.data import ImageNetInfo, RealLabelsImagenet
from torch import Tensor, nn

from visionmlp.cli import main
from visionmlp.data.real_labels import read_real_labels
from visionmlp.errors import DataError
from visionmlp.models.checkpoint import CheckpointInfo, load_model, save_checkpoint
from visionmlp.recipes import evaluate
from visionmlp.tasks.classify.figures import _grouped, confusion_matrix, read_confusion
from visionmlp.tasks.classify.ten_crop import TenCropModel

from ...randomise import randomise

REAL = Path(timm.data.__file__).parent / "_info/imagenet_real_labels.json"
SYNSETS: list[str] = ImageNetInfo().label_names()
PLAIN = {"input_size": (3, 8, 8), "mean": (0.0,) * 3, "std": (1.0,) * 3, "interpolation": "bicubic", "crop_pct": 1.0}


class Reads(nn.Module):
    """Sees the class in the colour of an image: red is the hundreds, green the rest; then gives its output."""

    num_classes, in_chans = 1000, 3

    def __init__(self, outputs: Any = range(1000)) -> None:
        super().__init__()
        self.like = nn.Parameter(torch.zeros(()))
        self.outputs = torch.tensor(list(outputs))

    def forward(self, images: Tensor) -> Tensor:
        colours = (images[:, :2, 4, 4] * 255).round().long()
        return nn.functional.one_hot(self.outputs[colours[:, 0] * 100 + colours[:, 1]], 1000).float()


def info(class_names: list[str] | None = None, preprocessing: dict[str, Any] = PLAIN) -> CheckpointInfo:
    return CheckpointInfo(model="reads", form="training", class_names=class_names, preprocessing=preprocessing)


def draw(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (number // 100, number % 100, 0)).save(path)


def test_a_model_that_knows_imagenet_v2_scores_100_also_with_outputs_in_another_order(tmp_path: Path) -> None:
    for number in range(1000):
        draw(tmp_path / f"{number}/{(number * 7) % 1000}.png", number)
    turned = [(number + 300) % 1000 for number in range(1000)]
    names = [SYNSETS[turned.index(output)] for output in range(1000)]
    result = evaluate(Reads(turned), info(names), data=str(tmp_path), batch_size=250)  # type: ignore[arg-type]
    assert (result["top1"], result["images"]) == (100.0, 1000)
    assert result["ece"] == pytest.approx(100 - 100 * np.e / (np.e + 999))


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, int]]:
    """Some of ImageNet's validation images, in class folders and flat, and what `Reads` says about each."""
    root = tmp_path_factory.mktemp("real")
    entries = read_real_labels(REAL)
    random = np.random.default_rng(0)
    said: dict[str, int] = {}
    for number in random.permutation(np.arange(1, 50_001))[:60].tolist():
        labels = entries[number - 1]
        name = f"ILSVRC2012_val_{number:08d}.JPEG"
        said[name] = int(random.choice(labels)) if labels and random.random() < 0.6 else int(random.integers(1000))
        for place in (f"folders/{SYNSETS[(labels or [0])[0]]}", "flat"):
            draw(root / place / f"{name}.png", said[name])
            (root / place / f"{name}.png").rename(root / place / name)
    return root / "folders", root / "flat", said


def timms_accuracy(said: dict[str, int]) -> float:
    """timm's class wants all 50,000 names, and takes answers in their order."""
    rest = (f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 50_001))
    judge = RealLabelsImagenet([*said, *(name for name in rest if name not in said)], str(REAL), topk=(1,))
    judge.add_result(nn.functional.one_hot(torch.tensor(list(said.values())), 1000).float())
    return judge.get_accuracy(1)


def test_real_accuracy_is_timms_in_folders_flat_and_for_outputs_in_another_order(
    real: tuple[Path, Path, dict[str, int]],
) -> None:
    folders, flat, said = real
    expected = timms_accuracy(said)
    assert 30 < expected < 90
    entries = read_real_labels(REAL)
    empty = sum(not entries[int(name[15:23]) - 1] for name in said)
    assert empty > 0
    order = list(range(999, -1, -1))
    for folder, model, names in (
        (folders, Reads(), None),
        (flat, Reads(), None),
        (folders, Reads(order), SYNSETS[::-1]),
        (flat, Reads(order), SYNSETS[::-1]),
    ):
        result = evaluate(model, info(names), data=str(folder), real_labels=REAL, batch_size=33)  # type: ignore[arg-type]
        assert result["real"] == pytest.approx(expected)
        assert (result["real_images"], result["real_empty"]) == (60 - empty, empty)
        assert (result["images"], result["skipped"]) == (60, 0)
        if folder == flat:
            assert np.isnan([result[name] for name in ("top1", "top5", "loss", "ece")]).all()
        else:
            assert 0 < result["top1"] < 100
            assert result["top1"] != result["real"]
    without = evaluate(Reads(), info(), data=str(folders))  # type: ignore[arg-type]
    assert without["real"] is without["real_images"] is without["real_empty"] is None


def test_real_labels_need_a_model_of_imagenets_classes(real: tuple[Path, Path, dict[str, int]]) -> None:
    for model, names in ((load_model("repmlpnet_test")[0], None), (Reads(), [f"class {i}" for i in range(1000)])):
        with pytest.raises(DataError, match="ReaL labels are ImageNet's 1000 classes, and the 10"):
            evaluate(model, info(names), data=str(real[1]), real_labels=REAL)  # type: ignore[arg-type]


def test_ten_crops_answer_with_the_mean_of_their_probabilities() -> None:
    model, crops = nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), torch.randn(4, 10, 3, 2, 2) * 9
    logs = TenCropModel(model)(crops)
    means = torch.stack([model(crops[:, k]).softmax(1) for k in range(10)]).mean(0)
    torch.testing.assert_close(logs.softmax(1), means)
    torch.testing.assert_close(logs.exp(), means)
    sure = TenCropModel(nn.Flatten())(
        torch.full((1, 10, 1, 1, 1), 1e4).expand(1, 10, 1, 1, 2) * torch.tensor([1.0, -1])
    )
    assert torch.isfinite(sure).all()  # no logarithm of a probability that has rounded to zero


@pytest.fixture
def images(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for name in ("cat", "dog", "owl"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(4):
            pixels = random.integers(0, 256, (44, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")
    return tmp_path / "images"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    model, _ = load_model("repmlpnet_test", num_classes=3)
    randomise(model)
    path = tmp_path / "m.safetensors"
    save_checkpoint(path, model, class_names=["cat", "dog", "owl"])
    return path


def test_ten_crops_of_a_dataset(images: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["eval", str(checkpoint), "--data", str(images), "--json"]
    assert main([*words, "--ten-crop"]) == 2
    assert "crop_pct is 1: give a smaller one, such as --crop-pct 0.875" in capsys.readouterr().err
    assert main([*words, "--ten-crop", "--crop-pct", "0.8"]) == 0
    ten = json.loads(capsys.readouterr().out)
    assert main([*words, "--crop-pct", "0.8"]) == 0
    one = json.loads(capsys.readouterr().out)
    assert main(words) == 0
    whole = json.loads(capsys.readouterr().out)
    assert (ten["crops"], ten["crop_pct"], one["crops"], whole["crop_pct"]) == (10, 0.8, 1, 1.0)
    assert len({ten["loss"], one["loss"], whole["loss"]}) == 3

    model, about = load_model(checkpoint)
    total = 0.0
    from visionmlp.data import Preprocessing

    crops_of = Preprocessing.from_saved({**(about.preprocessing or {}), "crop_pct": 0.8}).ten_crop()
    for label, name in enumerate(("cat", "dog", "owl")):
        for path in (images / name).iterdir():
            with torch.no_grad():
                probabilities = model.eval()(crops_of(Image.open(path))).double().softmax(1).mean(0)
            total -= probabilities[label].log().item()
    assert ten["loss"] == pytest.approx(total / 12, rel=1e-4)


def test_eval_leaves_scores_tables_and_figures(
    images: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "scores/one"
    words = ["eval", str(checkpoint), "--data", str(images), "--output", str(output)]
    assert main([*words, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert json.loads((output / "eval.json").read_text()) == printed
    assert {path.name for path in output.iterdir()} == {
        *("eval.json", "confusion.csv", "confusion.png", "calibration.csv", "reliability.png")
    }
    confusion, names = read_confusion(output / "confusion.csv")
    assert names == ["cat", "dog", "owl"]
    assert confusion.sum(1).tolist() == [4, 4, 4]
    assert printed["top1"] == pytest.approx(100 * confusion.trace().item() / 12)
    rows = list(csv.DictReader((output / "calibration.csv").open()))
    assert len(rows) == 15
    full = [(int(row["images"]), float(row["confidence"]), float(row["accuracy"])) for row in rows if row["confidence"]]
    assert printed["ece"] == pytest.approx(sum(100 * n * abs(a - c) for n, c, a in full) / 12, abs=1e-3)
    assert all(float(row["above"]) < float(row["confidence"]) <= float(row["to"]) for row in rows if row["confidence"])
    for name in ("confusion.png", "reliability.png"):
        assert min(Image.open(output / name).size) > 400

    before = (output / "eval.json").read_bytes()
    assert main(words) == 2
    assert "eval.json exists; give another --output, or --force to replace it" in capsys.readouterr().err
    assert (output / "eval.json").read_bytes() == before
    assert main([*words, "--force", "--crop-pct", "0.5"]) == 0
    assert json.loads((output / "eval.json").read_text())["crop_pct"] == 0.5
    assert "ECE %" in capsys.readouterr().out


def test_eval_of_images_without_classes(
    real: tuple[Path, Path, dict[str, int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, _ = load_model("repmlpnet_test", num_classes=1000)
    save_checkpoint(tmp_path / "m.safetensors", model)
    output = tmp_path / "scores"
    output.mkdir()
    (output / "confusion.csv").write_text("of another evaluation")
    words = ["eval", str(tmp_path / "m.safetensors"), "--data", str(real[1]), "--output", str(output), "--force"]
    assert main([*words, "--real-labels", str(REAL)]) == 0
    table = capsys.readouterr().out
    assert "ReaL %" in table
    assert "without ReaL label" in table
    record = json.loads((output / "eval.json").read_text())
    assert record["top1"] is record["loss"] is record["ece"] is None
    assert record["real"] >= 0
    assert record["images"] == record["real_images"] + record["real_empty"] == 60
    assert [path.name for path in output.iterdir()] == ["eval.json"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--crop-pct", "0"], "crop-pct must be in (0, 1], got 0"),
        (["--force"], "--force is about the files of --output"),
        (["--protocol", "knn", "--ten-crop"], "--ten-crop is about a model's own classes; leave out --protocol"),
        (["--protocol", "knn", "--output", "x"], "--protocol knn writes nothing; leave out --output"),
        (["--real-labels", "none.json"], "ReaL labels are ImageNet's 1000 classes, and the 3 outputs"),
        (["--output", "{checkpoint}"], "is a file; --output takes a folder"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(
    words: list[str], message: str, images: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.format(checkpoint=checkpoint) for word in words]
    assert main(["eval", str(checkpoint), "--data", str(images), *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_matrices_of_many_classes_are_drawn_in_groups_beside_their_mistakes(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    counts = random.integers(0, 5, (7, 7))
    expected = [[counts[i : i + 3, j : j + 3].sum() for j in (0, 3, 6)] for i in (0, 3, 6)]
    assert _grouped(counts, 3).tolist() == expected
    assert _grouped(counts, 1).tolist() == counts.tolist()
    right = torch.eye(150).long() * 9
    wrong = right.clone()
    wrong[3, 100] = 8
    drawn = []
    for name, matrix in (("a", right), ("b", wrong)):
        path = confusion_matrix(matrix, [f"${i}" for i in range(150)], tmp_path / f"{name}.png")
        drawn.append(np.asarray(Image.open(path).convert("L")).astype(int))
    changed = np.argwhere(drawn[0] != drawn[1])[:, 1] / drawn[0].shape[1]
    assert (changed < 0.5).any()  # the cell
    assert (changed > 0.6).any()  # its line in the list
