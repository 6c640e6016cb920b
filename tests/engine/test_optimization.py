"""Options reach timm's optimizers and schedules, and every rule says how to keep it."""

import itertools
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import visionmlp
from visionmlp.engine import TrainingConfig
from visionmlp.engine.optimization import create_ema, create_schedule, parameter_groups
from visionmlp.engine.optimization import create_optimizer as optimizer_of_groups
from visionmlp.errors import InvalidConfig

from .toy import config_for, toy_fit, toy_model


class Tagged(nn.Module):
    """Names a matrix that takes no weight decay."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 3)
        self.table = nn.Parameter(torch.zeros(4, 4))

    def no_weight_decay(self) -> set[str]:
        return {"table"}


def create_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    return optimizer_of_groups(parameter_groups(model, config), config)


@pytest.mark.parametrize(
    ("name", "kind"), [("adamw", "AdamW"), ("SGD", "SGD"), ("lamb", "Lamb"), ("adagrad", "Adagrad")]
)
def test_optimizers_by_name_decay_matrices_only(name: str, kind: str) -> None:
    model = Tagged()
    optimizer = create_optimizer(model, config_for(Path("run"), optimizer=name, weight_decay=0.2, lr=0.3))
    assert type(optimizer).__name__ == kind
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay[id(model.fc.weight)] == 0.2
    assert decay[id(model.fc.bias)] == decay[id(model.table)] == 0.0
    assert all(group["lr"] == 0.3 for group in optimizer.param_groups)


def test_momentum_and_further_arguments_arrive() -> None:
    sgd = create_optimizer(toy_model(), config_for(Path("run"), optimizer="sgd", momentum=0.7))
    assert sgd.param_groups[0]["momentum"] == 0.7
    adam = create_optimizer(toy_model(), config_for(Path("run"), optimizer_args={"betas": [0.8, 0.9], "eps": 1e-3}))
    assert adam.param_groups[0]["betas"] == (0.8, 0.9)
    assert adam.param_groups[0]["eps"] == 1e-3
    with pytest.raises(InvalidConfig, match="adamw cannot be made with optimizer_args"):
        create_optimizer(toy_model(), config_for(Path("run"), optimizer_args={"wings": 2}))
    with pytest.raises(
        InvalidConfig, match=r"adamw cannot be made with optimizer_args .*capturable"
    ):  # fails in a step
        create_optimizer(toy_model(), config_for(Path("run"), optimizer_args={"capturable": True}))


def rates(**options: Any) -> list[float]:
    config = config_for(Path("run"), lr=1.0, **options)
    optimizer = create_optimizer(toy_model(), config)
    schedule = create_schedule(optimizer, config, steps=40, steps_per_epoch=4)
    values = []
    for step in [*range(40), 7]:  # a function of the step: going back works
        schedule.step_update(step)
        values.append(optimizer.param_groups[0]["lr"])
    assert values.pop() == values[7]
    return values


def test_inverse_square_root() -> None:
    """fairseq's: linear from warmup_lr to lr, then lr sqrt(W / n) for update n."""
    given = rates(schedule="inverse_sqrt", warmup_steps=4, warmup_lr=0.1)
    assert given == pytest.approx([0.1 + 0.9 * n / 4 if n < 4 else math.sqrt(4 / n) for n in range(40)])
    for options in ({}, {"warmup_steps": 0}, {"warmup_steps": 4, "warmup_ratio": 0.5}):
        with pytest.raises(InvalidConfig, match="inverse_sqrt falls from its warm-up on"):
            config_for(Path("run"), schedule="inverse_sqrt", **options)


def test_schedules() -> None:
    warm = [0.1 + 0.9 * step / 8 for step in range(8)]
    common: dict[str, Any] = {"epochs": 10, "warmup_epochs": 2, "warmup_lr": 0.1}
    cosine = [0.05 + 0.95 * (1 + math.cos(math.pi * step / 32)) / 2 for step in range(32)]
    linear = [0.05 + 0.95 * (1 - step / 32) for step in range(32)]
    stairs = [0.5 ** (step // 12) for step in range(32)]
    assert rates(schedule="cosine", min_lr=0.05, **common) == pytest.approx(warm + cosine)
    assert rates(schedule="linear", min_lr=0.05, **common) == pytest.approx(warm + linear)
    assert rates(schedule="step", decay_epochs=3, decay_rate=0.5, **common) == pytest.approx(warm + stairs)
    assert rates(schedule="constant", **common) == pytest.approx(warm + [1.0] * 32)
    # timm's and DeiT's shape
    cosine = [0.05 + 0.95 * (1 + math.cos(math.pi * step / 40)) / 2 for step in range(8, 40)]
    linear = [0.05 + 0.95 * (1 - step / 40) for step in range(8, 40)]
    stairs = [0.5 ** (step // 12) for step in range(8, 40)]
    timm: dict[str, Any] = {"warmup_prefix": False, **common}
    assert rates(schedule="cosine", min_lr=0.05, **timm) == pytest.approx(warm + cosine)
    assert rates(schedule="linear", min_lr=0.05, **timm) == pytest.approx(warm + linear)
    assert rates(schedule="step", decay_epochs=3, decay_rate=0.5, **timm) == pytest.approx(warm + stairs)


def test_milestones_count_from_the_runs_start() -> None:
    """mmdet's 1x in small: the first step behind a milestone is the first of the lower rate, whatever the warm-up."""
    common: dict[str, Any] = {"epochs": 10, "schedule": "step", "decay_milestones": [5.0, 8.5]}
    stairs = [1.0] * 20 + [0.1] * 14 + [0.01] * 6
    warm = [0.2 + 0.8 * step / 4 for step in range(4)]
    assert rates(**common) == pytest.approx(stairs)
    for prefix in (True, False):
        given = rates(**common, warmup_epochs=1, warmup_lr=0.2, warmup_prefix=prefix)
        assert given == pytest.approx(warm + stairs[4:])
    given = rates(**common, warmup_steps=4, warmup_ratio=0.2)
    assert given == pytest.approx(warm + stairs[4:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"schedule": "cosine", "decay_milestones": [3]},
            "decay_milestones are the step schedule's; give schedule step",
        ),
        ({"decay_milestones": [3, 2]}, r"decay_milestones must be positive and rise, got \[3, 2\]"),
        ({"decay_milestones": [0]}, "must be positive and rise"),
        ({"decay_milestones": [8, 10]}, "end at step 40, but the run has 40; give earlier ones"),
    ],
)
def test_milestones_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        rates(**{"epochs": 10, "schedule": "step", **options})


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("warmup_epochs", [1, 5, 9])
def test_a_schedule_has_no_cliff_behind_its_warm_up(schedule: str, warmup_epochs: int) -> None:
    values = rates(schedule=schedule, epochs=10, warmup_epochs=warmup_epochs, warmup_lr=0.0)
    slope = max(1 / (4 * warmup_epochs), 2 / (40 - 4 * warmup_epochs))  # of warm-up; of a cosine at its steepest
    assert max(abs(b - a) for a, b in itertools.pairwise(values)) < slope + 1e-9
    assert max(values) == 1.0


def test_a_warm_up_longer_than_the_run_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="warmup_epochs 50 has at least as many steps, which must be less than"):
        config_for(Path("run"), max_steps=10, warmup_epochs=50)  # whatever an epoch is
    config = config_for(Path("run"), max_steps=10, warmup_epochs=5)
    optimizer = create_optimizer(toy_model(), config)
    with pytest.raises(InvalidConfig, match="warmup_epochs 5 is 20 steps, but the run has 10; shorten the warm-up"):
        create_schedule(optimizer, config, steps=10, steps_per_epoch=4)


def test_layers_further_down_learn_more_slowly() -> None:
    model = visionmlp.create_model("resmlp_test", num_classes=3)
    config = config_for(Path("run"), layer_decay=0.5, lr=1.0, warmup_epochs=0)
    optimizer = create_optimizer(model, config)
    create_schedule(optimizer, config, steps=40, steps_per_epoch=4).step_update(0)
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    by_name = {name: rate[id(parameter)] for name, parameter in model.named_parameters()}
    blocks = [by_name[f"stages.0.blocks.{i}.channel.fc1.weight"] for i in range(len(model.stages[0].blocks))]
    assert by_name["head.fc.weight"] == 1.0
    assert all(below == above / 2 for below, above in itertools.pairwise(blocks))
    assert by_name["stem.proj.weight"] < blocks[0]


def test_what_is_frozen_stays_and_rests(tmp_path: Path) -> None:
    model = toy_model(dropout=0.5)
    for layer in (model[0], model[1]):
        layer.requires_grad_(requires_grad=False)
    block = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).requires_grad_(requires_grad=False)
    model = nn.Sequential(block, *model)
    modes: list[list[bool]] = []
    model[3].register_forward_hook(lambda *_: modes.append([module.training for module in model.modules()]))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    toy_fit(config_for(tmp_path / "run", max_steps=3, weight_decay=0.5), model=model)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"5.weight", "5.bias"}  # no statistics of the norm either
    names = [name for name, _ in model.named_modules()]
    resting = {name for name, training in zip(names, modes[0], strict=True) if not training}
    assert resting == {"0", "0.0", "0.1", "1", "2"}
    with pytest.raises(InvalidConfig, match="every parameter of the model is frozen"):
        parameter_groups(model.requires_grad_(requires_grad=False), config_for(Path("run")))


@pytest.mark.parametrize(
    ("precision", "lr", "warns"), [("bf16-true", 1e-5, True), ("bf16-true", 0.1, False), ("32-true", 1e-5, False)]
)
def test_weights_that_bfloat16_holds_in_place_are_announced(
    tmp_path: Path, precision: str, lr: float, warns: bool
) -> None:
    config = config_for(tmp_path / "run", precision=precision, lr=lr, max_steps=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        toy_fit(config)
    texts = [str(warning.message) for warning in caught if "will not move" in str(warning.message)]
    assert bool(texts) == warns
    if warns:
        assert "too large for steps of lr 1e-05 in bfloat16" in texts[0]


def test_moving_average_options() -> None:
    assert create_ema(toy_model(), config_for(Path("run"))) is None
    plain = create_ema(toy_model(), config_for(Path("run"), ema_decay=0.99))
    warm = create_ema(toy_model(), config_for(Path("run"), ema_decay=0.99, ema_warmup=True))
    assert plain is not None
    assert warm is not None
    assert plain.get_decay(5) == 0.99
    assert warm.get_decay(5) < 0.99


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"weight_decay": -1.0}, "weight_decay must not be negative"),
        ({"save_every": 0}, "save_every must be at least 1, or left out"),
        ({"batch_size": 10, "accumulate": 4}, "multiple of devices x accumulate = 4; try 12"),
        ({"optimizer": "adanw2"}, "unknown optimizer 'adanw2'; did you mean adanw"),
        ({"optimizer": "adahessian"}, "optimizer 'adahessian' is not supported, as it needs second derivatives"),
        ({"optimizer": "LBFGS"}, "optimizer 'LBFGS' is not supported"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
        ({"momentum": -0.1}, "momentum must be in"),
        ({"seed": -1}, "seed must be in"),
        ({"seed": 2**63}, r"seed must be in \[0, 2\*\*63\), got 9223372036854775808"),
        (
            {"schedule": "cosin"},
            "schedule must be one of cosine, linear, poly, step, constant, inverse_sqrt, got 'cosin'",
        ),
        ({"precision": "16"}, "precision must be one of 32-true"),
        ({"layer_decay": 0.0}, r"layer_decay must be in \(0, 1\], got 0.0"),
        ({"clip_grad": 0.0}, "clip_grad must be positive"),
        ({"ema_decay": 1.0}, r"ema_decay must be in \(0, 1\)"),
        ({"ema_warmup": True}, "ema_warmup needs ema_decay"),
        ({"min_lr": 2.0}, "min_lr 2 must not exceed lr"),
        ({"warmup_epochs": 2.0, "epochs": 2}, "warmup_epochs 2 must be less than epochs 2"),
    ],
)
def test_each_rule_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        config_for(Path("run"), **options)


def test_a_configuration_survives_yaml() -> None:
    config = config_for(Path("run"), optimizer_args={"betas": (0.9, 0.95)}, lr=1e-3, warmup_epochs=1)
    plain = config.to_plain()
    assert plain["output"] == "run"
    again = TrainingConfig.from_plain({**plain, "lr": "1e-3"})  # YAML 1.1 reads 1e-3 as a string
    assert again.to_plain() == plain
    assert again.output == Path("run")
    with pytest.raises(InvalidConfig, match="unknown option 'batchsize'; did you mean batch_size"):
        TrainingConfig.from_plain({**plain, "batchsize": 3})
    for name, value in (("lr", "abc"), ("epochs", "abc"), ("epochs", True), ("optimizer_args", 3), ("seed", None)):
        with pytest.raises(InvalidConfig, match=f"{name} cannot be {value!r}"):
            TrainingConfig.from_plain({**plain, name: value})
    with pytest.raises(InvalidConfig, match="option 'output' is missing"):
        TrainingConfig.from_plain({"lr": 0.1})


def test_poly_and_mmcvs_warm_up() -> None:
    """mmcv's lr_updater: the schedule runs over all steps, and the warm-up is a factor of it."""
    poly = [0.05 + 0.95 * (1 - step / 40) ** 0.9 for step in range(40)]
    assert rates(schedule="poly", power=0.9, min_lr=0.05) == pytest.approx(poly)
    assert rates(schedule="poly", power=1.0) == pytest.approx([1 - step / 40 for step in range(40)])
    factors = [1 - (1 - step / 6) * (1 - 1e-6) for step in range(6)] + [1.0] * 34
    expected = [rate * factor for rate, factor in zip(poly, factors, strict=True)]
    warm: dict[str, Any] = {"warmup_steps": 6, "warmup_ratio": 1e-6}
    assert rates(schedule="poly", power=0.9, min_lr=0.05, **warm) == pytest.approx(expected)
    cosine = [(1 + math.cos(math.pi * step / 40)) / 2 for step in range(40)]
    expected = [rate * factor for rate, factor in zip(cosine, factors, strict=True)]
    assert rates(schedule="cosine", **warm) == pytest.approx(expected)
    # in steps, behind which the schedule begins
    expected = [step / 6 for step in range(6)] + [(1 - step / 34) ** 2 for step in range(34)]
    assert rates(schedule="poly", power=2.0, warmup_steps=6, warmup_lr=0.0) == pytest.approx(expected)


def test_a_factor_leaves_the_groups_apart() -> None:
    config = config_for(Path("run"), lr=1.0, schedule="poly", power=1.0, warmup_steps=4, warmup_ratio=0.0)
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": [one], "lr_scale": scale} for one, scale in zip(parameters, (1.0, 0.5), strict=True)]
    optimizer = optimizer_of_groups(groups, config)
    schedule = create_schedule(optimizer, config, steps=8, steps_per_epoch=4)
    schedule.step_update(2)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.75 * 0.5, 0.75 * 0.25])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"power": 0.0}, "power must be positive"),
        ({"warmup_steps": -1}, "warmup_steps must not be negative"),
        ({"warmup_steps": 3, "warmup_epochs": 1.0}, "say the same; leave out one of them"),
        ({"warmup_steps": 3, "max_steps": 3}, "warmup_steps 3 must be less than max_steps 3"),
        ({"warmup_ratio": 0.1, "warmup_epochs": 0.0}, "warmup_ratio needs a warm-up"),
        ({"warmup_ratio": 2.0, "warmup_steps": 2}, r"warmup_ratio must be in \[0, 1\]"),
        ({"eval_steps": 0}, "eval_steps must be at least 1"),
    ],
)
def test_rules_of_steps(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        config_for(Path("run"), **options)


def test_a_warm_up_in_steps_is_shorter_than_the_run() -> None:
    config = config_for(Path("run"), warmup_steps=10)
    with pytest.raises(InvalidConfig, match="warmup_steps is 10 steps, but the run has 8"):
        create_schedule(create_optimizer(toy_model(), config), config, steps=8, steps_per_epoch=4)
