"""Beam search against transformers', exhaustive search and itself without caches; greedy search; sampling."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutput

from tests.models.test_translator import padded, sentences
from tests.randomise import randomise
from visionmlp.errors import InvalidConfig
from visionmlp.models.translator import BOS, EOS, PAD, UNK, DecoderState, Memory, Translator, create_translator
from visionmlp.tasks.translate import decoding
from visionmlp.tasks.translate.decoding import Hypothesis, NoTranslation, Search, beam_search, sample

ALPHAS = (-0.5, 0.0, 0.6, 1.0, 2.0)


def translator(seed: int, *, vocabulary: int = 19, name: str = "resmlp_seq2seq_test", **fields) -> Translator:
    """With random weights, in float64, sharp enough that it prefers some words."""
    network = create_translator(name, vocab_size=vocabulary, **fields).double().eval()
    randomise(network, seed=seed)
    with torch.no_grad():
        network.embedding.weight.mul_(0.5)
    return network


class Recomputed:
    """A network that computes all of a hypothesis anew in each step."""

    def __init__(self, network: Translator) -> None:
        self.network, self.config, self.encode = network, network.config, network.encode

    def start(self, memory: Memory) -> DecoderState:
        tokens = torch.empty(len(memory.mask), 0, dtype=torch.long)
        # what a state selects by hypothesis: the tokens, and which sentence they are of
        self.memory = memory
        return DecoderState(past=(tokens, torch.arange(len(tokens))), memory=(), mask=memory.mask)

    def step(self, tokens: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        seen, owner = torch.cat([state.past[0], tokens[:, None]], 1), state.past[1]
        logits = self.network.decode(seen, Memory(self.memory.states[owner], self.memory.mask[owner]))
        return logits[:, -1], state._replace(past=(seen, owner))


class Oracle(PreTrainedModel, GenerationMixin):
    """The decoder for transformers' `generate`, of sentences that it knows."""

    config_class = PretrainedConfig
    main_input_name = "input_ids"

    def __init__(self, network: Translator, source: Tensor) -> None:
        super().__init__(PretrainedConfig(vocab_size=network.config.vocab_size, num_hidden_layers=1))
        self.network = network
        with torch.no_grad():
            self.memory = network.encode(source)
        self.generation_config = GenerationConfig()

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: object) -> dict[str, Tensor]:  # noqa: ARG002
        return {"input_ids": input_ids}

    def forward(self, input_ids: Tensor, attention_mask: object = None, **_: object) -> CausalLMOutput:  # noqa: ARG002
        times = len(input_ids) // len(self.memory.mask)
        memory = Memory(*(part.repeat_interleave(times, 0) for part in self.memory))
        return CausalLMOutput(logits=self.network.decode(input_ids, memory))


class MustEnd(LogitsProcessor):
    """As fairseq; transformers' own gives the forced end symbol the probability 1."""

    def __init__(self, longest: int) -> None:
        self.longest = longest

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if input_ids.shape[1] <= self.longest:
            return scores
        return torch.full_like(scores, -torch.inf).index_copy(1, torch.tensor([EOS]), scores[:, [EOS]])


def oracle(network: Translator, source: Tensor, search: Search, longest: int) -> list[list[Hypothesis]]:
    model = Oracle(network, source)
    made = model.generate(
        input_ids=torch.full((len(source), 1), EOS),
        attention_mask=torch.ones(len(source), 1, dtype=torch.long),
        num_beams=search.beam,
        num_return_sequences=search.n_best,
        early_stopping=search.stopping == "beam",
        length_penalty=search.length_penalty,
        max_new_tokens=longest + 1,
        min_new_tokens=search.min_length,
        suppress_tokens=[BOS, PAD, UNK],
        eos_token_id=EOS,
        logits_processor=LogitsProcessorList([MustEnd(longest)]),
        pad_token_id=PAD,
        do_sample=False,
        use_cache=False,
        return_dict_in_generate=True,
        output_scores=True,
    )
    answers = []
    for row, score in zip(made.sequences.tolist(), made.sequences_scores.tolist(), strict=True):
        words = row[1:]
        words = words[: words.index(EOS)]
        answers.append(Hypothesis(words, score, score * (len(words) + 1) ** search.length_penalty))
    return [answers[start : start + search.n_best] for start in range(0, len(answers), search.n_best)]


@pytest.mark.filterwarnings("ignore")
def test_hypotheses_and_scores_are_transformers() -> None:
    """50 models of both architectures; the same words, scores to float32, in which `generate` keeps them."""
    lengths = []
    for seed in range(50):
        name = "transformer_seq2seq_test" if seed % 5 == 4 else "resmlp_seq2seq_test"
        network = translator(seed, name=name)
        source = padded(sentences([3, 8, 5], seed=seed))
        search = Search(
            beam=4,
            n_best=1 + seed % 4,
            length_penalty=(0.0, 0.6, 1.0, 2.0)[seed % 4],
            stopping="beam",
            max_length=(6, 14)[seed % 2],
            min_length=1 + seed % 3,
        )
        given = beam_search(network, source, search)
        expected = oracle(network, source, search, search.max_length)
        for one, other in zip(given, expected, strict=True):
            assert [hypothesis.tokens for hypothesis in one] == [hypothesis.tokens for hypothesis in other]
            for own, theirs in zip(one, other, strict=True):
                assert own.score == pytest.approx(theirs.score, rel=1e-5)
        lengths += [len(found[0].tokens) for found in given]
    assert len(set(lengths)) > 6  # of many lengths, at the longest and before it


def exhaustive(network: Translator, source: Tensor, search: Search, longest: int) -> list[Hypothesis]:
    words = range(UNK + 1, network.config.vocab_size)
    memory, found = network.encode(source[None]), []
    for length in range(search.min_length, longest + 1):
        targets = torch.tensor([[EOS, *each, EOS] for each in itertools.product(words, repeat=length)])
        logits = network.decode(
            targets[:, :-1], Memory(*(part.expand(len(targets), *part.shape[1:]) for part in memory))
        )
        sums = logits.log_softmax(-1).gather(2, targets[:, 1:, None]).sum((1, 2))
        for target, total in zip(targets.tolist(), sums.tolist(), strict=True):
            found.append(Hypothesis(target[1:-1], search.score(total, length + 1), total))
    return sorted(found, key=lambda hypothesis: hypothesis.score, reverse=True)


@pytest.mark.parametrize("alpha", ALPHAS)
@torch.no_grad()
def test_a_wide_beam_finds_the_best_of_all(alpha: float) -> None:
    search = Search(beam=130, n_best=5, length_penalty=alpha, max_length=4, stopping="exact")
    for seed in range(3):
        network = translator(seed, vocabulary=UNK + 4)
        source = sentences([4], seed=seed, vocabulary=UNK + 4)[0]
        (found,) = beam_search(network, source[None], search)
        expected = exhaustive(network, source, search, 4)[:5]
        assert [one.tokens for one in found] == [one.tokens for one in expected]
        for one, other in zip(found, expected, strict=True):
            assert one.score == pytest.approx(other.score, rel=1e-10)
            assert one.log_probability == pytest.approx(other.log_probability, rel=1e-10)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_stopping_loses_nothing(alpha: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a search that goes on as long as any hypothesis does; the best of one is the first of several."""
    cases = [(seed, beam, n_best) for seed in range(3) for beam in (2, 3, 8) for n_best in (1, 2)]

    def answers() -> list[list[list[Hypothesis]]]:
        return [
            beam_search(
                translator(seed),
                padded(sentences([3, 7], seed=seed)),
                Search(beam=beam, n_best=n_best, length_penalty=alpha, max_length=9, stopping="exact"),
            )
            for seed, beam, n_best in cases
        ]

    stopped = answers()
    monkeypatch.setattr(decoding, "_is_done", lambda _found, best, *_: best == -torch.inf)
    whole = answers()
    assert stopped == whole
    for one, two in zip(whole[::2], whole[1::2], strict=True):
        assert [best[0] for best in one] == [best[0] for best in two]


def greedy(network: Translator, source: Tensor, longest: int) -> list[int]:
    memory, words = network.encode(source[None]), [EOS]
    while len(words) <= longest:
        logits = network.decode(torch.tensor([words]), memory)[0, -1]
        logits[[BOS, PAD, UNK, *([EOS] if len(words) == 1 else [])]] = -torch.inf
        words.append(int(logits.argmax()))
        if words[-1] == EOS:
            return words[1:-1]
    return words[1:]


@torch.no_grad()
def test_a_beam_of_one_is_greedy() -> None:
    for seed in range(50):
        network, source = translator(seed), sentences([5], seed=seed)[0]
        alpha = (0.0, 2.0)[seed % 2]
        (found,) = beam_search(network, source[None], Search(beam=1, length_penalty=alpha, max_length=12))
        assert found[0].tokens == greedy(network, source, 12)


@pytest.mark.parametrize("name", ["resmlp_seq2seq_test", "transformer_seq2seq_test"])
@pytest.mark.parametrize("beam", [1, 4, 8])
def test_caches_and_batches_change_nothing(name: str, beam: int) -> None:
    """Sentences that end at different steps, some with words that they must begin with."""
    network = translator(3, name=name)
    if name.startswith("transformer"):  # its norms make all words alike
        with torch.no_grad():
            network.embedding.weight[EOS] *= 3
    parts = sentences([1, 4, 24, 9, 2, 13], seed=4)
    prefix: list[Sequence[int]] = [[], [7, 7, 9], [], [5], [], [12] * 9]
    search = Search(beam=beam, n_best=min(beam, 3), length_penalty=0.6, max_length=15)
    together = beam_search(network, padded(parts), search, prefix=prefix)
    recomputed = beam_search(Recomputed(network), padded(parts), search, prefix=prefix)  # type: ignore[arg-type]
    alone = [
        beam_search(network, part[None], search, prefix=[words])[0] for part, words in zip(parts, prefix, strict=True)
    ]
    assert len({len(found[0].tokens) for found in together}) > 1
    for found, others in ((together, recomputed), (together, alone)):
        for own, other, words in zip(found, others, prefix, strict=True):
            assert [one.tokens for one in own] == [one.tokens for one in other]
            assert all(one.tokens[: len(words)] == list(words) for one in own)
            for one, two in zip(own, other, strict=True):
                assert one.score == pytest.approx(two.score, rel=1e-10)


def test_each_step_is_one_position() -> None:
    """Caches that nobody uses are slow, not wrong: the decoder sees one new token of each hypothesis in a step."""
    network = translator(0)
    seen, layer = [], network.decoder[0]
    layer.cross.out_proj.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].shape))
    beam_search(network, padded(sentences([4, 4])), Search(beam=3, max_length=8, min_length=8))
    assert seen == [(2, 1, 16)] + [(6, 1, 16)] * 8


def test_what_is_never_said_and_how_long() -> None:
    network = translator(1)
    with torch.no_grad():  # the forbidden ones are the most probable
        network.embedding.weight[[BOS, PAD, UNK]] = 4 * network.embedding.weight[7:8]
    source = padded(sentences([4, 9], seed=3))
    for search in (Search(beam=4, n_best=4, max_length=7), Search(beam=4, n_best=4, max_length=7, min_length=4)):
        for found in beam_search(network, source, search):
            assert len(found) == 4
            for one in found:
                assert not {BOS, PAD, EOS, UNK} & {*one.tokens}
                assert search.min_length <= len(one.tokens) <= 7
    # by the source's length, and never beyond the model's own
    search = Search(beam=2, max_length=1, max_length_ratio=0.5, min_length=50)
    assert [len(found[0].tokens) for found in beam_search(network, source, search)] == [3, 5]
    assert [len(found[0].tokens) for found in beam_search(network, source, Search(min_length=50))] == [23, 23]
    assert Search(max_length=200).longest(5, 256) == 200


def test_sampling_follows_the_probabilities() -> None:
    network, source = translator(2), sentences([6])[0]
    many = source.expand(3000, -1)
    search = Search(max_length=3)
    found = sample(network, many, search, seeds=range(3000))
    with torch.no_grad():
        logits = network(source[None], torch.tensor([[EOS]]))[0, -1]
    log_probabilities = logits.log_softmax(-1)
    logits[[BOS, PAD, EOS, UNK]] = -torch.inf
    counts = torch.bincount(torch.tensor([one.tokens[0] for one in found]), minlength=19) / 3000
    assert (counts - logits.softmax(-1)).abs().max() < 0.03
    assert counts.max() > 0.1  # far from uniform
    (alone,) = sample(network, source[None], search, seeds=[7])  # whatever else is in the batch
    assert found[7].tokens == alone.tokens
    assert found[7].score == pytest.approx(alone.score, rel=1e-10)
    top = {one.tokens[0] for one in sample(network, many[:200], search, seeds=range(200), top_k=2)}
    assert top == {*logits.topk(2).indices.tolist()}
    (cold,) = sample(network, source[None], Search(max_length=12), seeds=[0], temperature=1e-4)
    with torch.no_grad():
        assert cold.tokens == greedy(network, source, 12)
    assert cold.log_probability < log_probabilities.max() < 0


def test_options_that_cannot_be() -> None:
    for fields, message in (
        ({"beam": 0}, "beam must be at least 1"),
        ({"n_best": 5}, "n_best 5 must be at most the beam, 4"),
        ({"length_penalty": float("nan")}, "length_penalty must be a number"),
        ({"max_length_ratio": -1.0}, "max_length_ratio"),
        ({"min_length": 0}, "min_length must be at least 1"),
    ):
        with pytest.raises(InvalidConfig, match=message):
            Search(**fields)
    network, source = translator(0), padded(sentences([4, 4]))
    for prefix, message in (
        ([[5]], "a prefix for each sentence, got 1 for 2"),
        ([[5], [EOS]], "no special symbols"),
        ([[5], [19]], "words of the vocabulary only"),
        ([[5] * 9, []], "prefix of 9 tokens is longer"),
    ):
        with pytest.raises(InvalidConfig, match=message):
            beam_search(network, source, Search(max_length=8), prefix=prefix)
    with pytest.raises(InvalidConfig, match="temperature must be a number of at least"):
        sample(network, source, Search(), seeds=[0, 1], temperature=0.0)


@pytest.mark.parametrize("search", [beam_search, functools.partial(sample, seeds=[0])])
def test_nothing_is_recorded_for_gradients(search: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    network = translator(0)
    inference = []

    def step(tokens: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        inference.append(torch.is_inference_mode_enabled())
        return type(network).step(network, tokens, state)

    monkeypatch.setattr(network, "step", step)
    search(network, torch.tensor([[5, 6, EOS]]), Search(beam=2))
    assert all(inference)
    assert inference


class Repeating:
    """A network that would end behind a few words, and says one for ever with confidence behind these."""

    def __init__(self, network: Translator) -> None:
        self.network, self.config, self.encode, self.start = network, network.config, network.encode, network.start
        self.steps = 0

    def step(self, tokens: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        _, state = self.network.step(tokens, state)
        self.steps += 1
        logits = torch.zeros(len(tokens), self.config.vocab_size, dtype=torch.float64)
        logits[:, 7] = 2 if self.steps < 3 else 9
        logits[:, EOS] = -9 if self.steps < 3 else 9 if self.steps < 6 else 5
        return logits, state


def test_confidence_behind_all_training_is_not_followed_by_default() -> None:
    """As fairseq's rule, by which published numbers were made; exact search finds the better score."""
    source = torch.tensor([[5, 6, EOS]])
    (given,), (exact,) = (
        beam_search(Repeating(translator(0)), source, Search(beam=2, max_length=20, **options))  # type: ignore[arg-type]
        for options in ({}, {"stopping": "exact"})
    )
    assert len(given[0].tokens) < 5
    assert len(exact[0].tokens) == 20
    assert exact[0].score > given[0].score


@pytest.mark.parametrize("search", [beam_search, functools.partial(sample, seeds=[0])])
def test_nan_is_no_translation(search: Any) -> None:
    network = translator(0)
    with torch.no_grad():
        network.embedding.weight[7, 3] = torch.nan
    with pytest.raises(NoTranslation, match="NaN or infinite logits"):
        search(network, torch.tensor([[5, 6, EOS]]), Search(beam=2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam": 10**12}, "beam must be at most 1000"),
        ({"stopping": "never"}, "stopping must be beam or exact"),
        ({"min_length": 9, "max_length": 3}, "min_length 9 is more than max_length"),
        ({"length_penalty": 500.0}, "length_penalty must be a number from"),
        ({"length_penalty": -100000.0}, "length_penalty must be a number from"),
        ({"max_length_ratio": float("inf")}, "max_length_ratio must be"),
    ],
)
def test_searches_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        Search(**options)


def test_temperatures_that_cannot_be() -> None:
    network, source = translator(0), torch.tensor([[5, EOS]])
    with pytest.raises(InvalidConfig, match="temperature must be a number of at least"):
        sample(network, source, Search(), seeds=[0], temperature=1e-320)
