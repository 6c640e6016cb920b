"""From sentences to translations: beam search, of which a beam of one is greedy search, and sampling.

fairseq's rules: a hypothesis' score is the sum of its log-probabilities over its length, the end symbol among it, to
the power of the length penalty. Of 2 x beam candidates of a step those that end count if they are among the first beam;
the first beam of the others go on. No sentence is empty, none longer than `Search.longest`, where the end symbol is
forced and scored. Padding, begin and unknown symbols are never produced, and their probability is lost, not shared out.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, get_args

import torch
from torch import Tensor

from visionmlp.errors import InvalidConfig, VisionMLPError
from visionmlp.models.translator import BOS, EOS, PAD, UNK, DecoderState, Memory, TranslatorConfig

NEVER = (BOS, PAD, UNK)


Stopping = Literal["beam", "exact"]
_MOST_BEAMS = 1000
_MOST_PENALTY = 20.0
"""Lengths to this power are numbers still."""
_LEAST_TEMPERATURE = 1e-6


class NoTranslation(VisionMLPError):
    """A network gives no probabilities."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """How translations are looked for."""

    beam: int = 4
    """Hypotheses of a sentence that are followed; ResMLP's paper has 4."""
    length_penalty: float = 1.0
    """Exponent of the length: above 0 longer translations score better; the Transformer's 0.6, fairseq's default 1."""
    n_best: int = 1
    """Translations of a sentence, at most ``beam``."""
    stopping: Stopping = "beam"
    """End a sentence when ``beam`` hypotheses have ended, as fairseq; or "exact", when no other hypothesis of the beam
    can come to a better score than the worst of the best ``n_best``. A network may repeat a word with confidence where
    its training had no sentence as long; exact search follows it there, and finds that better than a translation."""
    max_length_ratio: float = 0.0
    """fairseq's max-len-a: longest translation is ratio x source tokens + ``max_length``."""
    max_length: int = 200
    """fairseq's max-len-b."""
    min_length: int = 1
    """Tokens in front of the end symbol."""

    def __post_init__(self) -> None:
        for name, least in (("beam", 1), ("n_best", 1), ("max_length", 1), ("min_length", 1)):
            if getattr(self, name) < least:
                raise InvalidConfig(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.beam > _MOST_BEAMS:
            raise InvalidConfig(f"beam must be at most {_MOST_BEAMS}, got {self.beam}")
        if self.stopping not in get_args(Stopping):
            raise InvalidConfig(f"stopping must be beam or exact, got {self.stopping!r}")
        if self.max_length_ratio == 0 and self.min_length > self.max_length:
            raise InvalidConfig(f"min_length {self.min_length} is more than max_length, {self.max_length}")
        if self.n_best > self.beam:
            raise InvalidConfig(f"n_best {self.n_best} must be at most the beam, {self.beam}")
        if not 0 <= self.max_length_ratio < float("inf"):
            raise InvalidConfig(f"max_length_ratio must be at least 0, got {self.max_length_ratio}")
        if not abs(self.length_penalty) <= _MOST_PENALTY:
            limits = f"from -{_MOST_PENALTY:g} to {_MOST_PENALTY:g}"
            raise InvalidConfig(f"length_penalty must be a number {limits}, got {self.length_penalty}")

    def longest(self, source_tokens: int, positions: int) -> int:
        """Tokens in front of the end symbol, at most.

        Args:
            source_tokens: of the sentence, its end symbol among them.
            positions: of the decoder.
        """
        return max(1, min(int(self.max_length_ratio * source_tokens + self.max_length), positions - 1))

    def score(self, log_probability: float, tokens: int) -> float:
        """Of a hypothesis with so many tokens, the end symbol among them."""
        return log_probability / tokens**self.length_penalty

    def best_possible(self, log_probability: float, tokens: int, longest: int) -> float:
        """The best score that a hypothesis which goes on can come to: it ends at once, or as late as it may."""
        return max(self.score(log_probability, tokens + 1), self.score(log_probability, longest + 1))


class Hypothesis(NamedTuple):
    """A translation."""

    tokens: list[int]
    """Without the end symbol."""
    score: float
    """See the file."""
    log_probability: float
    """Sum over all tokens, the end symbol among them."""


class Network(Protocol):
    """What a search asks for: a `Translator`, or an exported one in its runtime. The methods are described there."""

    @property
    def config(self) -> TranslatorConfig:
        """Sizes."""
        ...

    def encode(self, source: Tensor) -> Memory:
        """Sentences to what the decoder sees of them."""
        ...

    def start(self, memory: Memory) -> DecoderState:
        """The state before the first step."""
        ...

    def step(self, tokens: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """One more position."""
        ...


def log_probabilities(logits: Tensor) -> Tensor:
    """Of the last dimension, in float32 at least: their sums decide, and half precision cannot tell them apart.

    Raises:
        NoTranslation: for logits that are none.
    """
    found = logits.to(_wide(logits.dtype)).log_softmax(-1)
    if found.isnan().any():
        raise NoTranslation(
            "the network gives NaN or infinite logits, so nothing is a translation; its training has diverged or its "
            "file is damaged: take an earlier checkpoint, or train with a smaller learning rate"
        )
    return found


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


@torch.inference_mode()
def beam_search(
    network: Network, source: Tensor, search: Search, *, prefix: Sequence[Sequence[int]] | None = None
) -> list[list[Hypothesis]]:
    """The best translations of sentences.

    Args:
        network: in evaluation mode.
        source: (B, S) of ids, ended and padded on the right.
        search: options.
        prefix: tokens that the translation of each sentence begins with; they are scored.

    Returns:
        For each sentence up to ``n_best``, the best first.

    Raises:
        SentenceTooLong: for a source beyond the network's length.
        InvalidConfig: for a prefix that is longer than a translation may be, or has special symbols.
        NoTranslation: for a network that gives no probabilities.
    """
    memory = network.encode(source)
    positions = network.config.max_length
    longest = [search.longest(count, positions) for count in memory.mask.sum(1).tolist()]
    prefixes = [list(part) for part in prefix] if prefix is not None else [[] for _ in longest]
    _check_prefixes(prefixes, longest, network.config.vocab_size)
    finished: list[list[Hypothesis]] = [[] for _ in longest]
    # rows are hypotheses, those of a sentence side by side; the first step has one of each
    state, numbers = network.start(memory), torch.arange(len(longest))
    tokens = source.new_full((len(longest), 1, 1), EOS)
    totals = memory.states.new_zeros(len(longest), 1, dtype=_wide(memory.states.dtype))
    while len(numbers):
        logits, state = network.step(tokens[:, :, -1].flatten(), state)
        length = tokens.shape[2]  # of the hypotheses with their next token
        places = numbers.tolist()
        candidates = _candidates(
            log_probabilities(logits),
            totals,
            must_end=torch.tensor([length > longest[place] for place in places], device=source.device),
            may_end=length > search.min_length,
            forced=[prefixes[place][length - 1] if length <= len(prefixes[place]) else None for place in places],
            count=2 * search.beam,
        )
        _collect(candidates, tokens, places, search, finished)
        tokens, totals, rows = _following(candidates, tokens, search.beam)
        stay = [
            number
            for number, place in enumerate(places)
            if not _is_done(finished[place], totals[number].max().item(), length, longest[place], search)
        ]
        if len(stay) < len(places):
            kept = torch.tensor(stay, dtype=torch.long, device=source.device)
            tokens, totals, rows, numbers = tokens[kept], totals[kept], rows[kept], numbers[kept.cpu()]
            state = state.select(rows.flatten(), kept)
        else:
            state = state.select(rows.flatten())
    return [sorted(found, key=lambda hypothesis: hypothesis.score, reverse=True)[: search.n_best] for found in finished]


class _Candidates(NamedTuple):
    """The best continuations of each sentence, the best first."""

    totals: Tensor
    """(B, 2 beam), log-probabilities."""
    hypotheses: Tensor
    """(B, 2 beam), numbers of what they continue, within the sentence."""
    tokens: Tensor
    """(B, 2 beam)."""


def _candidates(
    log_probabilities: Tensor,
    totals: Tensor,
    *,
    must_end: Tensor,
    may_end: bool,
    forced: Sequence[int | None],
    count: int,
) -> _Candidates:
    sentences, hypotheses = totals.shape
    scores = log_probabilities.unflatten(0, (sentences, hypotheses))
    allowed = torch.ones(sentences, scores.shape[-1], dtype=torch.bool, device=scores.device)
    allowed[:, list(NEVER)] = False
    allowed[:, EOS] = may_end
    only_end = torch.zeros_like(allowed)
    only_end[:, EOS] = True
    allowed = torch.where(must_end[:, None], only_end, allowed)
    for sentence, token in enumerate(forced):
        if token is not None:
            allowed[sentence] = False
            allowed[sentence, token] = True
    sums = (totals[..., None] + scores).masked_fill(~allowed[:, None], -torch.inf).flatten(1)
    best, flat = sums.topk(min(count, sums.shape[1]), dim=1)
    return _Candidates(best, flat // scores.shape[-1], flat % scores.shape[-1])


def _collect(
    candidates: _Candidates,
    tokens: Tensor,
    places: Sequence[int],
    search: Search,
    finished: list[list[Hypothesis]],
) -> None:
    """Keep those that end."""
    ends = (candidates.tokens == EOS) & candidates.totals.isfinite()
    for sentence, rank in ends[:, : search.beam].nonzero().tolist():
        total = candidates.totals[sentence, rank].item()
        words = tokens[sentence, candidates.hypotheses[sentence, rank], 1:].tolist()
        found = finished[places[sentence]]
        found.append(Hypothesis(words, search.score(total, len(words) + 1), total))
        found.sort(key=lambda hypothesis: hypothesis.score, reverse=True)
        del found[search.beam :]


def _following(candidates: _Candidates, tokens: Tensor, beam: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens (B, beam, t + 1), sums (B, beam) and present rows (B, beam) of the hypotheses that go on.

    Where there are fewer, the rest have sums of minus infinity.
    """
    totals = candidates.totals.masked_fill(candidates.tokens == EOS, -torch.inf)
    missing = beam - totals.shape[1]
    order = totals.argsort(dim=1, descending=True, stable=True)[:, :beam]
    if missing > 0:  # of vocabularies smaller than the beam
        order = torch.cat([order, order[:, -1:].expand(-1, missing)], dim=1)
    totals, hypotheses, words = (part.gather(1, order) for part in (totals, candidates.hypotheses, candidates.tokens))
    if missing > 0:
        totals = torch.cat([totals[:, : beam - missing], totals.new_full((len(totals), missing), -torch.inf)], dim=1)
    before = tokens.gather(1, hypotheses[..., None].expand(-1, -1, tokens.shape[2]))
    rows = hypotheses + torch.arange(len(totals), device=totals.device)[:, None] * tokens.shape[1]
    return torch.cat([before, words[..., None]], dim=2), totals, rows


def _is_done(found: Sequence[Hypothesis], best: float, tokens: int, longest: int, search: Search) -> bool:
    """Whether nothing that is still going on can be among the answers.

    Args:
        found: hypotheses that have ended, the best first.
        best: largest sum of those that go on.
        tokens: of these.
        longest: tokens that they may have in front of the end symbol.
        search: options.
    """
    if best == -torch.inf:
        return True
    if search.beam == 1 or search.stopping == "beam":
        return len(found) >= search.beam
    return len(found) >= search.n_best and found[search.n_best - 1].score >= search.best_possible(best, tokens, longest)


def _check_prefixes(prefixes: Sequence[Sequence[int]], longest: Sequence[int], vocabulary: int) -> None:
    if len(prefixes) != len(longest):
        raise InvalidConfig(f"there must be a prefix for each sentence, got {len(prefixes)} for {len(longest)}")
    for part, most in zip(prefixes, longest, strict=True):
        if len(part) > most:
            raise InvalidConfig(f"a prefix of {len(part)} tokens is longer than a translation may be, {most}")
        if any(token in (*NEVER, EOS) or not 0 <= token < vocabulary for token in part):
            raise InvalidConfig("a prefix must have words of the vocabulary only, no special symbols")


def check_temperature(temperature: float) -> None:
    """Raise InvalidConfig for one that nothing can be divided by."""
    if not _LEAST_TEMPERATURE <= temperature < float("inf"):
        raise InvalidConfig(f"temperature must be a number of at least {_LEAST_TEMPERATURE:g}, got {temperature}")


@torch.inference_mode()
def sample(
    network: Network,
    source: Tensor,
    search: Search,
    *,
    seeds: Sequence[int],
    temperature: float = 1.0,
    top_k: int | None = None,
) -> list[Hypothesis]:
    """One random translation of each sentence, which does not depend on the others of the batch.

    Args:
        network: in evaluation mode.
        source: as in `beam_search`.
        search: lengths and how scores are computed; the rest is not used.
        seeds: of each sentence.
        temperature: logits are divided by it.
        top_k: draw from so many most probable words only; None from all.

    Raises:
        SentenceTooLong: for a source beyond the network's length.
        InvalidConfig: for a temperature that is not positive, or ``top_k`` below 1.
        NoTranslation: for a network that gives no probabilities.
    """
    check_temperature(temperature)
    if top_k is not None and top_k < 1:
        raise InvalidConfig(f"top_k must be at least 1, got {top_k}")
    memory = network.encode(source)
    longest = [search.longest(count, network.config.max_length) for count in memory.mask.sum(1).tolist()]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    state = network.start(memory)
    tokens = source.new_full((len(longest), 1), EOS)
    answers: list[Hypothesis | None] = [None] * len(longest)
    numbers, totals = list(range(len(longest))), [0.0] * len(longest)
    while numbers:
        logits, state = network.step(tokens[:, -1], state)
        length = tokens.shape[1]
        logits = logits.double().cpu()
        probabilities = log_probabilities(logits)
        logits[:, list(NEVER)] = -torch.inf
        if length <= search.min_length:
            logits[:, EOS] = -torch.inf
        if top_k is not None and top_k < logits.shape[1]:
            logits = logits.masked_fill(logits < logits.topk(top_k, dim=1).values[:, -1:], -torch.inf)
        drawn = []
        for row, number in enumerate(numbers):
            if length > longest[number]:
                word = EOS
            else:
                shares = (logits[row] / temperature).softmax(-1)
                word = int(torch.multinomial(shares, 1, generator=generators[number]))
            drawn.append(word)
            totals[number] += probabilities[row, word].item()
            if word == EOS:
                words = tokens[row, 1:].tolist()
                answers[number] = Hypothesis(words, search.score(totals[number], len(words) + 1), totals[number])
        stay = [row for row, word in enumerate(drawn) if word != EOS]
        kept = torch.tensor(stay, dtype=torch.long, device=source.device)
        tokens = torch.cat([tokens, tokens.new_tensor(drawn)[:, None]], dim=1)[kept]
        state = state.select(kept, kept)
        numbers = [numbers[row] for row in stay]
    return [answer for answer in answers if answer is not None]
