"""Losses of distillation, what a teacher sees, and where it comes from."""

import inspect
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.randomise import randomise
from visionmlp.data import Batch, Preprocessing
from visionmlp.errors import CheckpointError, CheckpointMismatch, InvalidConfig, UnknownModel, VisionMLPError
from visionmlp.layers.fusible import reparameterize
from visionmlp.models.backbone import Backbone
from visionmlp.models.checkpoint import load_model, save_checkpoint
from visionmlp.tasks.classify.config import DEFAULT_TEACHER, ClassifyConfig
from visionmlp.tasks.classify.distillation import Distillation, hard_loss, soft_loss
from visionmlp.tasks.classify.task import Classification, Mixing
from visionmlp.tasks.classify.teacher import Teacher, load_teacher

HALF = Preprocessing(input_size=(3, 32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
IMAGENET = Preprocessing(input_size=(3, 32, 32), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
LABELS = torch.tensor([0, 6, 3, 3, 1, 5])


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ---- losses


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("reduction", ["deit", "batchmean"])
def test_the_soft_loss_is_deits_formula(temperature: float, reduction: Any) -> None:
    student, teacher = random(6, 7), random(6, 7, seed=1, scale=3)
    expected = 0.0
    for own, other in zip(student.tolist(), teacher.tolist(), strict=True):
        q, p = ([math.exp(value / temperature) for value in row] for row in (own, other))
        q, p = [value / sum(q) for value in q], [value / sum(p) for value in p]
        expected += sum(b * (math.log(b) - math.log(a)) for a, b in zip(q, p, strict=True))
    expected *= temperature**2 / (6 * 7 if reduction == "deit" else 6)
    value = soft_loss(student, teacher, temperature=temperature, reduction=reduction)
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_the_soft_loss_is_timms_in_both_reductions() -> None:
    """timm's is the mean over the batch, so DeiT's times the number of classes."""
    tasks = pytest.importorskip("timm.task")
    if not hasattr(tasks, "LogitDistillationTask"):
        pytest.skip("this timm has no such task")

    class Fixed(nn.Module):
        num_classes, in_chans = 7, 3
        pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3}  # noqa: RUF012 (as timm's models have it)

        def __init__(self, logits: Tensor) -> None:
            super().__init__()
            self.logits = logits

        def forward(self, _: Tensor) -> Tensor:
            return self.logits

    student, teacher = random(6, 7), random(6, 7, seed=1, scale=3)
    options: dict[str, Any] = {"criterion": nn.CrossEntropyLoss(), "temperature": 3.0, "verbose": False}
    known = inspect.signature(tasks.LogitDistillationTask).parameters
    task = tasks.LogitDistillationTask(
        Fixed(student), Fixed(teacher), **{name: value for name, value in options.items() if name in known}
    )
    result = task(torch.zeros(6, 3, 2, 2), LABELS)["kd_loss"].item()
    assert soft_loss(student, teacher, temperature=3.0, reduction="batchmean").item() == pytest.approx(result)
    assert 7 * soft_loss(student, teacher, temperature=3.0, reduction="deit").item() == pytest.approx(result)


@pytest.mark.parametrize("reduction", ["deit", "batchmean"])
def test_a_student_that_equals_its_teacher_has_no_loss(reduction: Any) -> None:
    logits = random(6, 7, scale=5).requires_grad_()
    loss = soft_loss(logits, logits.detach().clone(), temperature=3.0, reduction=reduction)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-15)
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-15


def test_the_gradient_does_not_fall_with_classes_nor_temperature_unless_deit_divides() -> None:
    def norm(classes: int, reduction: Any, temperature: float = 1.0) -> float:
        student, teacher = torch.zeros(4, classes, dtype=torch.float64, requires_grad=True), torch.zeros(4, classes)
        teacher[:, 0] = 40 * temperature  # sure
        soft_loss(student, teacher, temperature=temperature, reduction=reduction).backward()
        assert student.grad is not None
        return student.grad.norm().item()

    assert norm(1000, "batchmean") == pytest.approx(norm(10, "batchmean"), rel=0.1)
    assert norm(1000, "deit") == pytest.approx(norm(10, "deit") / 100, rel=0.1)
    # tau from both: 1 / tau of the logits, tau^2 of the factor
    assert norm(10, "batchmean", 3.0) == pytest.approx(3 * norm(10, "batchmean"), rel=1e-6)


def test_the_hard_loss_takes_the_teachers_first_choice_unsmoothed() -> None:
    student, classes = random(6, 7), random(6, 7, seed=1).argmax(1)
    expected = -student.log_softmax(1)[torch.arange(6), classes].mean()
    assert hard_loss(student, classes).item() == pytest.approx(expected.item(), rel=1e-12)


# ---- the task


class Pixels(nn.Module):
    """Logits that are a matrix times the image; remembers what it saw, and in which mode."""

    def __init__(self, seed: int, classes: int = 7) -> None:
        super().__init__()
        self.fc = nn.Linear(3 * 32 * 32, classes)
        self.drop = nn.Dropout(0.5)
        randomise(self, seed)

    def forward(self, x: Tensor) -> Tensor:
        self.seen, self.mode = x, (self.training, torch.is_inference_mode_enabled())
        return self.fc(self.drop(x.flatten(1)))


def teacher_of(network: nn.Module, own: Preprocessing = HALF, student: Preprocessing = HALF, **options: Any) -> Teacher:
    return Teacher(network, name="t", model="m", preprocessing=own, student=student, **options)


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("mixing", [Mixing(), Mixing(mixup=1.0)])
def test_the_whole_loss_by_hand(kind: Any, mixing: Mixing) -> None:
    images = random(6, 3, 32, 32).float()
    teacher, student = Pixels(1).train(), Pixels(2).eval()
    distillation = Distillation(teacher_of(teacher), kind=kind, alpha=0.3, temperature=2.0, reduction="batchmean")
    task = Classification(7, label_smoothing=0.1, mixing=mixing, distillation=distillation)
    alone = Classification(7, label_smoothing=0.1, mixing=mixing)
    np.random.seed(3)  # noqa: NPY002 (mixup draws from it)
    base = alone.training_loss(student, Batch(images, LABELS)).total / 6
    np.random.seed(3)  # noqa: NPY002
    loss = task.training_loss(student, Batch(images, LABELS))
    assert torch.equal(teacher.seen, student.seen)
    assert torch.equal(teacher.seen, images) != mixing.enabled
    assert teacher.mode == (False, True)
    answers = teacher.fc(student.seen.flatten(1))
    logits = student.fc(student.seen.flatten(1))
    choice = answers.argmax(1)
    if kind == "hard":
        distilled = F.cross_entropy(logits, choice)
    else:
        p, q = (answers / 2).softmax(1), (logits / 2).softmax(1)
        distilled = 4 * (p * (p / q).log()).sum() / 6
    assert loss.count == 6
    assert loss.total.item() / 6 == pytest.approx((0.7 * base + 0.3 * distilled).item(), rel=1e-5)
    assert loss.columns["base_loss"].item() == pytest.approx(base.item(), rel=1e-6)
    assert loss.columns["distill_loss"].item() == pytest.approx(distilled.item(), rel=1e-5)
    agreement = (logits.argmax(1) == choice).float().mean() * 100
    assert loss.columns["teacher_agreement"].item() == pytest.approx(agreement.item())
    loss.total.backward()
    assert student.fc.weight.grad is not None
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.parameters())


def test_no_teacher_no_columns_and_no_state() -> None:
    task = Classification(7)
    assert task.training_loss(Pixels(2), Batch(torch.zeros(6, 3, 32, 32), LABELS)).columns == {}
    assert task.state_dict() == {}
    with pytest.raises(ValueError, match="keeps no state"):
        task.load_state_dict({"teacher": "x"})


def test_a_run_resumes_with_its_own_teacher_only() -> None:
    def task(seed: int, own: Preprocessing = HALF) -> Classification:
        return Classification(7, distillation=Distillation(teacher_of(Pixels(seed), own)))

    state = task(1).state_dict()
    task(1).load_state_dict(state)
    for other in (task(2), task(1, IMAGENET)):
        with pytest.raises(InvalidConfig, match="was started with another teacher than t"):
            other.load_state_dict(state)


# ---- what a teacher sees


def test_a_teacher_sees_its_own_normalisation() -> None:
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def normalised(preprocessing: Preprocessing) -> Tensor:
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (preprocessing.mean, preprocessing.std))
        return (pixels - mean) / std

    teacher = teacher_of(Pixels(1), IMAGENET, HALF)
    torch.testing.assert_close(teacher.prepared(normalised(HALF)), normalised(IMAGENET), rtol=1e-5, atol=1e-6)
    network = teacher.network
    assert isinstance(network, Pixels)
    teacher.logits(normalised(HALF))
    torch.testing.assert_close(network.seen, normalised(IMAGENET), rtol=1e-5, atol=1e-6)
    same = normalised(HALF)
    assert teacher_of(Pixels(1), HALF, HALF).prepared(same) is same


def test_a_teacher_of_another_size_sees_resized_images() -> None:
    student = Preprocessing(input_size=(3, 48, 64), mean=HALF.mean, std=HALF.std)
    colours = random(2, 3, 1, 1).float()
    seen = teacher_of(Pixels(1), HALF, student).prepared(colours.expand(2, 3, 48, 64))
    torch.testing.assert_close(seen, colours.expand(2, 3, 32, 32))
    assert teacher_of(Pixels(1), HALF, student).logits(random(2, 3, 48, 64).float()).shape == (2, 7)


def test_bf16_is_another_arithmetic_with_answers_in_float32() -> None:
    images = random(4, 3, 32, 32).float()
    exact, rounded = (teacher_of(Pixels(1), precision=precision) for precision in ("32-true", "bf16"))
    assert exact.digest == rounded.digest
    assert {value.dtype for value in rounded.network.parameters()} == {torch.bfloat16}
    a, b = exact.logits(images), rounded.logits(images)
    assert a.dtype == b.dtype == torch.float32
    assert not torch.equal(a, b)
    torch.testing.assert_close(a, b, rtol=0.05, atol=0.1)


def test_other_channels_are_refused() -> None:
    grey = Preprocessing(input_size=(1, 32, 32), mean=(0.5,), std=(0.5,))
    with pytest.raises(InvalidConfig, match="teacher t takes images of 3 channels, but the model 1; take a teacher"):
        teacher_of(Pixels(1), HALF, grey)


# ---- where a teacher comes from


def load(reference: object, names: str = "ab", **options: Any) -> Teacher:
    return load_teacher(str(reference), student=IMAGENET, class_names=list(names), **options)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A checkpoint with a preprocessing of its own."""
    model, _ = load_model("resmlp_test", num_classes=2)
    randomise(model)
    path = tmp_path / "run" / "model.safetensors"
    path.parent.mkdir()
    preprocessing = {**HALF.to_saved(), "interpolation": "bilinear"}
    save_checkpoint(path, model, class_names=["a", "b"], preprocessing=preprocessing)
    return path


def test_files_folders_and_deploy_forms_are_teachers(file: Path, tmp_path: Path) -> None:
    model, info = load_model(file)
    deploy = tmp_path / "deploy.safetensors"
    fused = reparameterize(model)
    assert isinstance(fused, Backbone)
    save_checkpoint(deploy, fused, class_names=info.class_names, preprocessing=info.preprocessing)
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET.mean, IMAGENET.std))
    expected = model((pixels - 0.5) / 0.5)
    for reference in (file, file.parent, deploy):
        answers = load(reference).logits((pixels - mean) / std)
        torch.testing.assert_close(answers, expected, rtol=1e-3, atol=1e-3)
    named = load("resmlp_test", checkpoint=file)
    assert named.digest == load(file).digest


def test_teachers_that_do_not_fit_are_one_line(file: Path, tmp_path: Path) -> None:
    for reference, names, message, error in (
        (file, "abc", r"teacher .* has 2 classes, but the data 3; take a teacher that was trained on", InvalidConfig),
        (file, "ac", r"knows class 1 as 'b', but the data has 'c' there; take a teacher", InvalidConfig),
        (file, "ba", r"knows class 0 as 'a', but the data has 'b' there", InvalidConfig),
        ("resmlp_tset", "ab", r"teacher: no model 'resmlp_tset'; did you mean .*or one of timm's", UnknownModel),
        (tmp_path / "nothing", "ab", r"no checkpoint file", CheckpointError),
        (tmp_path, "ab", r"is no run folder with a finished evaluation", CheckpointError),
        (DEFAULT_TEACHER, "ab", r"teacher regnety_160.deit_in1k has 1000 classes, but the data 2", InvalidConfig),
        ("regnety_160.wrong", "ab", r"teacher regnety_160.wrong: .*wrong", UnknownModel),
        ("resnet18d.fb_dino", "ab", r"teacher resnet18d.fb_dino: ", UnknownModel),
        ("resmlp_test", "ab", r"resmlp_test", CheckpointError),
    ):
        with pytest.raises(error, match=message) as caught:
            load(reference, names)
        assert "\n" not in str(caught.value)
        assert isinstance(caught.value, VisionMLPError)
    with pytest.raises(InvalidConfig, match="has weights already; teacher_checkpoint is for a model's name only"):
        load(file, checkpoint=file)


def test_a_teacher_of_timm_from_a_file(tmp_path: Path) -> None:
    own = timm.create_model("test_resnet", num_classes=2).eval()
    randomise(own)
    path = tmp_path / "own.pth"
    torch.save({"state_dict": own.state_dict()}, path)
    teacher = load("test_resnet", checkpoint=path)
    size = own.pretrained_cfg["input_size"][1:]
    images = random(2, 3, 32, 32).float()
    resized = F.interpolate(teacher.prepared(images), size)
    assert teacher.size == tuple(size)
    torch.testing.assert_close(teacher.logits(images), own(resized), rtol=1e-4, atol=1e-4)
    with pytest.raises(InvalidConfig, match="teacher test_resnet has 2 classes, but the data 3"):
        load("test_resnet", "abc", checkpoint=path)
    torch.save({"state_dict": {**own.state_dict(), next(iter(own.state_dict())): torch.zeros(1)}}, path)
    with pytest.raises(CheckpointMismatch, match=r"own.pth does not fit teacher test_resnet: ") as caught:
        load("test_resnet", checkpoint=path)
    assert "\n" not in str(caught.value)


def test_a_teacher_that_cannot_be_fetched_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(timm, "create_model", offline)
    message = r"teacher regnety_160.deit_in1k cannot be fetched \(no route to host\); .* give teacher_checkpoint$"
    with pytest.raises(CheckpointError, match=message):
        load_teacher(DEFAULT_TEACHER, student=IMAGENET, class_names=[str(number) for number in range(1000)])


def test_the_default_teacher_is_one_of_timms() -> None:
    cfg = timm.models.get_pretrained_cfg(DEFAULT_TEACHER)
    assert cfg is not None
    assert (cfg.num_classes, cfg.input_size[-1]) == (1000, 224)


# ---- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distill": "soft"}, f"distill without teacher; give one, such as {DEFAULT_TEACHER}"),
        ({"teacher_cache": Path("x"), "distill_alpha": 0.1}, "distill_alpha and teacher_cache without teacher"),
        ({"teacher": "t", "distill": "both"}, "distill must be one of soft, hard"),
        ({"teacher": "t", "distill_alpha": 1.1}, r"distill_alpha must be in \[0, 1\], got 1.1"),
        ({"teacher": "t", "distill_alpha": -0.1}, r"distill_alpha must be in \[0, 1\]"),
        ({"teacher": "t", "distill_alpha": math.nan}, r"distill_alpha must be in \[0, 1\]"),
        ({"teacher": "t", "distill": "soft", "distill_temperature": 0.0}, "distill_temperature must be positive"),
        ({"teacher": "t", "distill": "soft", "distill_temperature": math.inf}, "distill_temperature must be positive"),
        ({"teacher": "t", "distill_temperature": 3.0}, "distill_temperature without distill soft"),
        ({"teacher": "t", "distill_reduction": "batchmean"}, "distill_reduction without distill soft"),
        ({"teacher": "t", "distill": "soft", "distill_reduction": "mean"}, "distill_reduction must be one of deit, b"),
        ({"teacher": "t", "teacher_precision": "fp16"}, "teacher_precision must be one of 32-true, bf16"),
    ],
)
def test_each_rule_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        ClassifyConfig(model="resmlp_test", data="data", output=Path("run"), **options)
