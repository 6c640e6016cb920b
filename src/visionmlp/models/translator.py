"""Networks that translate: an encoder, a decoder, one embedding; what they share, and how they are made by name.

Ids are fairseq's: 0 begins a sentence (unused), 1 pads, 2 ends, 3 is unknown. A source ends with the end symbol and is
padded on its right; the decoder starts with the end symbol.
"""

import abc
import dataclasses
import difflib
import importlib
import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionmlp.errors import InvalidConfig, UnknownModel
from visionmlp.layers.memory_attention import KeysValues
from visionmlp.layers.sequence_mixing import check_length

BOS, PAD, EOS, UNK = range(4)
_MOST, _MOST_LAYERS = 1 << 20, 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class TranslatorConfig:
    """What both architectures take."""

    vocab_size: int
    """Symbols of both languages, the four special ones among them."""
    dim: int = 512
    """Channels."""
    hidden_dim: int = 2048
    """Of the feed-forward layers."""
    depth: int = 6
    """Layers of the encoder, and of the decoder."""
    num_heads: int = 8
    """Of attention; not stated for ResMLP, fairseq's base Transformer has 8."""
    max_length: int = 256
    """Tokens of a sentence, the end symbol among them; not stated for ResMLP, whose data was cut at 250."""
    dropout: float = 0.1
    """On embeddings and behind each sub-layer; torch's Transformer layers also have it on attention and hidden values.
    ResMLP's is 0.15 for En-De and 0.1 for En-Fr."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int:
                most = _MOST_LAYERS if field.name == "depth" else _MOST
                self.require(
                    type(value) is int and 1 <= value <= most,
                    f"{field.name} must be a whole number from 1 to {most}, got {value!r}",
                )
            elif field.type is float:
                number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
                self.require(number and value >= 0, f"{field.name} must be a number of at least 0, got {value!r}")
        self.require(self.vocab_size > UNK, f"vocab_size must be above {UNK}, got {self.vocab_size}")
        self.require(self.dim % self.num_heads == 0, f"dim {self.dim} is no multiple of num_heads {self.num_heads}")
        self.require(self.dropout < 1, f"dropout must be below 1, got {self.dropout}")

    @staticmethod
    def require(rule: bool, message: str) -> None:
        """Raise InvalidConfig with ``message`` unless ``rule`` holds."""
        if not rule:
            raise InvalidConfig(message)


class Memory(NamedTuple):
    """What the encoder makes of sentences."""

    states: Tensor
    """(B, S, C)."""
    mask: Tensor
    """(B, S), False where the sentence has ended."""


class DecoderState(NamedTuple):
    """What decoding keeps from step to step. Hypotheses are rows, those of one sentence side by side."""

    past: tuple[Tensor, ...]
    """Of each layer what the next step needs of the steps before; rows first."""
    memory: tuple[KeysValues, ...]
    """Keys and values of the sentences for each layer: one for all hypotheses of a sentence."""
    mask: Tensor
    """(sentences, S), of the memory."""

    def select(self, rows: Tensor, sentences: Tensor | None = None) -> "DecoderState":
        """Other hypotheses, in another order.

        Args:
            rows: their numbers among the present ones; as many of each sentence that stays.
            sentences: numbers of those that stay; None for all.
        """
        memory, mask = self.memory, self.mask
        if sentences is not None:
            memory = tuple(KeysValues(*(part[sentences] for part in layer)) for layer in memory)
            mask = mask[sentences]
        return DecoderState(tuple(part[rows] for part in self.past), memory, mask)


class Translator(nn.Module, abc.ABC):
    """Base of the architectures.

    The embedding is shared by source, target and output, as in the Transformer (arXiv 1706.03762, section 3.4), its
    vectors multiplied by the root of their width.
    """

    name: str = ""
    """Of the preset."""
    config_class: ClassVar[type[TranslatorConfig]] = TranslatorConfig

    def __init__(self, config: TranslatorConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.dim, padding_idx=PAD)
        nn.init.normal_(self.embedding.weight, std=config.dim**-0.5)
        with torch.no_grad():
            self.embedding.weight[PAD].zero_()
        self.dropout = nn.Dropout(config.dropout)

    @abc.abstractmethod
    def encode(self, source: Tensor) -> Memory:
        """Sentences (B, S) of ids, ended and padded on their right.

        Raises:
            SentenceTooLong: beyond the model's length.
        """

    @abc.abstractmethod
    def decode(self, target: Tensor, memory: Memory) -> Tensor:
        """Logits (B, T, V) of what follows each position of (B, T), which starts with the end symbol.

        Raises:
            SentenceTooLong: beyond the model's length.
        """

    @abc.abstractmethod
    def start(self, memory: Memory) -> DecoderState:
        """The state before the first step, one hypothesis a sentence."""

    @abc.abstractmethod
    def step(self, tokens: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """One more position: the hypotheses' newest tokens (rows,) to logits (rows, V), and the next state.

        Raises:
            SentenceTooLong: beyond the model's length.
        """

    @abc.abstractmethod
    def cross_attentions(self) -> list[tuple[nn.Module, nn.MultiheadAttention]]:
        """Of each decoder layer the module whose output asks, and the attention that answers."""

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """(B, S) and (B, T) to logits (B, T, V), see `encode` and `decode`."""
        return self.decode(target, self.encode(source))

    def embed(self, tokens: Tensor) -> Tensor:
        """(B, T) to (B, T, C), without positions and dropout."""
        check_length(tokens.shape[1], self.config.max_length)
        return self.embedding(tokens) * math.sqrt(self.config.dim)

    def project(self, x: Tensor) -> Tensor:
        """(..., C) to logits (..., V)."""
        return F.linear(x, self.embedding.weight)

    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay beside biases and vectors."""
        return set()


def source_mask(source: Tensor) -> Tensor:
    """(B, S), False where a sentence has ended."""
    return source != PAD


_MODULES = {
    "resmlp_seq2seq": "visionmlp.models.resmlp_seq2seq",
    "transformer_seq2seq": "visionmlp.models.transformer_seq2seq",
}
_SIZES: Mapping[str, Mapping[str, Any]] = {
    "6": {"depth": 6},
    "12": {"depth": 12},
    "small": {"dim": 256, "hidden_dim": 1024, "depth": 3, "num_heads": 4, "max_length": 128},
    "test": {"dim": 16, "hidden_dim": 32, "depth": 2, "num_heads": 2, "max_length": 24},
}
TRANSLATORS = tuple(f"{family}_{size}" for family in _MODULES for size in _SIZES)
"""Names that `create_translator` takes."""


def create_translator(name: str, *, vocab_size: int, **fields: Any) -> Translator:
    """A network with fresh weights.

    Args:
        name: ``resmlp_seq2seq_6``, ``_12`` (Table 5 of ResMLP's paper), ``_small``, ``_test``; the same of
            ``transformer_seq2seq``.
        vocab_size: symbols of both languages together.
        fields: other values of the configuration.

    Raises:
        UnknownModel: with the nearest names.
        InvalidConfig: for a value that cannot be, or a field that the configuration does not have.
    """
    if name not in TRANSLATORS:
        near = difflib.get_close_matches(name, TRANSLATORS, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(TRANSLATORS)}"
        raise UnknownModel(f"no translator {name!r}; {hint}")
    family, _, size = name.rpartition("_")
    network_class: type[Translator] = importlib.import_module(_MODULES[family]).NETWORK
    known = [field.name for field in dataclasses.fields(network_class.config_class)]
    for field in fields:
        if field not in known:
            near = difflib.get_close_matches(field, known, n=3, cutoff=0.4)
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            raise InvalidConfig(f"{name} has no option {field!r}{hint}")
    config = network_class.config_class(vocab_size=vocab_size, **{**_SIZES[size], **fields})
    network = network_class(config)
    network.name = name
    return network
