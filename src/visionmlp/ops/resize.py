"""Resizing trained token matrices to another grid, so that a fixed-size model takes another image size.

Source: ResMLP and MLP-Mixer publish no method for square token matrices; this is 4-D interpolation, separable into the
output grid and the input grid, bicubic like the usual treatment of position embeddings.
"""

from torch import Tensor
from torch.nn import functional as F

Grid = tuple[int, int]


def resize_grid(x: Tensor, old: Grid, new: Grid) -> Tensor:
    """Interpolate the last dimension, a flattened (h, w) grid, from ``old`` to ``new``; bicubic, other dimensions kept.

    Raises:
        ValueError: if the last dimension does not hold ``old[0] * old[1]`` values.
    """
    if x.shape[-1] != old[0] * old[1]:
        raise ValueError(f"a {old[0]}x{old[1]} grid has {old[0] * old[1]} tokens, the tensor {x.shape[-1]}")
    if old == new:
        return x
    maps = x.reshape(-1, 1, *old).double()
    resized = F.interpolate(maps, size=new, mode="bicubic", align_corners=False, antialias=True)
    return resized.reshape(*x.shape[:-1], new[0] * new[1]).to(x.dtype)


def resize_token_inputs(weight: Tensor, old: Grid, new: Grid) -> Tensor:
    """Resize the input tokens of (..., N_in) weights; scaled by N_in / N_in', so sums over tokens keep their size."""
    return resize_grid(weight, old, new) * (old[0] * old[1] / (new[0] * new[1]))


def resize_token_outputs(weight: Tensor, old: Grid, new: Grid) -> Tensor:
    """Resize the output tokens of (..., N_out, N_in) weights."""
    return resize_grid(weight.transpose(-1, -2), old, new).transpose(-1, -2).contiguous()


def resize_token_matrix(weight: Tensor, old: Grid, new: Grid) -> Tensor:
    """Resize both sides of (..., N, N) weights: 4-D interpolation over (y_out, x_out, y_in, x_in)."""
    return resize_token_outputs(resize_token_inputs(weight, old, new), old, new)


def resize_axis(x: Tensor, dim: int, length: int, *, summed: bool = False) -> Tensor:
    """Interpolate one dimension, along which tokens stand in a row or column, to ``length``; bicubic.

    With ``summed`` the layer adds up over these tokens: values are scaled so that its sums keep their size.
    """
    old = x.shape[dim]
    resize = resize_token_inputs if summed else resize_grid
    return resize(x.movedim(dim, -1), (1, old), (1, length)).movedim(-1, dim).contiguous()
