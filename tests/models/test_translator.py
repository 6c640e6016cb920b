"""Translators: padding cannot leak, steps equal the whole, hypotheses are rows, lengths have an end."""

import copy

import pytest
import torch
from torch import Tensor, nn

import visionmlp
from tests.randomise import randomise
from visionmlp.errors import InvalidConfig, SentenceTooLong, UnknownModel
from visionmlp.layers.memory_attention import attend, attention_weights, keys_values
from visionmlp.layers.sequence_mixing import SequenceLinear
from visionmlp.models.resmlp_seq2seq import extend_positions
from visionmlp.models.transformer_seq2seq import sinusoids
from visionmlp.models.translator import EOS, PAD, TRANSLATORS, Translator, create_translator
from visionmlp.tasks.translate.figures import cross_attention

NAMES = ("resmlp_seq2seq_test", "transformer_seq2seq_test")
VOCABULARY = 19


def translator(name: str, **fields) -> Translator:
    """With random weights, also those that begin as ones and zeros, in float64."""
    torch.manual_seed(0)
    network = create_translator(name, vocab_size=VOCABULARY, **fields).double().eval()
    randomise(network, seed=1)
    return network


def sentences(lengths, seed: int = 0, vocabulary: int = VOCABULARY) -> list[Tensor]:
    """Of these many tokens, the end symbol among them."""
    generator = torch.Generator().manual_seed(seed)
    words = [torch.randint(EOS + 1, vocabulary, (length - 1,), generator=generator) for length in lengths]
    return [torch.cat([part, torch.tensor([EOS])]) for part in words]


def padded(parts: list[Tensor], extra: int = 0) -> Tensor:
    longest = max(map(len, parts)) + extra
    return torch.stack([torch.cat([part, part.new_full((longest - len(part),), PAD)]) for part in parts])


def started(parts: list[Tensor]) -> list[Tensor]:
    """What the decoder sees of targets."""
    return [part.roll(1) for part in parts]


@pytest.mark.parametrize(("name", "fields"), [(NAMES[0], {}), (NAMES[0], {"norm": "layernorm"}), (NAMES[1], {})])
def test_a_sentence_is_alone_in_its_batch(name: str, fields) -> None:
    network = translator(name, **fields)
    sources, targets = sentences([1, 2, 7, 12, 24]), started(sentences([3, 1, 9, 24, 5], seed=2))
    with torch.no_grad():
        alone = [network(s[None], t[None])[0] for s, t in zip(sources, targets, strict=True)]
        for pairs in ([0, 1], [2, 3, 4], [0, 1, 2, 3, 4]):
            source = padded([sources[i] for i in pairs])
            source = nn.functional.pad(source, (0, 24 - source.shape[1]), value=PAD)
            together = network(source, padded([targets[i] for i in pairs]))
            for i, logits in zip(pairs, together, strict=True):
                torch.testing.assert_close(logits[: len(targets[i])], alone[i], rtol=1e-10, atol=1e-10)
    assert (alone[2][:3] - alone[3][:3]).abs().max() > 0.1  # of other sentences they are other


@pytest.mark.parametrize("name", NAMES)
def test_no_position_sees_one_behind_it(name: str) -> None:
    network = translator(name)
    source, target = sentences([9])[0][None], started(sentences([12]))[0][None]
    changed = target.clone()
    changed[0, 7:] = (changed[0, 7:] + 3) % VOCABULARY
    with torch.no_grad():
        before, after = network(source, target)[0], network(source, changed)[0]
    assert torch.equal(before[:7], after[:7])
    assert (before[7:] - after[7:]).abs().amin(0).max() > 0


@pytest.mark.parametrize("name", NAMES)
def test_steps_equal_the_whole(name: str) -> None:
    """Also with several hypotheses of a sentence, in changing order, while sentences end."""
    network = translator(name)
    source = padded(sentences([4, 9, 6]))
    generator = torch.Generator().manual_seed(5)
    beams = 3
    with torch.no_grad():
        memory = network.encode(source)
        state = network.start(memory)
        tokens = torch.full((3, 1), EOS)
        first, state = network.step(tokens[:, 0], state)
        torch.testing.assert_close(first, network.decode(tokens, memory)[:, -1], rtol=1e-10, atol=1e-10)
        rows = torch.arange(3).repeat_interleave(beams)  # each sentence gets its hypotheses
        state, tokens, owner = state.select(rows), tokens[rows], rows
        for step in range(12):
            tokens = torch.cat([tokens, torch.randint(0, VOCABULARY, (len(tokens), 1), generator=generator)], 1)
            logits, state = network.step(tokens[:, -1], state)
            whole = network.decode(tokens, memory._replace(states=memory.states[owner], mask=memory.mask[owner]))
            torch.testing.assert_close(logits, whole[:, -1], rtol=1e-10, atol=1e-10)
            count = len(tokens) // beams
            chosen = torch.randint(0, beams, (count, beams), generator=generator)
            stay = torch.arange(count)
            if step in (4, 8):  # a sentence is done
                stay = stay[1:] if step == 4 else stay[:-1]
            rows = (chosen[stay] + stay[:, None] * beams).flatten()
            state = state.select(rows, stay if len(stay) < count else None)
            tokens, owner = tokens[rows], owner[rows]
    assert len(state.memory[0].keys) == len(state.mask) == 1  # one for all hypotheses of a sentence


def test_a_step_costs_one_row_of_the_matrix() -> None:
    """The matrix that a step multiplies by is (1, t + 1), not (t + 1, t + 1)."""
    mixing = SequenceLinear(24, causal=True).double()
    randomise(mixing, seed=3)
    x = torch.randn(2, 10, 5, dtype=torch.float64)
    torch.testing.assert_close(mixing.last(x), mixing(x)[:, -1:], rtol=1e-12, atol=1e-12)
    assert mixing.last(x).shape == (2, 1, 5)
    expected = torch.einsum("ts,bsc->btc", mixing.weight[:10, :10].tril(), x) + mixing.bias[:10, None]
    torch.testing.assert_close(mixing(x), expected, rtol=1e-12, atol=1e-12)


def test_attention_is_torchs() -> None:
    attention = nn.MultiheadAttention(12, 3, batch_first=True).double().eval()
    randomise(attention, seed=2)
    x, memory = torch.randn(4, 5, 12, dtype=torch.float64), torch.randn(4, 7, 12, dtype=torch.float64)
    mask = torch.arange(7) < torch.tensor([7, 3, 1, 5])[:, None]
    expected = attention(x, memory, memory, key_padding_mask=~mask, need_weights=False)[0]
    given = attend(attention, x, keys_values(attention, memory), mask)
    torch.testing.assert_close(given, expected, rtol=1e-12, atol=1e-12)
    # two neighbours look at the same sequence
    pairs = attend(attention, x, keys_values(attention, memory[::2]), mask[::2])
    torch.testing.assert_close(
        pairs,
        attend(attention, x, keys_values(attention, memory[[0, 0, 2, 2]]), mask[[0, 0, 2, 2]]),
        rtol=1e-12,
        atol=1e-12,
    )


def test_resmlps_layer_is_the_papers_formula() -> None:
    """Eqs. 1 to 3 and cross-attention, written out."""
    network = translator("resmlp_seq2seq_test")
    layer, memory = network.decoder[0], network.encode(padded(sentences([5, 8])))
    x = torch.randn(2, 6, 16, dtype=torch.float64)
    with torch.no_grad():
        affine = x * layer.norm1.alpha + layer.norm1.beta
        z = x + layer.scale1.gamma * (torch.tril(layer.mixing.weight[:6, :6]) @ affine + layer.mixing.bias[:6, None])
        affine = z * layer.norm_cross.alpha + layer.norm_cross.beta
        found = layer.cross(affine, memory.states, memory.states, key_padding_mask=~memory.mask)[0]
        z = z + layer.scale_cross.gamma * found
        affine = z * layer.norm2.alpha + layer.norm2.beta
        y = z + layer.scale2.gamma * layer.channel.fc2(nn.functional.gelu(layer.channel.fc1(affine)))
        torch.testing.assert_close(layer(x, memory), y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_beyond_the_longest_sentence(name: str) -> None:
    network = translator(name)
    fits, longer = sentences([24])[0][None], sentences([25])[0][None]
    network(fits, fits)
    for call in (lambda: network.encode(longer), lambda: network(fits, longer)):
        with pytest.raises(SentenceTooLong, match=r"25 tokens.*longer than the 24 of this model.*extend_positions"):
            call()
    state = network.start(network.encode(fits))
    for _ in range(24):
        _, state = network.step(torch.tensor([5]), state)
    with pytest.raises(SentenceTooLong):
        network.step(torch.tensor([5]), state)


def test_more_positions() -> None:
    network = translator("resmlp_seq2seq_test")
    source, target = padded(sentences([24, 9])), padded(started(sentences([24, 11], seed=3)))
    longer = extend_positions(network, 40)
    with torch.no_grad():
        assert torch.equal(network(source, target), longer(source, target))
        assert longer(padded(sentences([40])), target[:1]).isfinite().all()
    old, new = network.encoder[1].mixing.weight, longer.encoder[1].mixing.weight
    assert new.shape == (40, 40)
    for offset in (0, 3, -5):  # diagonals go on
        assert torch.equal(new.diagonal(offset)[: 24 - abs(offset)], old.diagonal(offset))
        assert (new.diagonal(offset)[24 - abs(offset) :] == old.diagonal(offset)[-1]).all()
    assert network.encoder[0].mixing.max_length == 24
    assert longer.config.max_length == 40
    with pytest.raises(InvalidConfig, match="at least the 24"):
        extend_positions(network, 20)
    with pytest.raises(InvalidConfig, match="no matrices over positions"):
        extend_positions(translator("transformer_seq2seq_test"), 40)  # type: ignore[arg-type]


@pytest.mark.parametrize("depth", [6, 12])
def test_parameters(depth: int) -> None:
    """Counted by hand: d 512, hidden 2048, 256 positions."""
    d, h, n, vocabulary = 512, 2048, 256, 32_000
    feed_forward, attention, positions = 2 * d * h + h + d, 4 * (d * d + d), n * n + n
    with torch.device("meta"):
        resmlp = create_translator(f"resmlp_seq2seq_{depth}", vocab_size=vocabulary)
        transformer = create_translator(f"transformer_seq2seq_{depth}", vocab_size=vocabulary)
    encoder, decoder = positions + feed_forward + 6 * d, positions + feed_forward + attention + 9 * d
    assert sum(p.numel() for p in resmlp.parameters()) == vocabulary * d + depth * (encoder + decoder) + 4 * d
    encoder, decoder = attention + feed_forward + 4 * d, 2 * attention + feed_forward + 6 * d
    assert sum(p.numel() for p in transformer.parameters()) == vocabulary * d + depth * (encoder + decoder)


@pytest.mark.parametrize("name", NAMES)
def test_one_embedding_learns_from_everywhere(name: str) -> None:
    network = create_translator(name, vocab_size=VOCABULARY)
    assert [key for key in network.state_dict() if "embedding" in key] == ["embedding.weight"]
    assert not network.embedding.weight[PAD].any()
    loss = network(padded(sentences([5, 9])), padded(started(sentences([7, 4])))).logsumexp(-1).sum()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    twin = copy.deepcopy(network)
    assert twin.embedding.weight is not network.embedding.weight


def test_sinusoids() -> None:
    table = sinusoids(50, 8)
    assert table.shape == (50, 8)
    assert table[0].tolist() == [0.0] * 4 + [1.0] * 4
    torch.testing.assert_close(table[7, 0], torch.tensor(7.0).sin())
    torch.testing.assert_close(table[7, 7], torch.tensor(7e-4).cos())


def test_names_and_options() -> None:
    assert visionmlp.create_translator is create_translator
    assert {"resmlp_seq2seq_6", "resmlp_seq2seq_12", "transformer_seq2seq_6", "transformer_seq2seq_12"} < {*TRANSLATORS}
    for name, fields, error, message in (
        ("resmlp_seq2seq_7", {}, UnknownModel, "did you mean resmlp_seq2seq_6"),
        ("resmlp_seq2seq_test", {"dropot": 0.1}, InvalidConfig, "did you mean dropout"),
        ("resmlp_seq2seq_test", {"norm": "batch"}, InvalidConfig, "norm must be one of"),
        ("resmlp_seq2seq_test", {"num_heads": 3}, InvalidConfig, "no multiple of num_heads"),
        ("resmlp_seq2seq_test", {"max_length": 0}, InvalidConfig, "max_length must be a whole number from 1"),
        ("transformer_seq2seq_test", {"dropout": float("nan")}, InvalidConfig, "dropout must be a number"),
        ("transformer_seq2seq_test", {"norm": "affine"}, InvalidConfig, "has no option 'norm'"),
    ):
        with pytest.raises(error, match=message):
            create_translator(name, vocab_size=VOCABULARY, **fields)
    with pytest.raises(InvalidConfig, match="vocab_size must be above 3"):
        create_translator("resmlp_seq2seq_test", vocab_size=3)


def test_attention_weights_are_those_of_torch() -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(12, 3, batch_first=True).double().eval()
    randomise(attention, seed=1)
    x, memory = torch.randn(2, 5, 12, dtype=torch.float64), torch.randn(2, 7, 12, dtype=torch.float64)
    mask = torch.arange(7) < torch.tensor([[7], [4]])
    with torch.no_grad():
        weights = attention_weights(attention, x, keys_values(attention, memory), mask)
        _, expected = attention(x, memory, memory, key_padding_mask=~mask, average_attn_weights=False)
    torch.testing.assert_close(weights, expected, rtol=1e-12, atol=1e-12)
    assert not weights[1, ..., 4:].any()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_shown_of_attention_is_what_the_decoder_does(name: str) -> None:
    network = translator(name)
    source, target = sentences([6])[0][None], started(sentences([4], seed=2))[0][None]
    shown = cross_attention(network, source, target)
    inputs = {}
    for layer in network.decoder:
        if name.startswith("resmlp"):
            layer.norm_cross.register_forward_hook(lambda _, __, x, own=layer.cross: inputs.update({own: x}))
        else:  # torch's layer calls it
            layer.multihead_attn.register_forward_pre_hook(lambda own, given: inputs.update({own: given[0]}))
    with torch.no_grad():
        memory = network.encode(source).states
        network.decode(target, network.encode(source))
        expected = [attention(x, memory, memory)[1][0] for attention, x in inputs.items()]
    assert len(shown) == len(expected) == network.config.depth
    for one, other in zip(shown, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(one.sum(1), torch.ones(4, dtype=torch.float64))
