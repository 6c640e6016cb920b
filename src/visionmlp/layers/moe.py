"""Mixture of experts: a router sends each item to a few of many MLPs. Layout (B, N, D): images, items, values.

Source: Sparse-MLP (arXiv 2109.02008); router and losses as in V-MoE (arXiv 2106.05974), sections 2.2-2.3, appendix A.

Items are dispatched without a loop: a running count gives each its place at its expert, one scatter fills a table of
places, two batched products compute all experts, one gather brings the results back. The number of places is fixed, so
shapes depend on the batch alone. Places are counted within an image: no image takes another one's.
"""

import math
from typing import NamedTuple

import torch
from timm.layers import register_notrace_function
from torch import Tensor, nn

from visionmlp.layers.auxiliary import AuxiliaryLoss
from visionmlp.layers.linear import Linear
from visionmlp.ops.eager import is_symbolic
from visionmlp.ops.gelu import gelu_
from visionmlp.ops.product import linear_of_each


class ExpertLinear(nn.Module):
    """One linear layer for each expert, computed as one batched product."""

    def __init__(self, experts: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features = in_features
        self.weight = nn.Parameter(torch.empty(experts, out_features, in_features))
        self.bias = nn.Parameter(torch.empty(experts, out_features))
        for value in (self.weight, self.bias):  # as nn.Linear
            nn.init.uniform_(value, -(in_features**-0.5), in_features**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(E, n, C) to (E, n, O)."""
        return linear_of_each(x, self.weight, self.bias)


class Experts(nn.Module):
    """MLPs of one shape: linear, GELU, linear, with dropout after each linear layer."""

    def __init__(self, experts: int, dim: int, hidden_dim: int, *, act: nn.GELU, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.count, self.dim = experts, dim
        self.fc1 = ExpertLinear(experts, dim, hidden_dim)
        self.act = act
        self.fc2 = ExpertLinear(experts, hidden_dim, dim)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """(E, n, D) to (E, n, D): ``n`` places for each expert."""
        hidden = gelu_(self.fc1(x), "tanh" if self.act.approximate == "tanh" else "none")
        return self.drop(self.fc2(self.drop(hidden)))

    def total(self, sums: Tensor) -> Tensor:
        """Sums over the items of everyone who uses these experts: here of this process alone."""
        return sums


class Choice(NamedTuple):
    """What a router decides."""

    logits: Tensor
    """(B, N, E), without noise; float32 at least."""
    noisy: Tensor
    """(B, N, E), what the decision is made from."""
    gates: Tensor
    """(B, N, K), weights of the chosen experts."""
    experts: Tensor
    """(B, N, K), int64, best first."""


@register_notrace_function
def in_full_precision(x: Tensor) -> Tensor:
    """In float32 at least."""
    # not by promote_types, which PyTorch 2.6 would write into an exported graph and not read again
    return x if x.dtype == torch.float64 else x.float()


class Router(nn.Module):
    """``TopK(softmax(W x + eps))``, with ``eps`` normal of deviation 1/E in training.

    Args:
        dim: values of an item.
        experts: E, at least 2.
        top_k: experts of an item.
        noise: whether ``eps`` is added in training.
        normalise_gates: divide the weights of the chosen experts by their sum.
    """

    def __init__(self, dim: int, experts: int, *, top_k: int, noise: bool, normalise_gates: bool) -> None:
        super().__init__()
        self.fc = Linear(dim, experts, bias=False)
        self.experts = experts
        self.top_k = top_k
        self.noise = noise
        self.normalise_gates = normalise_gates

    def forward(self, x: Tensor) -> Choice:
        """Items (B, N, D) to their experts."""
        logits = self.fc(x)
        logits = in_full_precision(logits)  # bfloat16 would make ties
        noisy = logits + torch.randn_like(logits) / self.experts if self.noise and self.training else logits
        gates, experts = noisy.softmax(-1).topk(self.top_k, dim=-1)
        if self.normalise_gates:
            gates = gates / gates.sum(-1, keepdim=True)
        return Choice(logits, noisy, gates, experts)


class Places(NamedTuple):
    """Where the choices of a batch go; B * K * N of them, images first, first choices before second ones."""

    rows: Tensor
    """(B, K*N), row in the table of all experts' places; one behind its end for choices beyond capacity."""
    kept: Tensor
    """(B, K*N), bool: whether there was a place."""


@register_notrace_function
def assign_places(experts: Tensor, count: int, capacity: int) -> Places:
    """A place for each choice, in order of rank and position, as long as its expert has some left for the image.

    Args:
        experts: (B, N, K), int64, chosen experts, best first.
        count: number of experts.
        capacity: places of an expert for an image.
    """
    batch = experts.shape[0]
    choices = experts.transpose(1, 2).flatten(1)
    # as integers before they are counted: OpenVINO would count in bytes, up to 255
    taken = (choices[..., None] == torch.arange(count, device=experts.device)).long().cumsum(1)
    place = taken.gather(2, choices[..., None]).squeeze(2) - 1
    images = torch.arange(batch, device=experts.device)[:, None]
    kept = place < capacity
    rows = torch.where(kept, (choices * batch + images) * capacity + place, count * batch * capacity)
    return Places(rows, kept)


@register_notrace_function
def filled_table(x: Tensor, places: Places, *, top_k: int, size: int) -> Tensor:
    """The items (B, N, D) at the places of their choices: (size, D). What stands at free places is never read."""
    batch, items, dim = x.shape
    rows = places.rows.flatten()
    # one more place, the last, takes what overflows
    if torch.is_grad_enabled() and not torch.jit.is_tracing():  # a trace must be the same with and without gradients
        table = x.new_zeros(size + 1, dim)
        return table.index_copy(0, rows, x.repeat(1, top_k, 1).flatten(0, 1))[:-1]
    # reading items takes less time than writing them, but its gradient would add them up, on a GPU in any order
    numbers = torch.arange(batch * items, device=x.device).view(batch, items).repeat(1, top_k).flatten()
    item_at = numbers.new_zeros(size + 1).index_copy(0, rows, numbers)
    return x.flatten(0, 1).index_select(0, item_at[:-1])


@register_notrace_function
def places_of_expert(items: int, top_k: int, experts: int, capacity_factor: float) -> int:
    """Places of an expert for an image of so many items; no expert can be chosen by more than all."""
    return max(1, min(items, math.ceil(top_k * items / experts * capacity_factor)))


class MixtureOfExperts(AuxiliaryLoss):
    """Weighted sum of the outputs of the experts that a router chooses for each item.

    An expert has ``ceil(K * N * capacity_factor / E)`` places for an image. Choices beyond them give zero: the residual
    around this module carries such an item on.

    Args:
        label: what this module's statistics are called.
        experts: the MLPs.
        router: chooses among them.
        capacity_factor: places over the number that even routing needs.
        importance_weight: of the importance loss, see `visionmlp.layers.auxiliary`.
        load_weight: of the load loss.
    """

    def __init__(
        self,
        label: str,
        experts: Experts,
        router: Router,
        *,
        capacity_factor: float,
        importance_weight: float,
        load_weight: float,
    ) -> None:
        super().__init__()
        self.label = label
        self.router = router
        self.experts = experts
        self.capacity_factor = capacity_factor
        self.importance_weight = importance_weight
        self.load_weight = load_weight

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        batch, items, dim = x.shape
        experts, top_k = self.router.experts, self.router.top_k
        capacity = places_of_expert(items, top_k, experts, self.capacity_factor)
        choice = self.router(x)
        places = assign_places(choice.experts, experts, capacity)
        if self.training and not is_symbolic(x):
            self._record(choice, places.kept)
        table = filled_table(x, places, top_k=top_k, size=experts * batch * capacity)
        mixed = self.experts(table.view(experts, batch * capacity, dim)).flatten(0, 1)
        chosen = mixed.index_select(0, (places.rows * places.kept).flatten())
        weights = choice.gates.transpose(1, 2).flatten(1) * places.kept
        return (chosen * weights.view(-1, 1).to(chosen.dtype)).view(batch, top_k, items, dim).sum(1)

    def _record(self, choice: Choice, kept: Tensor) -> None:
        # computed even if nobody collects: a recomputed block must save the tensors that it saved before
        sums = torch.stack([importance(choice), expected_load(choice)])
        gates, load = self.experts.total(sums)
        loss = self.importance_weight * squared_variation(gates) + self.load_weight * squared_variation(load)
        if self.is_collected:
            with torch.no_grad():
                self.hand_over(loss, self._statistics(choice, kept))

    def _statistics(self, choice: Choice, kept: Tensor) -> dict[str, Tensor]:
        """Shares of the choices for each expert, share without a place, and mean entropy over its largest value."""
        experts = self.router.experts
        chosen = choice.experts.flatten()[:, None] == torch.arange(experts, device=kept.device)
        values = {f"load{i}": share for i, share in enumerate(chosen.float().mean(0).unbind())}
        values["overflow"] = 1 - kept.float().mean()
        logarithms = choice.logits.log_softmax(-1)
        values["entropy"] = -(logarithms.exp() * logarithms).sum(-1).mean() / math.log(experts)
        return {f"{self.label}.{name}": value for name, value in values.items()}


def importance(choice: Choice) -> Tensor:
    """(E,): the gates of all experts, chosen or not, summed over items (V-MoE, appendix A)."""
    return choice.logits.softmax(-1).sum((0, 1))


def expected_load(choice: Choice) -> Tensor:
    """(E,): a smooth count of items: the chance that fresh noise keeps an expert in the top K (V-MoE, appendix A)."""
    experts = choice.logits.shape[-1]
    threshold = choice.noisy.gather(-1, choice.experts[..., -1:])
    return torch.special.ndtr((choice.logits - threshold) * experts).sum((0, 1))


def squared_variation(values: Tensor) -> Tensor:
    """Variance over squared mean: zero if all values are equal, and for no items at all."""
    return values.var(correction=0) / (values.mean().square() + 1e-10)
