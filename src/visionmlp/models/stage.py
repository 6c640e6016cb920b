"""Stages, which all backbones are made of, and what their blocks share: drop-path rates and initial values."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from visionmlp.ops.eager import in_eager_inference, is_symbolic, is_watched

_PART = 1 << 21
"""Elements of the largest map that a `MapStage` computes at once."""


class Stage(nn.Module):
    """Down-sampling (or none), then blocks of one width and resolution."""

    def __init__(self, blocks: Sequence[nn.Module], *, downsample: nn.Module | None = None) -> None:
        super().__init__()
        self.downsample = downsample if downsample is not None else nn.Identity()
        self.blocks = nn.Sequential(*blocks)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """A map to a map."""
        x = self.downsample(x)
        for block in self.blocks:
            x = self.run(block, x)
        return x

    def run(self, block: nn.Module, x: Tensor) -> Tensor:
        """One block, recomputed in the backward pass if checkpointing is on."""
        if self.grad_checkpointing and torch.is_grad_enabled() and not is_symbolic(x):
            return checkpoint(block, x, use_reentrant=False)  # type: ignore[return-value]
        return block(x)


class MapStage(Stage):
    """A `Stage` whose blocks compute batch-first: in eager inference a batch of large maps is computed in parts.

    A few maps and what is computed from them stay in the caches, which a whole batch would leave in every block.
    """

    def forward(self, x: Tensor) -> Tensor:
        """A map to a map."""
        if not in_eager_inference(x) or len(x) == 1 or x.numel() <= _PART or self._needs_batch():
            return super().forward(x)
        return torch.cat([super(MapStage, self).forward(part) for part in x.chunk(-(-x.numel() // _PART))])

    def _needs_batch(self) -> bool:
        """Whether parts would change a norm's statistics, or be seen by a hook that waits for the batch."""
        return any(module.training or (module is not self and is_watched(module)) for module in self.modules())


def init_linear(module: nn.Module) -> None:
    """Start a linear layer as most authors do: truncated normal of deviation 0.02, zero bias; leave others alone."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def drop_path_rates(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Rates that grow linearly from 0 to ``rate`` over all blocks, grouped by stage."""
    last = max(sum(depths) - 1, 1)
    indices = iter(range(sum(depths)))
    return [[rate * next(indices) / last for _ in range(depth)] for depth in depths]
