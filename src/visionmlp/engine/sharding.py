"""Weights, gradients and optimizer state in shards, one on each process: PyTorch's FSDP2 (``fully_shard``).

A shard is a DTensor, a part of the first dimension. Where whole tensors are needed (an evaluation, a teacher), `whole`
gathers them.
"""

import copy
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch.distributed.device_mesh import DeviceMesh


class Part(NamedTuple):
    """Of a model, whose weights are gathered together: when it is called, and for its backward pass."""

    module: nn.Module
    """Called as a module, by every process, as often as by the others."""
    is_kept: bool = False
    """Whether its weights stay from the forward to the backward pass, as those of losses beside its output must."""


def mesh_of(fabric: "Fabric") -> "DeviceMesh | None":
    """The processes of a run that shards its model, in one dimension; None for a run that does not."""
    from lightning_fabric.strategies import ModelParallelStrategy

    strategy = fabric.strategy
    return strategy.device_mesh["data_parallel"] if isinstance(strategy, ModelParallelStrategy) else None


def shard(model: nn.Module, parts: Iterable[Part], mesh: "DeviceMesh") -> None:
    """Leave each process its shard of a model, in place; what is in no part is gathered with the model itself.

    Args:
        model: on its device, in its precision, with equal weights on all processes.
        parts: of it.
        mesh: of one dimension.
    """
    from torch.distributed.fsdp import fully_shard

    for module, is_kept in parts:
        module.register_forward_hook(_in_own_memory)
        fully_shard(module, mesh=mesh, reshard_after_forward=not is_kept)
    model.register_forward_hook(_in_own_memory)
    fully_shard(model, mesh=mesh)


def _in_own_memory(_module: nn.Module, _inputs: Any, output: Any) -> Any:
    """The hook that gathers weights for the backward pass is lost if somebody writes into a view."""
    return tree_map(lambda value: value.clone() if isinstance(value, Tensor) and value._is_view() else value, output)


def is_sharded(value: Any) -> bool:
    """Whether a tensor is a process's shard of one."""
    if not isinstance(value, Tensor) or type(value) in (Tensor, nn.Parameter):
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)


def whole(value: Tensor) -> Tensor:
    """A tensor from the shards of all processes, who call this together; any other tensor as it is."""
    return value.full_tensor() if is_sharded(value) else value  # type: ignore[attr-defined]


def local(value: Tensor) -> Tensor:
    """What of a tensor lies in this process, in the same memory."""
    return value.to_local() if is_sharded(value) else value  # type: ignore[attr-defined]


def sharded_like(value: Tensor, other: Tensor) -> Tensor:
    """A whole tensor as this process's shard, if ``other`` of the same shape is one."""
    if is_sharded(value) or not is_sharded(other) or value.shape != other.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    twin: Any = other
    return distribute_tensor(value.to(twin.to_local().device), twin.device_mesh, twin.placements)


def empty_shard(shape: Iterable[int], dtype: torch.dtype, mesh: "DeviceMesh") -> Tensor:
    """A shard to be filled, of a tensor of a shape."""
    from torch.distributed.tensor import Shard, empty

    return empty(tuple(shape), dtype=dtype, device_mesh=mesh, placements=[Shard(0)])


def load_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """``load_state_dict`` for weights in any form: whole or shards, into either."""
    own = model.state_dict()
    model.load_state_dict({name: sharded_like(value, own.get(name, value)) for name, value in state.items()})


def optimizer_state(state: Mapping[str, Any], parameters: list[nn.Parameter]) -> dict[str, Any]:
    """An optimizer's state dict with whole tensors as shards, where those of their parameters are.

    Args:
        state: of ``torch.optim.Optimizer.state_dict``.
        parameters: of all groups, in order.
    """
    shards = {
        index: {
            name: sharded_like(value, parameters[index]) if isinstance(value, Tensor) else value
            for name, value in values.items()
        }
        for index, values in state["state"].items()
    }
    return {**state, "state": shards}


class Whole:
    """A model of ordinary tensors beside one in shards: to evaluate by processes on their own, and to be written.

    Args:
        model: not sharded yet.
    """

    def __init__(self, model: nn.Module) -> None:
        self.device = next(model.parameters()).device
        self.model = copy.deepcopy(model).to("cpu")  # it waits there

    def filled(self, model: nn.Module) -> nn.Module:
        """The model with the weights of its twin in shards; all processes call this together."""
        self.model.to("cpu")
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                value.copy_(whole(_entry(model, name)))
        return self.model.to(self.device)

    def rest(self) -> None:
        """Leave the device."""
        self.model.to("cpu")


def _entry(model: nn.Module, name: str) -> Tensor:
    owner, _, last = name.rpartition(".")
    return getattr(model.get_submodule(owner), last).detach()
