"""ResMLP that translates (Touvron et al., arXiv 2105.03404, section 2 "Sequence-to-Sequence ResMLP", and 3.5).

The encoder-decoder of Vaswani et al. with self-attention replaced by the cross-patch layer: a matrix over positions,
lower-triangular in the decoder, of which a shorter sentence takes the upper left part. Cross-attention stays. No code
was published; what the paper leaves open is a field of the configuration: length, heads, norms, and where the norm of
cross-attention stands (as every other of the network's, in front). Positions have no embedding: the matrices know them.

Layout (B, T, C).
"""

import copy
import dataclasses
from typing import cast

import torch
from torch import Tensor, nn

from visionmlp.errors import InvalidConfig
from visionmlp.layers.affine import Affine, LayerScale
from visionmlp.layers.channel_mlp import ChannelMLP
from visionmlp.layers.memory_attention import KeysValues, attend, keys_values
from visionmlp.layers.sequence_mixing import SequenceLinear
from visionmlp.models.translator import DecoderState, Memory, Translator, TranslatorConfig, source_mask

NORMS = ("affine", "layernorm")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResMLPSeq2SeqConfig(TranslatorConfig):
    """Choices of the architecture."""

    layer_scale: float = 0.2
    """Initial value of the scale behind each sub-layer (section 3.5)."""
    norm: str = "affine"
    """In front of each sub-layer and behind the last: "affine" as in the image model, or "layernorm"."""
    position_std: float = 0.02
    """Of the initial entries of the matrices over positions; the image model's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.norm in NORMS, f"norm must be one of {', '.join(NORMS)}, got {self.norm!r}")


def _norm(config: ResMLPSeq2SeqConfig) -> nn.Module:
    return Affine(config.dim) if config.norm == "affine" else nn.LayerNorm(config.dim)


class _Layer(nn.Module):
    """What the encoder's and the decoder's layers have."""

    def __init__(self, config: ResMLPSeq2SeqConfig, *, causal: bool) -> None:
        super().__init__()
        self.norm1 = _norm(config)
        self.mixing = SequenceLinear(config.max_length, causal=causal, std=config.position_std)
        self.scale1 = LayerScale(config.dim, config.layer_scale)
        self.norm2 = _norm(config)
        self.channel = ChannelMLP(config.dim, config.hidden_dim, act=nn.GELU())
        self.scale2 = LayerScale(config.dim, config.layer_scale)
        self.dropout = nn.Dropout(config.dropout)

    def feed_forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.scale2(self.channel(self.norm2(x))))


class EncoderLayer(_Layer):
    """Eqs. 2 and 3 over the tokens of a sentence."""

    def __init__(self, config: ResMLPSeq2SeqConfig) -> None:
        super().__init__(config, causal=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, S, C) to (B, S, C); mask (B, S, 1).

        Behind the norm, not in front of it: its shift is not zero where the sentence has ended.
        """
        x = x + self.dropout(self.scale1(self.mixing(self.norm1(x) * mask)))
        return self.feed_forward(x)


class DecoderLayer(_Layer):
    """A triangular matrix over positions, cross-attention, channels."""

    def __init__(self, config: ResMLPSeq2SeqConfig) -> None:
        super().__init__(config, causal=True)
        self.norm_cross = _norm(config)
        self.cross = nn.MultiheadAttention(config.dim, config.num_heads, batch_first=True)
        self.scale_cross = LayerScale(config.dim, config.layer_scale)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        x = x + self.dropout(self.scale1(self.mixing(self.norm1(x))))
        return self.behind_mixing(x, keys_values(self.cross, memory.states), memory.mask)

    def behind_mixing(self, x: Tensor, seen: KeysValues, mask: Tensor) -> Tensor:
        """The other two sub-layers."""
        x = x + self.dropout(self.scale_cross(attend(self.cross, self.norm_cross(x), seen, mask)))
        return self.feed_forward(x)


class ResMLPSeq2Seq(Translator):
    """See the file."""

    config: ResMLPSeq2SeqConfig
    config_class = ResMLPSeq2SeqConfig

    def __init__(self, config: ResMLPSeq2SeqConfig) -> None:
        super().__init__(config)
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.depth))
        self.encoder_norm = _norm(config)
        self.decoder = nn.ModuleList(DecoderLayer(config) for _ in range(config.depth))
        self.decoder_norm = _norm(config)
        for layer in self.layers():
            for linear in (layer.channel.fc1, layer.channel.fc2):
                nn.init.trunc_normal_(linear.weight, std=0.02)
                nn.init.zeros_(linear.bias)

    def layers(self) -> list[_Layer]:
        """Of the encoder, then of the decoder."""
        return [cast("_Layer", layer) for layer in [*self.encoder, *self.decoder]]

    def encode(self, source: Tensor) -> Memory:
        """See `Translator.encode`."""
        mask = source_mask(source)
        x = self.dropout(self.embed(source))
        keep = mask[..., None].to(x)
        for layer in self.encoder:
            x = layer(x, keep)
        return Memory(self.encoder_norm(x), mask)

    def decode(self, target: Tensor, memory: Memory) -> Tensor:
        """See `Translator.decode`."""
        x = self.dropout(self.embed(target))
        for layer in self.decoder:
            x = layer(x, memory)
        return self.project(self.decoder_norm(x))

    def start(self, memory: Memory) -> DecoderState:
        """See `Translator.start`; a layer's past are the inputs of its matrix, (rows, t, C)."""
        rows, _, channels = memory.states.shape
        return DecoderState(
            past=tuple(memory.states.new_empty(rows, 0, channels) for _ in self.decoder),
            memory=tuple(keys_values(layer.cross, memory.states) for layer in self._decoder_layers()),
            mask=memory.mask,
        )

    def step(self, tokens: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """See `Translator.step`."""
        x = self.dropout(self.embed(tokens[:, None]))
        past = []
        for layer, before, seen in zip(self._decoder_layers(), state.past, state.memory, strict=True):
            inputs = torch.cat([before, layer.norm1(x)], dim=1)
            past.append(inputs)
            x = x + layer.dropout(layer.scale1(layer.mixing.last(inputs)))
            x = layer.behind_mixing(x, seen, state.mask)
        return self.project(self.decoder_norm(x))[:, 0], state._replace(past=tuple(past))

    def cross_attentions(self) -> list[tuple[nn.Module, nn.MultiheadAttention]]:
        """See `Translator.cross_attentions`."""
        return [(layer.norm_cross, layer.cross) for layer in self._decoder_layers()]

    def _decoder_layers(self) -> list[DecoderLayer]:
        return [cast("DecoderLayer", layer) for layer in self.decoder]


def extend_positions(network: ResMLPSeq2Seq, max_length: int) -> ResMLPSeq2Seq:
    """A copy for longer sentences; shorter ones it translates as before.

    The new entries go on along the diagonals of the matrices, so that a token sees its neighbours as those before it
    do; the new biases are the last one.

    Args:
        network: is left as it is.
        max_length: tokens, the end symbol among them.

    Raises:
        InvalidConfig: for fewer than it has, or another architecture.
    """
    if not isinstance(network, ResMLPSeq2Seq):
        raise InvalidConfig(f"{type(network).__name__} has no matrices over positions; build it with max_length")
    before = network.config.max_length
    if type(max_length) is not int or max_length < before:
        raise InvalidConfig(f"max_length must be at least the {before} of the model, got {max_length}")
    extended = copy.deepcopy(network)
    extended.config = dataclasses.replace(network.config, max_length=max_length)
    for layer in extended.layers():
        mixing = layer.mixing
        with torch.no_grad():
            weight, bias = mixing.weight, mixing.bias
            rows, columns = torch.meshgrid(*[torch.arange(max_length)] * 2, indexing="ij")
            back = (torch.maximum(rows, columns) - (before - 1)).clamp(min=0)
            inside = (rows - back >= 0) & (columns - back >= 0)
            grown = torch.where(inside, weight[(rows - back).clamp(min=0), (columns - back).clamp(min=0)], 0)
            mixing.weight = nn.Parameter(grown)
            mixing.bias = nn.Parameter(torch.cat([bias, bias[-1:].expand(max_length - before)]))
    return extended


NETWORK = ResMLPSeq2Seq
