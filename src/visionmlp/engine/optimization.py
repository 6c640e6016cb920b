"""Optimizers, schedules and the moving average: timm's, from a `TrainingConfig`."""

from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim import Optimizer

from visionmlp.engine.config import TrainingConfig
from visionmlp.errors import InvalidConfig


def create_optimizer(model: nn.Module, config: TrainingConfig) -> Optimizer:
    """The optimizer, without weight decay for biases, vectors and what ``model.no_weight_decay()`` names.

    Raises:
        InvalidConfig: for arguments that the optimizer does not take, or one that is not installed.
    """
    # YAML and JSON have no tuples
    arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in config.optimizer_args.items()}
    try:
        return create_optimizer_v2(
            model,
            config.optimizer.lower(),
            lr=config.lr,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            **arguments,
        )
    except (TypeError, ValueError, AssertionError, ImportError) as error:
        raise InvalidConfig(
            f"optimizer {config.optimizer} cannot be made with optimizer_args {config.optimizer_args}: {error}"
        ) from error


def create_schedule(optimizer: Optimizer, config: TrainingConfig, *, steps: int, steps_per_epoch: int) -> Scheduler:
    """The learning rate as a function of the step: ``schedule.step_update(step)`` sets that of step ``step``."""
    names = {"cosine": "cosine", "linear": "poly", "step": "step", "constant": "constant"}
    schedule, _ = create_scheduler_v2(
        optimizer,
        names[config.schedule],
        num_epochs=steps,  # timm's epochs are our steps, as updates_per_epoch is 1
        decay_epochs=max(1, round(config.decay_epochs * steps_per_epoch)),
        decay_rate=1.0 if config.schedule == "linear" else config.decay_rate,  # the power, for poly
        min_lr=config.min_lr,
        warmup_lr=config.warmup_lr,
        warmup_epochs=round(config.warmup_epochs * steps_per_epoch),
        step_on_epochs=False,
        updates_per_epoch=1,
    )
    assert schedule is not None
    return schedule


def create_ema(model: nn.Module, config: TrainingConfig) -> ModelEmaV3 | None:
    """The moving average of weights and buffers, in float32 (bfloat16 cannot hold its small steps)."""
    if config.ema_decay is None:
        return None
    dtype = torch.float32 if config.precision == "bf16-true" else None
    return ModelEmaV3(model, decay=config.ema_decay, use_warmup=config.ema_warmup, dtype=dtype)
