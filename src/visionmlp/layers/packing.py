"""Models whose weights lie in oneDNN's own order: the fastest eager inference on CPUs, for serving."""

import copy
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from visionmlp.errors import InvalidConfig
from visionmlp.layers.fusible import is_training_form
from visionmlp.layers.linear import Linear
from visionmlp.memory import keep_freed_memory
from visionmlp.ops.eager import is_watched
from visionmlp.ops.product import can_pack, packed, packed_conv2d, packed_kernel

_UNSAVED = "a packed model cannot be saved; save the model that it was packed from"


class _Packed(nn.Module):
    """A layer whose weight is opaque: it is no parameter, and cannot be saved or copied."""

    def _save_to_state_dict(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        raise InvalidConfig(_UNSAVED)

    def __getstate__(self) -> NoReturn:
        raise InvalidConfig(_UNSAVED)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Packed":
        # nothing ever writes to it
        return self


class PackedLinear(_Packed, Linear):
    """Deploy form of a `Linear`."""

    def __init__(self, layer: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.training = layer.training
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self._packed_weight = packed(layer.weight)
        self.bias = copy.deepcopy(layer.bias)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """(O, C), opaque."""
        return self._packed_weight


class PackedConv2d(_Packed):
    """Deploy form of an ``nn.Conv2d``."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.training = layer.training
        self.kernel = packed_kernel(layer)
        self.geometry = copy.copy(layer)
        self.geometry._parameters = {"weight": None, "bias": copy.deepcopy(layer._parameters["bias"])}

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H', W')."""
        return packed_conv2d(x, self.geometry, self.kernel)


def _is_packable(conv: nn.Conv2d) -> bool:
    return conv.padding_mode == "zeros" and not isinstance(conv.padding, str) and can_pack(conv.weight)


@torch.no_grad()
def prepack(model: nn.Module) -> nn.Module:
    """A copy of a deploy form for serving on a CPU, its weights reordered once instead of in every product.

    It computes in eager inference only (``torch.inference_mode()`` or ``torch.no_grad()``), and cannot be saved. The
    weights lie in memory once more; drop the model that it was made from, and they do not. From here on the process
    keeps what it frees, see `visionmlp.memory.keep_freed_memory`.
    Where PyTorch has no oneDNN, or the model is not on a CPU, it is a plain copy.

    Args:
        model: a deploy form, see `visionmlp.reparameterize`, float32 or bfloat16.

    Raises:
        InvalidConfig: if the model is in training form.
    """
    if is_training_form(model):
        raise InvalidConfig("prepack takes a deploy form; call visionmlp.reparameterize(model) before")
    keep_freed_memory()
    replaced: dict[int, Any] = {}
    for module in model.modules():
        if is_watched(module):  # it stays what it was
            continue
        if type(module) is Linear and can_pack(module.weight):
            replaced[id(module)] = PackedLinear(module)
        elif type(module) is nn.Conv2d and _is_packable(module):
            replaced[id(module)] = PackedConv2d(module)
    return copy.deepcopy(model, replaced)
