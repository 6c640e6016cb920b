"""Adding convolution branches to a model that has none."""

import copy
import dataclasses
from collections.abc import Sequence
from typing import TypeVar

from torch import nn

from visionmlp.errors import InvalidConfig
from visionmlp.layers.locality import LocalMixer
from visionmlp.models.backbone import Backbone

ModelT = TypeVar("ModelT", bound=nn.Module)


def add_locality(model: ModelT, kernel_sizes: Sequence[int] = (1, 3)) -> ModelT:
    """A copy of the model with convolution branches beside every token-mixing matrix, for training.

    Branches are depth-wise with one kernel for each share-set (one for ResMLP and MLP-Mixer), each followed by a
    BatchNorm, freshly initialised. Existing branches are kept. `reparameterize` merges all of them.
    Source: RepMLPNet (arXiv 2112.11081), section 4.1 and Table 5.

    Args:
        model: any model that holds token mixers with matrices over positions.
        kernel_sizes: odd sizes.

    Raises:
        InvalidConfig: for an even or repeated size, or if nothing in the model takes branches.
    """
    model = copy.deepcopy(model)
    mixers = [module for module in model.modules() if isinstance(module, LocalMixer)]
    if not mixers:
        raise InvalidConfig("nothing in this model mixes tokens by a matrix that branches could merge into")
    for mixer in mixers:
        like = next(mixer.parameters())
        extended = mixer.locality.extended(kernel_sizes).train(mixer.training)
        mixer.locality = extended.to(like.device, like.dtype)
    for module in model.modules():
        if isinstance(module, Backbone):
            merged = tuple(sorted({*getattr(module.config, "kernel_sizes", ()), *kernel_sizes}))
            module.config = dataclasses.replace(module.config, kernel_sizes=merged)  # type: ignore[call-arg]
    return model
