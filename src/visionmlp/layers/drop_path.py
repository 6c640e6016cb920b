"""Stochastic depth (arXiv 1603.09382): timm's, in operators of which a symbolic trace loses none."""

from timm.layers import DropPath as TimmDropPath
from torch import Tensor


class DropPath(TimmDropPath):
    """Leaves out a residual branch of whole samples in training, and scales the others up.

    timm scales in place and takes the result from elsewhere; graphs drop operators whose result nobody takes.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) to (B, ...)."""
        if self.drop_prob == 0.0 or not self.training:
            return x
        keep = 1 - self.drop_prob
        return x * x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep).div_(keep)
