"""Attention whose keys and values are kept, with the weights of `torch.nn.MultiheadAttention`. Layout (B, T, C)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class KeysValues(NamedTuple):
    """What queries look at."""

    keys: Tensor
    """(B, heads, S, C / heads)."""
    values: Tensor
    """The same."""


def keys_values(attention: nn.MultiheadAttention, memory: Tensor) -> KeysValues:
    """Keys and values of a sequence (B, S, C)."""
    weight, bias = _parts(attention)
    both = F.linear(memory, weight[attention.embed_dim :], bias[attention.embed_dim :])
    keys, values = (_heads(part, attention.num_heads) for part in both.chunk(2, dim=-1))
    return KeysValues(keys, values)


def attend(attention: nn.MultiheadAttention, x: Tensor, seen: KeysValues, mask: Tensor | None = None) -> Tensor:
    """What each position finds.

    Args:
        attention: its weights and rate of dropout.
        x: (B, T, C); or (B n, T, C) for ``seen`` of B sequences, n neighbours of which look at the same one.
        seen: of the sequences that are looked at.
        mask: (B, S), whether a position may be looked at; None for all.

    Returns:
        Of the shape of ``x``.
    """
    weight, bias = _parts(attention)
    rows, length, channels = x.shape
    queries = F.linear(x, weight[:channels], bias[:channels])
    sequences = seen.keys.shape[0]  # len() would be a constant of exported graphs
    # n sequences of T queries are one of n T queries
    queries = _heads(queries.reshape(sequences, -1, channels), attention.num_heads)
    found = F.scaled_dot_product_attention(
        queries,
        seen.keys,
        seen.values,
        attn_mask=None if mask is None else mask[:, None, None],
        dropout_p=attention.dropout if attention.training else 0.0,
    )
    return attention.out_proj(found.transpose(1, 2).reshape(rows, length, channels))


def attention_weights(attention: nn.MultiheadAttention, x: Tensor, seen: KeysValues, mask: Tensor) -> Tensor:
    """How much each position (B, T, C) takes from each that is looked at: (B, heads, T, S), rows of which sum to one.

    Arguments are those of `attend`.
    """
    weight, bias = _parts(attention)
    channels = x.shape[-1]
    queries = _heads(F.linear(x, weight[:channels], bias[:channels]), attention.num_heads)
    scores = queries @ seen.keys.mT * queries.shape[-1] ** -0.5
    return scores.masked_fill(~mask[:, None, None], -torch.inf).softmax(-1)


def _parts(attention: nn.MultiheadAttention) -> tuple[Tensor, Tensor]:
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    assert weight is not None
    assert bias is not None
    return weight, bias


def _heads(x: Tensor, heads: int) -> Tensor:
    """(B, T, C) to (B, heads, T, C / heads)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)
