"""Lines: as many come out as go in, in their order, the same however they are batched; what is unusual is named."""

import io
import itertools
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import sentencepiece
import torch

from tests.tasks.translate import tiny
from visionmlp.errors import DataError, InvalidConfig, SentenceTooLong
from visionmlp.models.translator import EOS, Translator, create_translator
from visionmlp.tasks.translate.decoding import Search, beam_search
from visionmlp.tasks.translate.lines import Lines, is_blank, one_line
from visionmlp.tasks.translate.tokenizer import Tokenizer
from visionmlp.tasks.translate.translate import LineTranslator, Sampling, TranslatedLine

SEARCH = Search(beam=3, n_best=2, max_length=9, length_penalty=0.6)
BLANK = ("", " ", "\t", "\u00a0", " \u200b\ufeff", "\0", "\r")
SENTENCES = tuple(f"{'ein Hund und ' * (i % 3)}{i} Katzen{' laufen' * (i % 2)}" for i in range(12))


@pytest.fixture(scope="module")
def network() -> Translator:
    """In float64, in which no two hypotheses are as good as each other by rounding."""
    return tiny.network().double()


def translator(network: Translator, **options) -> LineTranslator:
    return LineTranslator(**{"network": network, "tokenizer": tiny.tokenizer(), "search": SEARCH, **options})


def same(one: list[TranslatedLine], other: list[TranslatedLine]) -> bool:
    """But for rounding of scores."""
    return len(one) == len(other) and all(
        a.source == b.source
        and [each.tokens for each in a.translations] == [each.tokens for each in b.translations]
        and [each.score for each in a.translations] == pytest.approx([each.score for each in b.translations], rel=1e-9)
        for a, b in zip(one, other, strict=True)
    )


def test_line_for_line_however_they_are_batched(network: Translator) -> None:
    """Every fourth line is blank in some way, one is far too long, and no batch is full at the end."""
    lines = [BLANK[i // 4 % len(BLANK)] if i % 4 == 3 else SENTENCES[i * 7 % 12] for i in range(59)]
    lines[50] = "Hund " * 2500
    alone = {}
    for text in {*lines} - {*BLANK, lines[50]}:
        source = torch.tensor([[*tiny.tokenizer().encode(text), EOS]])
        (alone[text],) = beam_search(network, source, SEARCH)
    found = [
        [*translator(network, too_long="cut", batch_size=batch, chunk=chunk)(lines)]
        for batch, chunk in ((64, 1000), (7, 25))
    ]
    few = [*translator(network, too_long="cut", chunk=1)(lines[:12])]
    assert [line.source for line in found[0]] == lines
    assert [line.number for line in found[0]] == [*range(1, len(lines) + 1)]
    for line in found[0]:
        if line.source in BLANK:
            assert (line.state, line.text, line.translations) == ("empty", "", [])
        elif line.number != 51:
            assert line.state == "translated"
            expected = [tiny.tokenizer().pieces(one.tokens) for one in alone[line.source]]
            assert [one.tokens for one in line.translations] == expected
            assert line.text == one_line(tiny.tokenizer().decode(alone[line.source][0].tokens))
            scores = [(one.score, one.log_probability) for one in alone[line.source]]
            for one, (score, total) in zip(line.translations, scores, strict=True):
                assert (one.score, one.log_probability) == pytest.approx((score, total), rel=1e-9)
    assert found[0][50].state == "cut"
    assert found[0][50].text
    assert same(found[0], found[1])
    assert same(found[0][:12], few)
    assert len({line.text for line in found[0]}) > 5
    assert len({len(line.translations[0].tokens) for line in found[0] if line.translations}) > 1


def test_a_batch_is_of_sentences_of_one_length(network: Translator, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes, encode = [], network.encode
    monkeypatch.setattr(network, "encode", lambda source: shapes.append(source.shape) or encode(source))
    [*translator(network, batch_size=2)([tiny.words(n) for n in (4, 12, 4, 12, 7)])]
    assert shapes == [(2, 4), (2, 12), (1, 12)]


def test_only_a_chunk_is_held(network: Translator) -> None:
    taken = []

    def lines() -> Iterator[str]:
        for number in itertools.count(1):
            taken.append(number)
            yield SENTENCES[number % 12]

    found = translator(network, chunk=3, batch_size=2)(lines())
    assert taken == []
    for number, line in itertools.islice(enumerate(found, 1), 7):
        assert line.number == number
        assert len(taken) == -(-number // 3) * 3


def test_the_longest_line(network: Translator) -> None:
    """The end symbol counts."""
    lines = [tiny.words(count) for count in (31, 32, 33)]
    with pytest.raises(SentenceTooLong, match=r"line 3 has 33 tokens.*more than the 32.*--too-long cut"):
        [*translator(network)(lines)]
    assert [line.state for line in translator(network)(lines[:2])] == ["translated"] * 2
    skipped = [*translator(network, too_long="skip")([lines[2], *lines[:2]])]
    assert [line.state for line in skipped] == ["skipped", "translated", "translated"]
    assert skipped[0].text == ""
    cut = [*translator(network, too_long="cut")(lines)][2]
    assert (cut.state, cut.source) == ("cut", lines[2])
    source = torch.tensor([[*tiny.tokenizer().encode(lines[2])[:31], EOS]])
    assert cut.translations[0].tokens == tiny.tokenizer().pieces(beam_search(network, source, SEARCH)[0][0].tokens)


def test_prefixes_are_line_for_line(network: Translator) -> None:
    prefixes = ["ein Hund", "", "7", " ", "Katzen"]
    lines = [*SENTENCES[:3], *SENTENCES[3:4], ""]
    found = [*translator(network, batch_size=2)(lines, prefixes=prefixes)]
    for line, prefix in zip(found[:4], prefixes, strict=False):
        forced = tiny.tokenizer().pieces(tiny.tokenizer().encode(prefix.strip()))
        assert all(one.tokens[: len(forced)] == forced for one in line.translations)
        assert line.text.startswith(prefix.strip())
    free = [*translator(network)(lines)]
    assert same(found[1:2], free[1:2])
    assert same(found[3:], free[3:])
    assert not free[0].text.startswith("ein Hund")
    # a byte that ends lines
    (broken,) = translator(network)(["Hund"], prefixes=["ein\nHund\r\u2028x"])
    assert broken.text.startswith("ein Hund  x")
    assert "<0x0A>" in broken.translations[0].tokens
    for given, message in (
        (prefixes[:4], "4 prefixes and more lines"),
        ([*prefixes, ""], "5 lines and more prefixes"),
        ([*prefixes[:2], tiny.words(12), "", ""], "line 3: its prefix has 11 tokens, a translation of it at most 9"),
    ):
        with pytest.raises(DataError, match=message):
            [*translator(network)(lines, prefixes=given)]


def test_a_prefix_that_the_vocabulary_lacks() -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["ein Hund laeuft"] * 9),
        model_writer=model,
        vocab_size=30,
        model_type="bpe",
        pad_id=1,
        bos_id=0,
        eos_id=2,
        unk_id=3,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    tokenizer = Tokenizer(model.getvalue())
    own = create_translator("resmlp_seq2seq_test", vocab_size=tokenizer.size).eval()
    foreign = LineTranslator(network=own, tokenizer=tokenizer, search=SEARCH)
    assert [line.state for line in foreign(["ein Hund \u03b1"])] == ["translated"]
    with pytest.raises(DataError, match="line 1: its prefix 'ein α' has characters that the vocabulary lacks"):
        [*foreign(["ein Hund"], prefixes=["ein \u03b1"])]


def test_draws_follow_from_seed_and_line(network: Translator) -> None:
    lines = ["ein Hund"] * 5 + ["", *SENTENCES[:4]]
    options = {"sampling": Sampling(seed=3), "search": Search(max_length=9)}
    found = [*translator(network, **options)(lines)]
    assert same(found, [*translator(network, **options, batch_size=2, chunk=3)(lines)])
    assert len({line.text for line in found[:5]}) > 2
    other = [*translator(network, **{**options, "sampling": Sampling(seed=4)})(lines)]
    assert not same(found[:5], other[:5])
    cold = [*translator(network, **{**options, "sampling": Sampling(top_k=1)})(lines)]
    assert same(cold, [*translator(network, **{**options, "sampling": Sampling(temperature=1e-6)})(lines)])
    assert len({line.text for line in cold[:5]}) == 1
    with pytest.raises(InvalidConfig, match="cannot have a prefix"):
        [*translator(network, **options)(lines, prefixes=lines)]


def test_what_cannot_be(network: Translator) -> None:
    for options, message in (
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"chunk": 0}, "chunk must be at least 1"),
    ):
        with pytest.raises(InvalidConfig, match=message):
            translator(network, **options)
    for options, message in (
        ({"seed": -1}, "seed must be at least 0"),
        ({"temperature": 0.0}, "temperature must be a number of at least"),
        ({"temperature": float("nan")}, "temperature must be a number of at least"),
        ({"top_k": 0}, "top_k must be at least 1"),
    ):
        with pytest.raises(InvalidConfig, match=message):
            Sampling(**options)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="the tokenizer has 320 symbols, but the network 300"):
        translator(create_translator("resmlp_seq2seq_test", vocab_size=300))


def test_where_lines_end(tmp_path: Path) -> None:
    """At LF and CRLF and nowhere else, whatever else is in them."""
    first, second, third = (tmp_path / name for name in ("a", "b", "c"))
    first.write_bytes("\ufeffeins\r\nzwei\u2028\x85\x0c\x1cdrei\rvier\n\n\ufeffx".encode())
    second.write_bytes(b"")
    third.write_bytes(b"nul\0nul\n")
    lines = Lines([str(first), str(second), str(third)])
    assert [*lines] == ["eins", "zwei\u2028\x85\x0c\x1cdrei\rvier", "", "\ufeffx", "nul\0nul"]
    assert [lines.place(number) for number in (1, 4, 5)] == [f"{first}, line 1", f"{first}, line 4", f"{third}, line 1"]
    assert [*lines] == [*lines]
    third.write_bytes(b"gut\nZ\xfcrich\ngut")
    with pytest.raises(DataError, match=re.escape(f"{third}, line 2: byte 2 is no UTF-8")):
        list(lines)
    assert [*Lines([str(third)], "replace")] == ["gut", "Z\ufffdrich", "gut"]
    for missing in (tmp_path, tmp_path / "d"):
        with pytest.raises(DataError, match=f"cannot read {missing}: "):
            Lines([str(first), str(missing)]).check()


def test_a_pipe_is_opened_once(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    lines = Lines([str(path)])
    lines.check()
    assert not lines.again
    writer = threading.Thread(target=path.write_bytes, args=(b"eins\nzwei\n",))
    writer.start()
    assert [*lines] == ["eins", "zwei"]
    writer.join()


def test_blanks_and_breaks() -> None:
    assert all(map(is_blank, BLANK))
    assert not any(map(is_blank, ("a", " .", "\u00a0-", "\U0001f600", "\ue000", "\u0378")))
    assert one_line("a\nb\r\nc\0d\u2028e\x1bf\x85g\th") == "a b  c d e f g\th"
