"""Structural re-parameterisation: one protocol for every module that has a cheaper equivalent."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from visionmlp.errors import InvalidConfig, NotInEvalMode
from visionmlp.layers.linear import Linear
from visionmlp.layers.memory_order import keep_order


class Fusible(nn.Module, ABC):
    """A training form with an equivalent deploy form."""

    @abstractmethod
    def fused(self) -> nn.Module:
        """The deploy form: ordinary modules that compute the same in evaluation.

        Pure: reads this module and changes nothing. Folded values are computed in float64 and cast back.
        The result may hold parts that are Fusible themselves; `reparameterize` visits them.
        """


_READ_IN_PLACE = 1 << 20
"""Elements of the largest weight that a product reads as it lies; larger ones are reordered, best from (O, C)."""


def parameter(value: Tensor, like: Tensor) -> nn.Parameter:
    """A folded float64 value as a parameter with the dtype and device of ``like``, frozen if that is."""
    return nn.Parameter(value.detach().to(like.device, like.dtype).contiguous(), requires_grad=like.requires_grad)


def linear(weight: Tensor, bias: Tensor | None, like: Tensor) -> Linear:
    """A linear layer that holds a folded weight (O, C) and bias (O,), with the dtype and device of ``like``.

    A small weight lies in memory as (C, O), the order in which products on a CPU read it, see `keep_order`.
    """
    layer = Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    if weight.numel() <= _READ_IN_PLACE:
        layer.weight = nn.Parameter(parameter(weight.t(), like).detach().t(), requires_grad=like.requires_grad)
        keep_order(layer)
    else:
        layer.weight = parameter(weight, like)
    if bias is not None:
        layer.bias = parameter(bias, like)
    return layer


def is_training_form(model: nn.Module) -> bool:
    """Whether `reparameterize` would change the model."""
    return any(isinstance(module, Fusible) for module in model.modules())


def reparameterize(model: nn.Module) -> nn.Module:
    """The deploy form of a model: a copy in which every `Fusible` part, the root included, is replaced by its fusion.

    Modules used in several places stay shared. Applying it to a deploy form returns an equal copy. Weights are trained,
    and averaged (timm's ``ModelEma``), in training form: a state dict of the deploy form holds copies of some.
    Source: RepMLPNet (arXiv 2112.11081), section 3.

    Raises:
        NotInEvalMode: if any part is in training mode, where batch statistics make the two forms differ.
        InvalidConfig: for a norm that cannot be folded, naming the part that it stands in.
    """
    training = [name or "the model" for name, module in model.named_modules() if module.training]
    if training:
        raise NotInEvalMode(f"{training[0]} is in training mode; call model.eval() before reparameterize(model)")
    model = copy.deepcopy(model)
    names = {module: name or "the model" for name, module in model.named_modules()}
    with torch.no_grad():
        for module in model.modules():
            for hook in module._forward_pre_hooks.values():
                if isinstance(hook, prune.BasePruningMethod):
                    hook(module, ())  # else the weight would be that of the last call
        return _deployed(model, {}, names).eval()


def _deployed(module: nn.Module, replacements: dict[nn.Module, nn.Module], names: Mapping[nn.Module, str]) -> nn.Module:
    # no closure: one that calls itself would keep both forms in memory until the garbage collector comes by
    if module in replacements:
        return replacements[module]
    result = module
    while isinstance(result, Fusible):
        try:
            result = result.fused()
        except InvalidConfig as error:
            raise InvalidConfig(f"{names.get(module, 'a part')}: {error}") from error
    replacements[module] = replacements[result] = result
    for name, child in list(result._modules.items()):
        if child is not None:
            setattr(result, name, _deployed(child, replacements, names))
    return result
