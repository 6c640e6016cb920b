"""What of sharding works here is found by a small trial: versions of PyTorch, devices and optimizers differ."""

import copy
import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from visionmlp.engine.config import TrainingConfig
from visionmlp.engine.optimization import create_optimizer
from visionmlp.engine.sharding import Part, shard, whole
from visionmlp.errors import InvalidConfig

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

_TOLERANCE = 1e-4
"""Relative, of steps in float32: in shards they differ by rounding only."""


def require_sharding(config: TrainingConfig, mesh: "DeviceMesh", device: torch.device) -> None:
    """Take two steps of a small model, whole and in shards; all processes call this together.

    Raises:
        InvalidConfig: if this PyTorch cannot do it on this device, or the optimizer steps otherwise on shards.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # first dimensions that cannot be split evenly, and one that is shorter than the number of processes
        one = nn.Sequential(nn.Linear(3, 2 * mesh.size() + 1), nn.Tanh(), nn.Linear(2 * mesh.size() + 1, 1)).to(device)
        images = torch.randn(2 * mesh.size(), 3, device=device)
    other, start = copy.deepcopy(one), copy.deepcopy(one)
    place = mesh.get_local_rank()
    try:
        shard(other, [Part(other[0])], mesh)
        gradients = _two_steps(other, images[2 * place : 2 * place + 2], config)
    except InvalidConfig:
        raise
    except Exception as error:  # whatever a version of PyTorch or an optimizer fails with
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise InvalidConfig(
            f"strategy fsdp does not work with optimizer {config.optimizer}, PyTorch {torch.__version__} and device "
            f"{device.type} ({reason}); use strategy ddp, or another of these"
        ) from error
    for value, gradient in zip(_two_steps(one, images, config), gradients, strict=True):
        config.require(
            torch.allclose(value, gradient, rtol=_TOLERANCE, atol=_TOLERANCE),
            f"PyTorch {torch.__version__} adds up gradients wrongly on device {device.type}; use strategy ddp",
        )
    for before, value, theirs in zip(start.parameters(), one.parameters(), other.parameters(), strict=True):
        step, other_step = value - before, whole(theirs.detach()) - before
        config.require(
            torch.allclose(step, other_step, rtol=_TOLERANCE, atol=_TOLERANCE * float(step.abs().max())),
            f"optimizer {config.optimizer} makes other steps on shards; use another with strategy fsdp, such as lamb",
        )


def _two_steps(model: nn.Module, images: Tensor, config: TrainingConfig) -> list[Tensor]:
    """Take them, on the same images; the whole gradients of the second one."""
    optimizer = _optimizer(model, config)
    gradients: list[Tensor] = []
    for _ in range(2):
        optimizer.zero_grad()
        model(images).square().mean().backward()
        gradients = [whole(parameter.grad) for parameter in model.parameters() if parameter.grad is not None]
        optimizer.step()
    return gradients


def _optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run's own optimizer will say it
        return create_optimizer([{"params": list(model.parameters())}], config)
