"""Networks that follow the trained one as an average of its weights."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionmlp.engine.sharding import whole


def teacher_of(model: nn.Module) -> nn.Module:
    """A copy that is not trained, in float32 where the model is in less, which could not hold an average's steps."""
    teacher = copy.deepcopy(model).requires_grad_(False)
    if next(model.parameters()).dtype in (torch.bfloat16, torch.float16):
        teacher = teacher.float()
    return teacher_mode(teacher)


def teacher_mode(teacher: nn.Module) -> nn.Module:
    """Evaluation mode, so that nothing is dropped, but for BatchNorm, which takes the statistics of the batch."""
    teacher.eval()
    for module in teacher.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
    return teacher


@torch.no_grad()
def follow(teacher: nn.Module, model: nn.Module, momentum: float) -> None:
    """Move the teacher's parameters to ``momentum`` of their own and the rest of the model's; buffers stay.

    Parameters that the teacher lacks, such as a predictor's, are left out. The teacher is whole in every process; the
    model may be in shards.
    """
    sources = dict(model.named_parameters())
    for name, own in teacher.named_parameters():
        own.mul_(momentum).add_(whole(sources[name].detach()).to(own.dtype), alpha=1 - momentum)


def spread(features: Tensor) -> Tensor:
    """How features (B, D) of a batch differ: 1 if their directions are independent, 0 if they are all the same."""
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    return F.normalize(features).std(0, correction=0).mean() * features.shape[1] ** 0.5
