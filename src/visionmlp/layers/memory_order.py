"""Weights that lie in memory in another order than their shape says: a state dict shows them as any other."""

from typing import Any

import torch
from torch import Tensor, nn


def keep_order(layer: nn.Module) -> None:
    """Keep the order in memory of a layer's ``weight`` to the layer.

    Its state dict holds a contiguous copy, which every format can store, and what is loaded, assigned or copied, gets
    the weight's order again: products read it faster, and round as they did before. What is written into that copy does
    not reach the weight: averages of weights (timm's ``ModelEma``) are kept of the training form.
    """
    layer.register_state_dict_post_hook(_show_contiguous)
    layer.register_load_state_dict_pre_hook(_restore_order)


def _show_contiguous(_module: nn.Module, state: dict[str, Any], prefix: str, _metadata: dict[str, Any]) -> None:
    weight = state.get(f"{prefix}weight")
    # with keep_vars it holds the parameter itself
    if isinstance(weight, Tensor) and not isinstance(weight, nn.Parameter):
        state[f"{prefix}weight"] = weight.contiguous()


def _restore_order(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    own, loaded = module.weight, state.get(f"{prefix}weight")
    assert isinstance(own, Tensor)
    if isinstance(loaded, Tensor) and loaded.shape == own.shape and loaded.stride() != own.stride():
        ordered = torch.empty_like(own, dtype=loaded.dtype, device=loaded.device, requires_grad=False)
        with torch.no_grad():
            state[f"{prefix}weight"] = ordered.copy_(loaded)
