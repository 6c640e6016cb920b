"""Expert parallelism: each process of a group keeps a part of the experts, and all work on the items of all.

Between router and experts, items travel to the process that keeps their expert, and back: two all-to-all exchanges. A
training step is that of one process on the joined batch, whose parts are of one size on all processes::

    expert_parallel(model, group)
    loss = task.training_loss(model, my_part).value
    loss.backward()
    synchronise_gradients(model, group)
    optimizer.step()
    state = gather_state(model, group)  # of the whole model, for a checkpoint

Without data-parallel wrappers, which would average experts that are not the same. Routers' noise is drawn by each
process for itself.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from visionmlp.errors import InvalidConfig
from visionmlp.layers.collective import sum_over_processes
from visionmlp.layers.moe import Experts, MixtureOfExperts


class _Exchange(torch.autograd.Function):
    """Part i of the first dimension to process i; parts arrive in the order of processes. Its own transpose."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        received = torch.empty_like(x, memory_format=torch.contiguous_format)
        dist.all_to_all_single(received, x.contiguous(), group=group)
        return received

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        returned = torch.empty_like(gradients[0], memory_format=torch.contiguous_format)
        dist.all_to_all_single(returned, gradients[0].contiguous(), group=ctx.group)
        return returned, None


class ParallelExperts(Experts):
    """This process' part of the experts; takes and returns the places of all of them."""

    def __init__(self, whole: Experts, group: dist.ProcessGroup) -> None:
        nn.Module.__init__(self)
        self.count, self.dim = whole.count, whole.dim
        self.fc1, self.act, self.fc2, self.drop = whole.fc1, whole.act, whole.fc2, whole.drop
        self.group = group
        own = slice(*(self.count * (group.rank() + end) // group.size() for end in (0, 1)))
        for layer in (self.fc1, self.fc2):
            for name, value in list(layer.named_parameters()):
                part = nn.Parameter(value.detach()[own].clone(), requires_grad=value.requires_grad)
                layer.register_parameter(name, part)

    def forward(self, x: Tensor) -> Tensor:
        """(E, n, D) to (E, n, D): this process' places at all experts."""
        experts, places, dim = x.shape
        processes = self.group.size()
        arrived: Tensor = _Exchange.apply(x, self.group)  # type: ignore[assignment]
        # (processes, own experts, n, D): each own expert takes the places of all processes at once
        own = arrived.view(processes, experts // processes, places, dim).transpose(0, 1).flatten(1, 2)
        mixed = super().forward(own).unflatten(1, (processes, places)).transpose(0, 1).flatten(0, 1)
        return _Exchange.apply(mixed, self.group)  # type: ignore[return-value]

    def total(self, sums: Tensor) -> Tensor:
        """Sums over the items of all processes."""
        return sum_over_processes(sums, self.group)


def expert_parallel(model: nn.Module, group: dist.ProcessGroup) -> None:
    """Let every process of a group keep only its part of the experts, in place.

    Every process calls it with the same weights, and makes its optimizer afterwards. Names of the state stay.

    Args:
        model: any model with `MixtureOfExperts`.
        group: such as ``torch.distributed.group.WORLD``.

    Raises:
        InvalidConfig: if there is nothing to share, or a number of experts is no multiple of the number of processes.
    """
    mixtures = {name: module for name, module in model.named_modules() if isinstance(module, MixtureOfExperts)}
    if not mixtures:
        raise InvalidConfig("nothing in this model has experts that processes could share")
    for name, mixture in mixtures.items():
        if isinstance(mixture.experts, ParallelExperts):
            raise InvalidConfig(f"{name} shares its experts already; build the model again")
        if mixture.experts.count % group.size():
            raise InvalidConfig(
                f"{name} has {mixture.experts.count} experts, which {group.size()} processes cannot share evenly"
            )
    for mixture in mixtures.values():
        mixture.experts = ParallelExperts(mixture.experts, group).train(mixture.training)


def synchronise_gradients(model: nn.Module, group: dist.ProcessGroup) -> None:
    """Turn gradients of each process' mean loss into those of the mean over the joined batch, in place.

    Shared parameters get the average over processes. An expert has received the gradients of all losses already.

    Args:
        model: after ``backward``.
        group: that of `expert_parallel`.
    """
    experts = {id(p) for m in model.modules() if isinstance(m, ParallelExperts) for p in m.parameters()}
    for parameter in model.parameters():
        if parameter.grad is not None:
            if id(parameter) not in experts:
                dist.all_reduce(parameter.grad, group=group)
            parameter.grad.div_(group.size())


def gather_state(model: nn.Module, group: dist.ProcessGroup) -> dict[str, Tensor]:
    """The state dict of the whole model, on every process.

    Args:
        model: after `expert_parallel`.
        group: that of `expert_parallel`.
    """
    parts = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, ParallelExperts))
    state = {}
    for name, value in model.state_dict().items():
        if name.startswith(parts):
            whole = [torch.empty_like(value) for _ in range(group.size())]
            dist.all_gather(whole, value.contiguous(), group=group)
            value = torch.cat(whole)
        state[name] = value
    return state
