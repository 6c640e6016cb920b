"""Losses and protocols against independent oracles."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from info_nce import InfoNCE
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from tests.golden import make_dino_loss as dino_oracle
from visionmlp.data.transforms import Preprocessing
from visionmlp.engine import Processes
from visionmlp.engine.task import RunContext
from visionmlp.errors import InvalidConfig
from visionmlp.heads.projection import DinoHead, projector
from visionmlp.models.registry import create_model
from visionmlp.tasks.dino.config import DinoConfig
from visionmlp.tasks.dino.run import dino_views
from visionmlp.tasks.dino.task import Dino, DinoNetwork, dino_loss
from visionmlp.tasks.moco.config import MocoConfig
from visionmlp.tasks.moco.run import moco_views
from visionmlp.tasks.moco.task import contrast
from visionmlp.tasks.protocols.knn import KnnMetric, votes_of_neighbours
from visionmlp.tasks.self_supervised.teacher import follow, spread, teacher_mode, teacher_of

IMAGES, CLASSES = dino_oracle.IMAGES, dino_oracle.CLASSES


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("views", dino_oracle.LOCAL_VIEWS)
def test_dino_loss_and_centre_are_lightlys_over_steps(views: int) -> None:
    golden = np.load(dino_oracle.FILE)
    centre = torch.zeros(CLASSES, dtype=torch.float64)
    temperatures: dict[str, float] = {
        "student_temperature": dino_oracle.STUDENT_TEMPERATURE,
        "teacher_temperature": dino_oracle.TEACHER_TEMPERATURE,
    }
    for step in range(dino_oracle.STEPS):
        teacher = dino_oracle.scores(2, step)
        student = dino_oracle.scores(2 + views, 100 + step).requires_grad_()
        loss, entropy = dino_loss(student, teacher, centre, **temperatures)
        (gradient,) = torch.autograd.grad(loss.mean(), student)
        assert loss.mean().item() == pytest.approx(float(golden[f"local{views}_step{step}_loss"]), rel=1e-12)
        np.testing.assert_allclose(gradient.numpy(), golden[f"local{views}_step{step}_gradient"], rtol=1e-9, atol=1e-14)
        targets = torch.distributions.Categorical(logits=(teacher - centre) / dino_oracle.TEACHER_TEMPERATURE)
        torch.testing.assert_close(entropy, targets.entropy().mean(0), rtol=1e-10, atol=1e-14)
        centre = centre * dino_oracle.MOMENTUM + teacher.mean((0, 1)) * (1 - dino_oracle.MOMENTUM)
        np.testing.assert_allclose(centre.numpy(), golden[f"local{views}_step{step}_centre"], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
def test_contrast_is_info_nce_times_two_tau(temperature: float) -> None:
    queries, keys = random(IMAGES, 16).requires_grad_(), random(IMAGES, 16, seed=1)
    loss, _ = contrast(queries, keys, temperature)
    expected = InfoNCE(temperature)(queries, keys) * 2 * temperature
    torch.testing.assert_close(loss.mean(), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(loss.mean(), queries), torch.autograd.grad(expected, queries), rtol=1e-10, atol=1e-14
    )


def test_contrast_over_processes_finds_its_own_key() -> None:
    queries, keys = random(IMAGES, 16), random(IMAGES, 16, seed=1)
    whole, _ = contrast(queries, keys, 0.2)
    parts = [contrast(queries[start : start + 3], keys, 0.2, first=start)[0] for start in (0, 3)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-12, atol=0)


def test_neighbours_vote_as_scikit_learn_has_them() -> None:
    bank, labels, queries = random(90, 12), torch.arange(90) % 7, random(40, 12, seed=1)
    oracle = KNeighborsClassifier(
        20, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
    ).fit(bank.numpy(), labels.numpy())
    votes = votes_of_neighbours(bank, labels, queries, num_classes=7, k=20, temperature=0.07)
    np.testing.assert_allclose(
        (votes / votes.sum(1, keepdim=True)).numpy(), oracle.predict_proba(queries.numpy()), rtol=1e-9, atol=1e-12
    )


def metric_of(parts: list[tuple[torch.Tensor, torch.Tensor, bool]], k: int = 5) -> KnnMetric:
    metric = KnnMetric(7, k=k)
    for features, labels, in_bank in parts:
        metric.update(features, labels, in_bank=in_bank)
    return metric


def test_neighbours_do_not_depend_on_which_process_saw_what() -> None:
    bank, labels = random(60, 4), torch.arange(60) % 7
    bank[30:] = bank[:30]  # duplicates, of other classes
    queries, truth = random(30, 4, seed=1), torch.arange(30) % 7
    whole = metric_of([(bank, labels, True), (queries, truth, False)])
    halves = [
        metric_of([(bank[rank::2], labels[rank::2], True), (queries[rank::2], truth[rank::2], False)])
        for rank in (0, 1)
    ]
    together: Any = SimpleNamespace(gather=lambda _: [half.parts for half in halves])
    expected = whole.compute()
    merged = KnnMetric(7, k=5)
    merged.merge(together)
    assert merged.compute() == expected
    assert merged.images == whole.images == 30


def test_more_neighbours_than_images_are_cut_with_a_line() -> None:
    metric = metric_of([(random(9, 4), torch.arange(9) % 7, True), (random(3, 4), torch.arange(3), False)], k=200)
    with pytest.warns(UserWarning, match="k is 9, as only 9 training images can be neighbours"):
        assert 0 <= metric.compute()["knn"] <= 100


@pytest.mark.parametrize("options", [{"k": 0}, {"k": -3}, {"temperature": 0.0}, {"temperature": float("nan")}])
def test_neighbours_that_cannot_vote_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfig, match=next(iter(options))):
        KnnMetric(7, **options)


# teachers


def dino(**options: Any) -> tuple[Dino, DinoNetwork]:
    fields = {"model": "resmlp_test", "data": "x", "output": "x", "out_dim": CLASSES, "hidden_dim": 16, **options}
    config = DinoConfig.from_plain(fields)
    torch.manual_seed(0)
    backbone = create_model("resmlp_test", num_classes=0, drop_path_rate=0.5).double()
    network = DinoNetwork(backbone, DinoHead(backbone.num_features, CLASSES, hidden_dim=16).double())
    task = Dino(config, 7)
    task.start(network, RunContext(device=torch.device("cpu"), processes=Processes(), steps=10, steps_per_epoch=5))
    return task, network


def test_the_teacher_is_not_trained_drops_nothing_and_follows() -> None:
    task, network = dino(teacher_momentum=0.5)
    assert not task.teacher.training
    assert all(not parameter.requires_grad for parameter in task.teacher.parameters())
    before = {name: value.clone() for name, value in task.teacher.state_dict().items()}
    size = network.backbone.config.img_size
    views = tuple(random(4, 3, *size, seed=view) for view in range(3))
    batch: Any = SimpleNamespace(views=views, labels=torch.zeros(4))
    network.train()
    first, second = task.training_loss(network, batch), task.training_loss(network, batch)
    assert first.columns["entropy"] == second.columns["entropy"]  # no drop-path in the teacher
    assert first.total != second.total  # but in the student
    first.total.backward()
    assert all(parameter.grad is None for parameter in task.teacher.parameters())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 1.0
    task.after_step(network, 1, Processes())
    for name, value in task.teacher.named_parameters():
        torch.testing.assert_close(value, before[name] + 0.5, rtol=1e-12, atol=1e-12)


def test_momentum_of_one_leaves_the_teacher_bit_equal() -> None:
    task, network = dino(teacher_momentum=1.0)
    before = {name: value.clone() for name, value in task.teacher.state_dict().items()}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 1.0
    follow(task.teacher, network, 1.0)
    assert all(torch.equal(value, before[name]) for name, value in task.teacher.state_dict().items())


def test_the_temperature_rises_by_epochs_and_ends_where_it_should() -> None:
    task, _ = dino(
        warmup_teacher_temperature=0.04, teacher_temperature=0.07, warmup_teacher_temperature_epochs=3, warmup_epochs=0
    )
    values = [task.temperature(step) for step in range(0, 25, 5)]
    assert values == pytest.approx([*np.linspace(0.04, 0.07, 3), 0.07, 0.07])
    assert task.temperature(4) == task.temperature(0)


def test_prototypes_rest_in_the_first_epoch() -> None:
    task, network = dino(freeze_last_layer=1)
    for step, rests in ((0, True), (4, True), (5, False)):
        network.head.prototypes.weight.grad = torch.ones_like(network.head.prototypes.weight)
        task.before_step(network, step)
        assert (network.head.prototypes.weight.grad is None) == rests


@pytest.mark.parametrize(("scale", "said"), [(0.0, r"ln 32"), (1e6, "is 0 over")])
def test_a_collapsed_epoch_is_said(scale: float, said: str) -> None:
    task, network = dino(freeze_last_layer=0)
    with torch.no_grad():
        task.teacher.head.prototypes.weight.normal_()
    task.teacher.head.forward = lambda x: scale * random(len(x), CLASSES)  # type: ignore[method-assign]
    batch: Any = SimpleNamespace(views=(random(4, 3, *network.backbone.config.img_size),) * 2, labels=torch.zeros(4))
    for step in range(1, 5):
        task.training_loss(network, batch)
        task.centre.zero_()
        task.after_step(network, step, Processes())
    task.training_loss(network, batch)
    with pytest.warns(UserWarning, match=said):
        task.after_step(network, 5, Processes())


def test_batch_norms_of_a_teacher_take_the_batch() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).double()
    teacher = teacher_of(model)
    out = teacher(random(8, 4))
    torch.testing.assert_close(out.mean(0), torch.zeros(4, dtype=torch.float64), atol=1e-12, rtol=0)
    teacher.eval()
    assert teacher_mode(teacher)[1].training
    assert not teacher[2].training


def test_half_precision_does_not_hold_a_teacher_in_place() -> None:
    model = nn.Linear(4, 4).bfloat16()
    teacher = teacher_of(model)
    start = teacher.weight.clone()
    with torch.no_grad():
        model.weight += 1
    follow(teacher, model, 0.9999)
    assert (teacher.weight > start).all()


def test_spread() -> None:
    assert spread(torch.ones(8, 16)) == pytest.approx(0.0, abs=1e-6)
    assert spread(random(4096, 64)) == pytest.approx(1.0, rel=0.02)


# heads


def test_heads_have_the_published_layers() -> None:
    with torch.device("meta"):
        head = DinoHead(384, 65536)
    shapes = [tuple(p.shape) for name, p in head.named_parameters() if name.endswith("weight")]
    assert shapes == [(2048, 384), (2048, 2048), (256, 2048), (65536, 256)]
    cosines = DinoHead(8, 64, hidden_dim=8, bottleneck_dim=4)(torch.randn(50, 8))
    assert cosines.abs().max() <= 1 + 1e-5
    assert cosines.abs().max() > 0.5
    wide = projector(384, 256, hidden_dim=4096, layers=3)
    kinds = [type(layer).__name__ for layer in wide]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU"] * 2 + ["Linear", "BatchNorm1d"]
    assert all(layer.bias is None for layer in wide if isinstance(layer, nn.Linear))
    assert not wide[-1].affine  # type: ignore[union-attr]
    assert math.isclose(len(list(projector(8, 8, hidden_dim=8, layers=2, last_norm=False))), 4)


@pytest.mark.parametrize(("given", "dino", "moco"), [(None, "bicubic", "bilinear"), ("lanczos", "lanczos", "lanczos")])
def test_views_are_resized_as_the_authors_do(given: str | None, dino: str, moco: str) -> None:
    """Whatever the model's own images were resized with."""
    options: dict[str, Any] = {"model": "resmlp_test", "data": "x", "output": "y", "interpolation": given}
    preprocessing = Preprocessing(
        input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="nearest", crop_pct=1.0
    )
    for views, name in (
        (dino_views(DinoConfig.from_plain(options), preprocessing, (16, 16)), dino),
        (moco_views(MocoConfig.from_plain(options), preprocessing), moco),
    ):
        crops: list[Any] = [view.transforms[0] for view in views.transforms]  # type: ignore[attr-defined]
        assert {crop.interpolation.value for crop in crops} == {name}


def test_heads_in_half_precision_stay_finite() -> None:
    head = DinoHead(8, 16, hidden_dim=8, bottleneck_dim=8).bfloat16()
    assert head(torch.zeros(2, 8, dtype=torch.bfloat16)).isfinite().all()
