"""BatchNorm over the batches of all processes, on any device; PyTorch's own needs a GPU."""

import torch
from torch import Tensor, nn

from visionmlp.layers.collective import are_several, sum_over_processes


class _Synchronised(nn.modules.batchnorm._BatchNorm):
    """Statistics of all processes in training; elsewhere, and in a single process, the class it is mixed into."""

    def forward(self, input: Tensor) -> Tensor:
        """As BatchNorm's, of one large batch."""
        if not self.training or not are_several():
            return super().forward(input)
        self._check_input_dim(input)
        dims = [0, *range(2, input.dim())]
        wide = input.float() if input.dtype in (torch.bfloat16, torch.float16) else input
        count = wide.new_tensor([wide.numel() // wide.shape[1]])
        sums = sum_over_processes(torch.cat([wide.sum(dims), count]))
        count = sums[-1].detach()
        shape = [1, -1, *[1] * (input.dim() - 2)]
        mean = sums[:-1] / count
        centred = wide - mean.view(shape)
        # in two passes, as the mean of squares loses digits
        variance = sum_over_processes(centred.square().sum(dims)) / count
        if self.track_running_stats:
            self._follow(mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
        result = centred * (variance + self.eps).rsqrt().view(shape)
        if self.weight is not None:
            result = result * self.weight.view(shape) + self.bias.view(shape)
        return result.to(input.dtype)

    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_(variance.to(self.running_var), share)


class SynchronisedBatchNorm1d(_Synchronised, nn.BatchNorm1d):
    """See the module."""


class SynchronisedBatchNorm2d(_Synchronised, nn.BatchNorm2d):
    """See the module."""


def synchronise_norms(model: nn.Module) -> nn.Module:
    """Let every BatchNorm of a model take its statistics over all processes; parameters and names stay."""
    for module in model.modules():
        # the class decides, so whoever holds the module holds the synchronised one
        if type(module) is nn.BatchNorm1d:
            module.__class__ = SynchronisedBatchNorm1d
        elif isinstance(module, nn.BatchNorm2d) and not isinstance(module, _Synchronised):
            if type(module) is not nn.BatchNorm2d:
                raise TypeError(f"{type(module).__name__} is a BatchNorm of its own kind, which cannot be synchronised")
            module.__class__ = SynchronisedBatchNorm2d
    return model


__all__ = ["SynchronisedBatchNorm1d", "SynchronisedBatchNorm2d", "synchronise_norms"]
