"""Options reach timm's optimizers and schedules, and every rule says how to keep it."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from visionmlp.engine import TrainingConfig
from visionmlp.engine.optimization import create_ema, create_optimizer, create_schedule
from visionmlp.errors import InvalidConfig

from .toy import config_for, toy_model


class Tagged(nn.Module):
    """Names a matrix that takes no weight decay."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 3)
        self.table = nn.Parameter(torch.zeros(4, 4))

    def no_weight_decay(self) -> set[str]:
        return {"table"}


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


def test_schedules() -> None:
    warm = [0.1 + 0.9 * step / 8 for step in range(8)]
    common: dict[str, Any] = {"epochs": 10, "warmup_epochs": 2, "warmup_lr": 0.1}
    cosine = [0.05 + 0.95 * (1 + math.cos(math.pi * step / 40)) / 2 for step in range(8, 40)]
    linear = [0.05 + 0.95 * (1 - step / 40) for step in range(8, 40)]
    stairs = [0.5 ** (step // 12) for step in range(8, 40)]
    assert rates(schedule="cosine", min_lr=0.05, **common) == pytest.approx(warm + cosine)
    assert rates(schedule="linear", min_lr=0.05, **common) == pytest.approx(warm + linear)
    assert rates(schedule="step", decay_epochs=3, decay_rate=0.5, **common) == pytest.approx(warm + stairs)
    assert rates(schedule="constant", **common) == pytest.approx(warm + [1.0] * 32)


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
        ({"schedule": "cosin"}, "schedule must be one of cosine, linear, step, constant, got 'cosin'"),
        ({"precision": "16"}, "precision must be one of 32-true"),
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
