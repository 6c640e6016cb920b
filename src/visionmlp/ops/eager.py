"""Whether a deploy form may take its shortcuts, which reuse memory and depend on sizes."""

import torch
from torch import Tensor


def in_eager_inference(x: Tensor) -> bool:
    """True for a tensor on a CPU when nothing but its value will be asked for: no gradient, no graph of operations.

    Compilers and exporters get plain operators: they fuse them by themselves, and tracers lose writes through views.
    """
    return (
        x.device.type == "cpu"
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )
