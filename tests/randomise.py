"""Random parameters and norm statistics: fresh BatchNorms, zero heads and unit scales hide wrong fusions."""

import torch
from torch import nn


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Overwrite every parameter and buffer in place, keeping activations near unit scale."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(like: torch.Tensor, low: float, high: float) -> torch.Tensor:
        values = torch.rand(like.shape, generator=generator, dtype=torch.float64) * (high - low) + low
        return values.to(like.dtype)

    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if not value.is_floating_point():
                continue
            if name.endswith("running_var"):
                value.copy_(uniform(value, 0.5, 2.0))
            elif name.endswith("running_mean"):
                value.copy_(uniform(value, -0.5, 0.5))
            elif value.dim() < 2 and name.endswith(("weight", "alpha", "gamma")):
                value.copy_(uniform(value, 0.3, 1.2) * torch.where(uniform(value, -1, 3) < 0, -1.0, 1.0))
            elif value.dim() < 2:
                value.copy_(uniform(value, -0.5, 0.5))
            else:
                bound = (3 / value[0].numel()) ** 0.5
                value.copy_(uniform(value, -bound, bound))
    return model
