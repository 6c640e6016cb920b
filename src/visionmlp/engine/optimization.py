"""Optimizers, schedules and the moving average: timm's, from a `TrainingConfig`."""

import inspect
import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim import Optimizer

from visionmlp.engine.config import TrainingConfig
from visionmlp.engine.sharding import local, whole
from visionmlp.errors import InvalidConfig

_STUCK_SHARE = 0.01
"""Of weights that bfloat16 may hold in place before a run says so."""


def parameter_groups(model: nn.Module, config: TrainingConfig) -> list[dict[str, Any]]:
    """Groups for the optimizer: no weight decay for biases, vectors and what ``model.no_weight_decay()`` names.

    With ``layer_decay``, each layer below the last has its learning rate multiplied once more; layers are those of
    timm's ``group_matcher``.

    Raises:
        InvalidConfig: if no parameter of the model can be trained.
    """
    unnamed = getattr(model, "no_weight_decay", tuple)()
    if config.layer_decay is None:
        groups = param_groups_weight_decay(model, config.weight_decay, no_weight_decay_list=unnamed)
    else:
        groups = param_groups_layer_decay(
            model, config.weight_decay, no_weight_decay_list=unnamed, layer_decay=config.layer_decay
        )
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise InvalidConfig("every parameter of the model is frozen, so there is nothing to train")
    return groups


def create_optimizer(groups: list[dict[str, Any]], config: TrainingConfig) -> Optimizer:
    """The optimizer of parameter groups.

    Raises:
        InvalidConfig: for arguments that the optimizer does not take or cannot make a step with, or for an optimizer
            that is not installed.
    """
    device = groups[0]["params"][0].device
    trial = nn.Parameter(torch.zeros(2, 2, device=device))
    trial.grad = torch.ones_like(trial)
    try:
        _optimizer([{"params": [trial]}], config).step()  # some arguments fail only there
        return _optimizer(groups, config)
    except (TypeError, ValueError, AssertionError, ImportError, RuntimeError, AttributeError) as error:
        raise InvalidConfig(
            f"optimizer {config.optimizer} cannot be made with optimizer_args {config.optimizer_args}: "
            f"{' '.join(str(error).split())}"
        ) from error


def _optimizer(groups: list[dict[str, Any]], config: TrainingConfig) -> Optimizer:
    # YAML and JSON have no tuples
    arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in config.optimizer_args.items()}
    return create_optimizer_v2(
        groups,  # type: ignore[arg-type] (it takes groups too)
        config.optimizer.lower(),
        lr=config.lr,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        **arguments,
    )


class WarmedUp:
    """A schedule whose rates are multiplied by a factor that rises linearly from ``ratio`` to 1, as mmcv warms up.

    Args:
        schedule: sets the rates of a step.
        optimizer: whose they are.
        steps: of the warm-up.
        ratio: factor of the first step.
    """

    def __init__(self, schedule: Scheduler, optimizer: Optimizer, *, steps: int, ratio: float) -> None:
        self.schedule, self.optimizer, self.steps, self.ratio = schedule, optimizer, steps, ratio

    def step_update(self, step: int) -> None:
        """Set the learning rate of a step."""
        self.schedule.step_update(step)
        if step < self.steps:
            factor = 1 - (1 - step / self.steps) * (1 - self.ratio)
            for group in self.optimizer.param_groups:
                group["lr"] *= factor


class InverseSqrt:
    """Linear rise to a rate, then fall with the square root of the step, as fairseq's schedule of this name.

    Source: arXiv 1706.03762, Eq. 3, in fairseq's parametrisation.

    Args:
        optimizer: whose rates are set; each group keeps its scale.
        rate: behind the warm-up.
        warmup: steps.
        start: rate of the first step.
    """

    def __init__(self, optimizer: Optimizer, *, rate: float, warmup: int, start: float) -> None:
        self.optimizer, self.rate, self.warmup, self.start = optimizer, rate, warmup, start

    def step_update(self, step: int) -> None:
        """Set the learning rate of a step."""
        if step < self.warmup:
            rate = self.start + (self.rate - self.start) * step / self.warmup
        else:
            rate = self.rate * math.sqrt(self.warmup / step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)


def create_schedule(
    optimizer: Optimizer, config: TrainingConfig, *, steps: int, steps_per_epoch: int
) -> "Scheduler | WarmedUp | InverseSqrt":
    """The learning rate as a function of the step: ``schedule.step_update(step)`` sets that of step ``step``.

    Raises:
        InvalidConfig: for a warm-up that is not over before the last step, or a milestone behind it.
    """
    warmup = round(config.warmup_epochs * steps_per_epoch) if config.warmup_steps is None else config.warmup_steps
    if warmup >= steps:
        said = "warmup_steps is" if config.warmup_steps is not None else f"warmup_epochs {config.warmup_epochs:g} is"
        raise InvalidConfig(f"{said} {warmup} steps, but the run has {steps}; shorten the warm-up")
    if config.schedule == "inverse_sqrt":
        return InverseSqrt(optimizer, rate=config.lr, warmup=warmup, start=config.warmup_lr)
    names = {"cosine": "cosine", "linear": "poly", "poly": "poly", "step": "step", "constant": "step"}
    # the power of poly; steps that change nothing
    rates = {"linear": 1.0, "poly": config.power, "constant": 1.0}
    replaced = 0 if config.warmup_ratio is not None else warmup
    prefix = config.warmup_prefix and replaced > 0
    milestones = [round(epoch * steps_per_epoch) for epoch in config.decay_milestones]
    if milestones and milestones[-1] >= steps:
        raise InvalidConfig(
            f"decay_milestones {list(config.decay_milestones)} end at step {milestones[-1]}, but the run has {steps}; "
            "give earlier ones"
        )
    schedule, _ = create_scheduler_v2(
        optimizer,
        "multistep" if milestones else names[config.schedule],
        # timm's epochs are our steps, as updates_per_epoch is 1
        num_epochs=steps - replaced if prefix else steps,
        decay_epochs=max(1, round(config.decay_epochs * steps_per_epoch)),
        # counted from the run's start, and timm's fall one step before theirs
        decay_milestones=[step + 1 - (replaced if prefix else 0) for step in milestones],
        decay_rate=rates.get(config.schedule, config.decay_rate),
        min_lr=config.min_lr,
        warmup_lr=config.warmup_lr,
        warmup_epochs=replaced,
        warmup_prefix=prefix,
        step_on_epochs=False,
        updates_per_epoch=1,
    )
    assert schedule is not None
    if config.warmup_ratio is None:
        return schedule
    return WarmedUp(schedule, optimizer, steps=warmup, ratio=config.warmup_ratio)


def set_weight_decay(optimizer: Optimizer, config: TrainingConfig, step: int, steps: int) -> None:
    """Weight decay of a step, on a cosine from ``weight_decay`` to ``weight_decay_end``, which is not reached.

    Groups without weight decay stay so. DINO, arXiv 2104.14294, appendix.
    """
    if config.weight_decay_end is None:
        return
    start, end = config.weight_decay, config.weight_decay_end
    value = end + (start - end) * (1 + math.cos(math.pi * step / steps)) / 2
    for group in optimizer.param_groups:
        if group["weight_decay"] > 0:
            group["weight_decay"] = value


def clip_each_gradient(parameters: Sequence[nn.Parameter], largest: float) -> Tensor:
    """Shorten the gradient of each parameter whose own norm is above ``largest``; returns the norm of all, before."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = torch.stack([whole(norm) for norm in torch._foreach_norm(gradients)])
    torch._foreach_mul_([local(gradient) for gradient in gradients], list((largest / (norms + 1e-6)).clamp(max=1.0)))
    return norms.norm()


def create_ema(model: nn.Module, config: TrainingConfig, *, sharded: bool = False) -> ModelEmaV3 | None:
    """The moving average of weights and buffers, at least in float32 (bfloat16 cannot hold its small steps).

    Args:
        model: not wrapped.
        config: options.
        sharded: whether its weights will be in shards, which go one by one, as buffers never are.

    Raises:
        InvalidConfig: for weights in bfloat16, if this timm cannot average them so.
    """
    if config.ema_decay is None:
        return None
    options: dict[str, Any] = {"dtype": torch.float32} if config.precision == "bf16-true" else {}
    if options and "dtype" not in inspect.signature(ModelEmaV3).parameters:
        raise InvalidConfig("ema_decay with precision bf16-true needs timm 1.0.31; use bf16-mixed, or upgrade timm")
    options["foreach"] = not sharded
    return ModelEmaV3(model, decay=config.ema_decay, use_warmup=config.ema_warmup, **options)


def frozen_modules(model: nn.Module) -> list[nn.Module]:
    """The outermost modules with parameters, all of which are frozen."""
    own = list(model.parameters())
    if own and not any(parameter.requires_grad for parameter in own):
        return [model]
    return [module for child in model.children() for module in frozen_modules(child)]


def warn_of_stuck_weights(model: nn.Module, config: TrainingConfig) -> None:
    """Warn if the weights are bfloat16 and many are too large to be moved by steps of the learning rate.

    A step below half the distance to the next number is rounded away: 2^-9 of the weight. Adam's steps are about lr.
    """
    if config.precision != "bf16-true":
        return
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    stuck = sum(int((weight.detach().abs().float() * 2**-9 > config.lr).sum()) for weight in weights)
    share = stuck / sum(weight.numel() for weight in weights)
    if share > _STUCK_SHARE:
        warnings.warn(
            f"{share:.0%} of the weights are too large for steps of lr {config.lr:g} in bfloat16 and will not move; "
            "use precision bf16-mixed, which keeps float32 weights",
            stacklevel=2,
        )
