"""How the authors' tensors lie in memory, beside ours: one description serves reading and writing."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class View(NamedTuple):
    """Two inverse re-orderings of one tensor; neither computes."""

    read: Callable[[Tensor], Tensor]
    """The authors' tensor to ours."""
    write: Callable[[Tensor], Tensor]
    """Ours to the authors'."""


SAME = View(lambda theirs: theirs, lambda ours: ours)
CONV1X1 = View(lambda theirs: theirs.reshape(theirs.shape[:2]), lambda ours: ours[:, :, None, None])
"""A linear layer that the authors write as a 1x1 convolution."""
TRANSPOSED = View(lambda theirs: theirs.t(), lambda ours: ours.t())


class OfficialEntry(NamedTuple):
    """Where one of our state entries stands in the authors' files."""

    name: str
    view: View = SAME
