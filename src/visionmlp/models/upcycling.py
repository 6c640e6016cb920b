"""Sparse models that start from dense ones.

Source: Sparse upcycling (arXiv 2212.05055): every expert starts as a copy of the MLP that it stands in for.
"""

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from visionmlp.errors import InvalidConfig
from visionmlp.layers.channel_mlp import ChannelMLP
from visionmlp.layers.mixer_block import MixerBlock
from visionmlp.layers.moe import ExpertLinear, Experts, MixtureOfExperts
from visionmlp.layers.token_mixing import TokenMLP
from visionmlp.models.backbone import Backbone
from visionmlp.models.mlpmixer import MLPMixer, MLPMixerConfig
from visionmlp.models.official import load_strictly
from visionmlp.models.sparsemlp_moe import SparseBlock, SparseMLP, TokenExperts


def upcycle(model: SparseMLP, dense: Backbone | Mapping[str, Tensor]) -> SparseMLP:
    """Start a Sparse-MLP from an MLP-Mixer of the same widths, depth, image size and classes, in place.

    Stem, dense blocks, norm and classifier are copied. In a Sparse block

    - positions are re-represented as ``token_expansion`` equal maps, and back as their mean, which loses nothing;
    - channels are re-represented in the directions that the dense channel MLP reads and writes most, which loses the
      others unless ``channel_reduction`` is 1;
    - experts take the hidden units of the dense MLP, expert after expert, the first unit again behind the last one,
      scaled so that a narrow expert gives on average what the whole MLP gives. An expert whose width is that of the
      dense MLP, or a multiple, is a copy;
    - routers stay as they are.

    With ``channel_reduction=1``, experts of the dense widths, ``normalise_gates=True`` and enough places
    (``capacity_factor`` of at least experts / top_k) the result computes what the dense model does, in evaluation and
    up to rounding. Without ``normalise_gates`` experts begin weaker than the MLP, by their gates.

    Args:
        model: to start.
        dense: an MLP-Mixer in training form, or its state dict with our names.

    Returns:
        The model.

    Raises:
        CheckpointMismatch: if the dense weights do not fit.
        InvalidConfig: for anything but a Sparse-MLP to start and an MLP-Mixer to start from.
    """
    if not isinstance(model, SparseMLP):
        raise InvalidConfig("upcycle starts a Sparse-MLP in training form, such as create_model('sparsemlp_moe_s')")
    if not isinstance(dense, (Backbone, Mapping)):
        raise InvalidConfig(f"upcycle takes an MLP-Mixer or its state dict, got {type(dense).__name__}")
    if isinstance(dense, MLPMixer) and dense.config.gelu != "tanh":
        raise InvalidConfig("a Sparse-MLP computes GELU by tanh, but this MLP-Mixer was trained with gelu='erf'")
    state = dense.state_dict() if isinstance(dense, Backbone) else dense
    sparse = {field.name for field in dataclasses.fields(model.config)}
    names = [field.name for field in dataclasses.fields(MLPMixerConfig) if field.name in sparse]
    shared = {name: getattr(model.config, name) for name in names}
    twin = MLPMixer(model.name, MLPMixerConfig(**shared))
    load_strictly(twin, state, "the dense model")
    twin.double()
    with torch.no_grad():
        for part in ("stem", "norm", "head"):
            getattr(model, part).load_state_dict(getattr(twin, part).state_dict())
        for block, source in zip(_blocks(model), _blocks(twin), strict=True):
            if isinstance(block, SparseBlock):
                assert isinstance(source, MixerBlock)
                _start(block, source, model.config.token_expansion)
            else:
                block.load_state_dict(source.state_dict())
    return model


def _blocks(model: Backbone) -> list[nn.Module]:
    return [block for stage in model.stages for block in stage.get_submodule("blocks").children()]


def _start(block: SparseBlock, dense: MixerBlock, expansion: int) -> None:
    """Everything of a Sparse block but its routers; ``dense`` is in float64."""
    assert isinstance(dense.spatial, TokenMLP)
    assert isinstance(dense.channel, ChannelMLP)
    assert isinstance(block.spatial, TokenExperts)
    assert isinstance(block.channel, MixtureOfExperts)
    assert isinstance(dense.norm1, nn.LayerNorm)
    assert isinstance(dense.norm2, nn.LayerNorm)
    assert isinstance(block.norm1, nn.LayerNorm)
    assert isinstance(block.norm2, nn.LayerNorm)
    directions = _directions(dense.channel, block.norm1.normalized_shape[0])

    block.represent_equally()
    _set(block.enter.channels, directions)
    _set(block.leave.channels, directions.t())

    # an affine of channels cannot pass the token experts, so the norm keeps what is left of it
    _set(block.norm1, directions.square() @ dense.norm1.weight, directions @ dense.norm1.bias)
    weight, bias = dense.spatial.folded_fc1()
    outputs = dense.spatial.fc2
    _copy_units(
        block.spatial.moe.experts,
        (weight.repeat(1, expansion) / expansion, bias),
        (outputs.weight.repeat(expansion, 1), outputs.bias.repeat(expansion)),
    )

    # that of the second norm can, and a projection leaves its scales exact there
    _set(block.norm2, torch.ones(len(directions)))
    inputs, outputs = dense.channel.fc1, dense.channel.fc2
    _copy_units(
        block.channel.experts,
        (inputs.weight * dense.norm2.weight @ directions.t(), inputs.bias + inputs.weight @ dense.norm2.bias),
        (directions @ outputs.weight, directions @ outputs.bias),
    )


def _directions(mlp: ChannelMLP, count: int) -> Tensor:
    """Orthonormal (count, C): what the MLP reads and writes most; the axes themselves if none is left out."""
    if count == mlp.fc1.in_features:
        return torch.eye(count, dtype=torch.float64)
    energy = mlp.fc1.weight.t() @ mlp.fc1.weight + mlp.fc2.weight @ mlp.fc2.weight.t()
    return torch.linalg.eigh(energy).eigenvectors[:, -count:].t()


def _copy_units(experts: Experts, fc1: tuple[Tensor, Tensor], fc2: tuple[Tensor, Tensor]) -> None:
    """Fill experts with the hidden units of one MLP, given as weight and bias of its two layers."""
    units, (count, width, _) = len(fc1[1]), experts.fc1.weight.shape
    taken = torch.arange(count * width).view(count, width) % units
    _set(experts.fc1, fc1[0][taken], fc1[1][taken])
    _set(experts.fc2, fc2[0][:, taken].transpose(0, 1) * (units / width), fc2[1].expand(count, -1))


def _set(layer: nn.Linear | nn.LayerNorm | ExpertLinear, weight: Tensor, bias: Tensor | None = None) -> None:
    layer.weight.copy_(weight)
    if bias is None:
        layer.bias.zero_()
    else:
        layer.bias.copy_(bias)
