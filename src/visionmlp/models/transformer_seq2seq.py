"""The Transformer (Vaswani et al., arXiv 1706.03762) of the same sizes, as the baseline of ResMLP's Table 5.

torch's own layers, in their order of 2017: the norm behind each sub-layer. Positions are sinusoids. `step` computes the
decoder's layers from what it keeps of the steps before.

Layout (B, T, C).
"""

import math
from typing import cast

import torch
from torch import Tensor, nn

from visionmlp.layers.memory_attention import KeysValues, attend, keys_values
from visionmlp.layers.sequence_mixing import check_length
from visionmlp.models.translator import DecoderState, Memory, Translator, TranslatorConfig, source_mask


class TransformerSeq2Seq(Translator):
    """See the file."""

    def __init__(self, config: TranslatorConfig) -> None:
        super().__init__(config)
        sizes = {
            "d_model": config.dim,
            "nhead": config.num_heads,
            "dim_feedforward": config.hidden_dim,
            "dropout": config.dropout,
            "batch_first": True,
        }
        self.encoder = nn.ModuleList(nn.TransformerEncoderLayer(**sizes) for _ in range(config.depth))
        self.decoder = nn.ModuleList(nn.TransformerDecoderLayer(**sizes) for _ in range(config.depth))
        for parameter in [*self.encoder.parameters(), *self.decoder.parameters()]:
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        self.register_buffer("positions", sinusoids(config.max_length, config.dim), persistent=False)
        self.positions: Tensor

    def encode(self, source: Tensor) -> Memory:
        """See `Translator.encode`."""
        mask = source_mask(source)
        x = self._placed(source, 0)
        for layer in self.encoder:
            x = layer(x, src_key_padding_mask=~mask)
        return Memory(x, mask)

    def decode(self, target: Tensor, memory: Memory) -> Tensor:
        """See `Translator.decode`."""
        x = self._placed(target, 0)
        future = torch.ones(target.shape[1], target.shape[1], dtype=torch.bool, device=x.device).triu(1)
        for layer in self.decoder:
            x = layer(x, memory.states, tgt_mask=future, tgt_is_causal=True, memory_key_padding_mask=~memory.mask)
        return self.project(x)

    def start(self, memory: Memory) -> DecoderState:
        """See `Translator.start`; a layer's past are keys and values, (rows, heads, t, C / heads) each."""
        heads = self.config.num_heads
        rows, _, channels = memory.states.shape
        empty = memory.states.new_empty(rows, heads, 0, channels // heads)
        return DecoderState(
            past=(empty,) * (2 * self.config.depth),
            memory=tuple(keys_values(layer.multihead_attn, memory.states) for layer in self._decoder_layers()),
            mask=memory.mask,
        )

    def step(self, tokens: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """See `Translator.step`."""
        x = self._placed(tokens[:, None], state.past[0].shape[2])
        past: list[Tensor] = []
        for number, seen in enumerate(state.memory):
            layer = cast("nn.TransformerDecoderLayer", self.decoder[number])
            new = keys_values(layer.self_attn, x)
            kept = KeysValues(
                *(torch.cat([before, now], dim=2) for before, now in zip(state.past[2 * number :], new, strict=False))
            )
            past += kept
            x = layer.norm1(x + layer.dropout1(attend(layer.self_attn, x, kept)))
            x = layer.norm2(x + layer.dropout2(attend(layer.multihead_attn, x, seen, state.mask)))
            hidden = layer.dropout(layer.activation(layer.linear1(x)))  # type: ignore[operator] (a module or a function)
            x = layer.norm3(x + layer.dropout3(layer.linear2(hidden)))
        return self.project(x)[:, 0], state._replace(past=tuple(past))

    def cross_attentions(self) -> list[tuple[nn.Module, nn.MultiheadAttention]]:
        """See `Translator.cross_attentions`."""
        return [(layer.norm1, layer.multihead_attn) for layer in self._decoder_layers()]

    def _decoder_layers(self) -> list[nn.TransformerDecoderLayer]:
        return [cast("nn.TransformerDecoderLayer", layer) for layer in self.decoder]

    def _placed(self, tokens: Tensor, first: int) -> Tensor:
        """Embeddings with their positions, the first of which is given."""
        length = first + tokens.shape[1]
        check_length(length, self.config.max_length)
        return self.dropout(self.embed(tokens) + self.positions[first:length])


def sinusoids(length: int, dim: int) -> Tensor:
    """(T, C): sines in the first half of the channels, cosines in the second, as fairseq lays them out.

    Source: arXiv 1706.03762, section 3.5.
    """
    half = (dim + 1) // 2
    rates = torch.exp(torch.arange(half, dtype=torch.float64) * (-math.log(10_000) / max(half - 1, 1)))
    angles = torch.arange(length, dtype=torch.float64)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)[:, :dim].float()


NETWORK = TransformerSeq2Seq
