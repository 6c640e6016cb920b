"""Summing the parallel branches of a spatial mixer. Layout (B, H, W, C)."""

import functools
import operator

from torch import Tensor, nn

from visionmlp.layers.linear import Linear
from visionmlp.ops.eager import in_inference_graph


class Reweight(nn.Module):
    """Weighted sum of branches; the weights of a channel come from the pooled branches and add up to one.

    Average of the plain sum over positions, linear, GELU, linear, softmax over branches: the split attention of
    ResNeSt (arXiv 2004.08955), section 3, as used by ViP (arXiv 2106.12368), CycleMLP, Hire-MLP and DynaMixer.
    """

    def __init__(self, dim: int, branches: int = 3, *, reduction: int = 4) -> None:
        super().__init__()
        self.branches = branches
        self.fc1 = Linear(dim, dim // reduction)
        self.act = nn.GELU()
        self.fc2 = Linear(dim // reduction, dim * branches)

    def forward(self, *branches: Tensor) -> Tensor:
        """Maps (B, H, W, C), one for each branch, to their weighted sum (B, H, W, C)."""
        if in_inference_graph():  # compilers and runtimes sum in one pass, and take long over a mean of positions
            pooled = total(*branches).mean((1, 2))
        else:
            pooled = total(*(branch.mean((1, 2)) for branch in branches))
        weights = self.weights(pooled)
        # the sum reads each branch once; weights whose channels are not neighbours in memory would double its time
        weights = weights.movedim(2, 0)[:, :, None, None].contiguous()
        mixed = branches[0] * weights[0]
        for i in range(1, self.branches):
            # a tracer drops what nobody takes
            mixed = mixed.addcmul_(branches[i], weights[i])
        return mixed

    def weights(self, pooled: Tensor) -> Tensor:
        """The mean of the summed branches (B, C) to weights (B, C, branches)."""
        # output c * branches + i belongs to channel c and branch i
        return self.fc2(self.act(self.fc1(pooled))).unflatten(1, (-1, self.branches)).softmax(2)


class PlainSum(nn.Module):
    """Sum of branches without weights."""

    def forward(self, *branches: Tensor) -> Tensor:
        """Maps (B, H, W, C), one for each branch, to their sum (B, H, W, C)."""
        return total(*branches)


def total(*terms: Tensor) -> Tensor:
    """Sum of tensors of one shape."""
    return functools.reduce(operator.add, terms)
