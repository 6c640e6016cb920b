"""Balance of experts over the batches of all processes, where each process has all experts.

Importance and load are sums over a batch (V-MoE, arXiv 2106.05974, appendix A), and their variation is no mean over its
parts: without this, the loss would depend on how many processes share a step's images. Places are counted within an
image, so capacity never does.
"""

from torch import Tensor, nn

from visionmlp.layers.collective import are_several, sum_over_processes
from visionmlp.layers.moe import Experts


class _Synchronised(Experts):
    """Sums of all processes in training; elsewhere, and in a single process, the class it is made of."""

    def total(self, sums: Tensor) -> Tensor:
        """Its gradient is a sum over processes too, as every process's loss contains it."""
        return sum_over_processes(sums) if are_several() else super().total(sums)


def synchronise_balance(model: nn.Module) -> nn.Module:
    """Let every mixture of experts balance the batches of all processes together; parameters and names stay."""
    for module in model.modules():
        if type(module) is Experts:
            module.__class__ = _Synchronised
    return model
