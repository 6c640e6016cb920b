"""What of sharding works here is found by a small trial: versions of PyTorch, devices and optimizers differ."""

import copy
import warnings
from typing import TYPE_CHECKING

import torch
from torch import nn

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
    start = {name: value.clone() for name, value in one.state_dict().items()}
    other = copy.deepcopy(one)
    place = mesh.get_local_rank()
    try:
        shard(other, [Part(other[0])], mesh)
        optimizer = _optimizer(other, config)
        for _ in range(2):
            other(images[2 * place : 2 * place + 2]).square().mean().backward()
            gradients = [whole(parameter.grad) for parameter in other.parameters() if parameter.grad is not None]
            optimizer.step()
            optimizer.zero_grad()
    except InvalidConfig:
        raise
    except Exception as error:  # whatever a version of PyTorch or an optimizer fails with
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise InvalidConfig(
            f"strategy fsdp does not work with optimizer {config.optimizer}, PyTorch {torch.__version__} and device "
            f"{device.type} ({reason}); use strategy ddp, or another of these"
        ) from error
    optimizer = _optimizer(one, config)
    for _ in range(2):
        one(images).square().mean().backward()
        expected = [parameter.grad.clone() for parameter in one.parameters() if parameter.grad is not None]
        optimizer.step()
        optimizer.zero_grad()
    shards = dict(other.named_parameters())
    for name, value in one.state_dict().items():
        moved = value - start[name], whole(shards[name].detach()) - start[name]
        same = torch.allclose(*moved, rtol=_TOLERANCE, atol=_TOLERANCE * float(moved[0].abs().max()))
        config.require(
            same,
            f"optimizer {config.optimizer} makes other steps on shards, so not with strategy fsdp; try adamw, lamb",
        )
    for value, gradient in zip(expected, gradients, strict=True):
        config.require(
            torch.allclose(value, gradient, rtol=_TOLERANCE, atol=_TOLERANCE),
            f"PyTorch {torch.__version__} shards gradients wrongly on device {device.type}; use strategy ddp",
        )


def _optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run's own optimizer will say it
        return create_optimizer([{"params": list(model.parameters())}], config)
