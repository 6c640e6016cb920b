"""Locality on a model of your own: convolution branches train beside its token-mixing matrix, then merge into it.

    python examples/locality.py

Nothing in `Net` comes from the library but the branches. A token mixer takes part in Locality Injection (RepMLPNet,
arXiv 2112.11081) when it is a `LocalMixer` (it has a grid, branches, and says which of its entries depend on the grid)
and `Fusible` (it can say what it is once the branches are merged).
"""

import argparse
import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import visionmlp
from visionmlp.layers.fusible import linear
from visionmlp.layers.locality import LocalityBranches, LocalMixer


class Mixed(nn.Module):
    """``x + fc(x)`` over the positions of each channel; (B, C, h, w) to the same."""

    def __init__(self, grid: tuple[int, int], fc: nn.Linear) -> None:
        super().__init__()
        self.grid = grid
        self.fc = fc

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to (B, C, h, w)."""
        return x + self.fc(x.flatten(2)).unflatten(2, self.grid)


class Mixer(LocalMixer, visionmlp.Fusible):
    """`Mixed` with branches: ``x + fc(x) + branches(x)``."""

    token_sides: ClassVar = {"fc.weight": "matrix", "fc.bias": "vector"}

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.fc = nn.Linear(grid[0] * grid[1], grid[0] * grid[1])
        self.locality = LocalityBranches(1, ())  # none yet: add_locality brings them

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to (B, C, h, w)."""
        return x + self.locality.add_to(self.fc(x.flatten(2)).unflatten(2, self.grid), x)

    def fused(self) -> nn.Module:
        """A convolution over a map of fixed size is a matrix too (Eq. 12), so matrix and branches add up to one."""
        matrix, bias = self.locality.folded(self.grid, self.fc.weight)
        merged = linear(self.fc.weight.double() + matrix[0], self.fc.bias.double() + bias, self.fc.weight)
        return Mixed(self.grid, merged)


class Net(nn.Module):
    """A small classifier of images of one size: (B, 1, 32, 32) to (B, classes)."""

    def __init__(self, *, dim: int = 32, depth: int = 2, classes: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, dim, 4, stride=4)
        blocks = [(Mixer((8, 8)), nn.Conv2d(dim, dim, 1), nn.ReLU()) for _ in range(depth)]
        self.blocks = nn.Sequential(*(layer for block in blocks for layer in block))
        self.head = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, 32, 32) to logits."""
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What merging did."""

    accuracy: float
    """Of the training form on new images, percent."""
    error: float
    """Largest difference of the deploy form's logits, relative to the largest logit, in float64."""
    modules: tuple[int, int]
    """Leaf modules before and after."""


def stripes(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noisy stripes four pixels wide, (N, 1, 32, 32), and whether they are upright, (N,)."""
    labels = torch.randint(2, (count,), generator=generator)
    bars = (torch.arange(32) // 4 % 2).float().expand(count, 1, 32, 32)
    images = torch.where(labels.view(-1, 1, 1, 1) == 1, bars, bars.transpose(2, 3))
    return images + 0.5 * torch.randn(images.shape, generator=generator), labels


def run(*, steps: int) -> Result:
    """Train with branches, merge, compare."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = visionmlp.add_locality(Net(), kernel_sizes=(1, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        images, labels = stripes(32, generator)
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    model = model.eval().double()
    deployed = visionmlp.reparameterize(model)
    images, labels = stripes(256, generator)
    with torch.inference_mode():
        before, after = model(images.double()), deployed(images.double())
    return Result(
        accuracy=100 * (before.argmax(1) == labels).double().mean().item(),
        error=((after - before).abs().max() / before.abs().max()).item(),
        modules=(_leaves(model), _leaves(deployed)),
    )


def _leaves(model: nn.Module) -> int:
    return sum(not list(module.children()) for module in model.modules())


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100, help="training steps")
    result = run(steps=parser.parse_args(arguments).steps)
    print(
        f"accuracy {result.accuracy:.1f} %; {result.modules[0]} leaf modules merged into {result.modules[1]}; "
        f"relative difference of the logits {result.error:.1e}"
    )


if __name__ == "__main__":
    main()
