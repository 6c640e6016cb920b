"""Parallel text and batches: every line is there once, what cannot be used is named, padding is little."""

import contextlib
import gzip
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from visionmlp.errors import DataError
from visionmlp.models.translator import EOS, PAD
from visionmlp.tasks.translate import hugging_face
from visionmlp.tasks.translate.batching import Batches, EvaluationBatches, TrainingBatches, batches_of
from visionmlp.tasks.translate.data import RunCorpora, open_corpus, usable
from visionmlp.tasks.translate.tokenizer import Tokenizer, train_tokenizer

ENGLISH = ["A man\u2028rides.", "", "  two  spaces ", "x" * 40]
SENTENCES = ["the man rides a bicycle", "der Mann faehrt Rad", "", "ein Hund"] * 3
GERMAN = ["Ein Mann reitet.", "leer", "zwei", "y"]


class Numbers:
    """Sentences that are their lengths."""

    def __init__(self, lengths) -> None:
        self.lengths = np.array(lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, number: int) -> np.ndarray:
        return np.array([10 + number] * (self.lengths[number] - 1) + [EOS], np.int32)


def write(path: Path, lines, end: str = "\n") -> None:
    content = "".join(f"{line}{end}" for line in lines).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.mark.parametrize(
    "names", [("train.en", "train.de"), ("train.en.gz", "train.de.gz"), ("train.de-en.en", "train.de-en.de")]
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_two_files(names, end: str, tmp_path: Path) -> None:
    for name, lines in zip(names, (ENGLISH, GERMAN), strict=True):
        write(tmp_path / name, lines, end)
    corpus = open_corpus(tmp_path, "train", "en", "de")
    assert (corpus.source, corpus.target) == (ENGLISH, GERMAN)
    back = open_corpus(tmp_path, "train", "de", "en")
    assert (back.source, back.target) == (GERMAN, ENGLISH)


@pytest.mark.parametrize("name", ["multi30k.train.en-de.tsv.gz", "train.en-de.tsv", "train.tsv"])
def test_one_file(name: str, tmp_path: Path) -> None:
    write(tmp_path / name, [f"{one}\t{other}" for one, other in zip(ENGLISH, GERMAN, strict=True)])
    corpus = open_corpus(tmp_path, "train", "en", "de")
    assert (corpus.source, corpus.target) == (ENGLISH, GERMAN)
    if "-" in name:
        assert open_corpus(tmp_path, "train", "de", "en").source == GERMAN
    assert len(corpus.first(2)) == 2


def test_which_table(tmp_path: Path) -> None:
    """Not the first of several, nor what macOS leaves beside each."""
    (tmp_path / "b.val.en-de.tsv").write_text("x\ty\n")
    (tmp_path / "._b.val.en-de.tsv").write_bytes(b"\x00\xff")
    assert open_corpus(tmp_path, "val", "en", "de").source == ["x"]
    (tmp_path / "a.val.en-de.tsv.gz").write_bytes(gzip.compress(b"z\tw\n"))
    with pytest.raises(DataError, match=r"has a.val.en-de.tsv.gz and b.val.en-de.tsv; leave one"):
        open_corpus(tmp_path, "val", "en", "de")
    (tmp_path / "val.en-de.tsv").write_text("own\ty\n")
    assert open_corpus(tmp_path, "val", "en", "de").source == ["own"]
    for split in ("/no/such", "**x"):
        with pytest.raises(DataError, match="has no"):
            open_corpus(tmp_path, split, "en", "de")


def test_a_mark_and_a_last_line_without_end(tmp_path: Path) -> None:
    (tmp_path / "train.en").write_bytes(b"\xef\xbb\xbfone\ntwo")
    (tmp_path / "train.de").write_bytes(b"eins\r\nzwei\x00")
    corpus = open_corpus(tmp_path, "train", "en", "de")
    assert (corpus.source, corpus.target) == (["one", "two"], ["eins", "zwei\0"])


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    for content, message in (
        ({}, "has no train.en with train.de"),
        ({"train.en": b"a\nb\n", "train.de": b"a\n"}, "train.en has 2 lines, but .*train.de has 1"),
        ({"train.en": b"a\n\xff\n", "train.de": b"a\nb\n"}, "train.en, line 2, is no UTF-8"),
        ({"train.en": b"", "train.de": b""}, "has no sentences"),
        ({"train.tsv": b"a\tb\na b\n"}, r"train.tsv, line 2, has 1 columns"),
        ({"train.tsv.gz": gzip.compress(b"a\tb\n" * 2000)[:-20]}, "cannot read .*train.tsv.gz behind line"),
    ):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        for name, text in content.items():
            (folder / name).write_bytes(text)
        with pytest.raises(DataError, match=message):
            open_corpus(folder, "train", "en", "de")
    with pytest.raises(DataError, match="is no folder"):
        open_corpus(tmp_path / "none", "train", "en", "de")


def test_a_change_of_the_data_is_noticed(tmp_path: Path) -> None:
    write(tmp_path / "train.en", ENGLISH)
    write(tmp_path / "train.de", GERMAN)
    summary = open_corpus(tmp_path, "train", "en", "de").summary()
    data = RunCorpora(training=summary, evaluation=summary, tokenizer="a")
    assert data.change_since(data.to_plain()) is None
    write(tmp_path / "train.de", [*GERMAN[:3], "z"])
    other = open_corpus(tmp_path, "train", "en", "de").summary()
    for changed, message in (
        ({"training": other}, "training data: the 4 pairs are other ones"),
        ({"evaluation": open_corpus(tmp_path, "train", "en", "de").first(1).summary()}, "were 4 pairs and are 1"),
        ({"tokenizer": "b"}, "tokenizer is another"),
    ):
        found = RunCorpora(**{**data.to_plain(), **changed}).change_since(data.to_plain())
        assert found is not None
        assert message in found


def test_what_is_trained_on() -> None:
    """Lengths with the end symbol: 1 is empty."""
    source, target = Numbers([1, 5, 12, 13, 5, 9]), Numbers([4, 1, 12, 3, 12, 13])
    numbers, left = usable(source, target, max_tokens=12, max_ratio=None)  # type: ignore[arg-type]
    assert numbers.tolist() == [2, 3, 4, 5]
    assert left.text() == "2 empty"
    numbers, left = usable(source, target, max_tokens=11, max_ratio=2.0)  # type: ignore[arg-type]
    assert numbers.tolist() == [2]
    assert left.text() == "2 empty, 2 too long, 1 of too different lengths"


def test_batches_hold_each_pair_once_within_the_tokens() -> None:
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 30, (2, 500))
    numbers = np.arange(0, 500, 2)
    for tokens in (1, 64, 300):
        batches = batches_of(lengths, numbers, tokens, seed=3)
        assert sorted(np.concatenate(batches).tolist()) == numbers.tolist()
        for batch in batches:
            assert len(batch) == 1 or len(batch) * lengths[:, batch].max() <= tokens
    padded = sum(len(batch) * lengths[0, batch].max() for batch in batches)
    assert lengths[0, numbers].sum() > 0.9 * padded  # of like lengths
    again = batches_of(lengths, numbers, 300, seed=3)
    assert all(np.array_equal(one, other) for one, other in zip(batches, again, strict=True))
    assert batches_of(lengths, numbers[:0], 300) == []


def test_a_batch_is_what_the_network_takes() -> None:
    batch = Batches(Numbers([3, 1]), Numbers([2, 4]))([0, 1])  # type: ignore[arg-type]
    assert batch.source.tolist() == [[10, 10, EOS], [EOS, PAD, PAD]]
    assert batch.target.tolist() == [[10, EOS, PAD, PAD], [11, 11, 11, EOS]]
    assert batch.decoder_input.tolist() == [[EOS, 10, EOS, PAD], [EOS, 11, 11, 11]]
    assert batch.numbers == (0, 1)
    assert batch.source.dtype == torch.int64


def test_an_epoch_can_be_entered_anywhere_and_shared() -> None:
    side = Numbers([4] * 23)
    batches = batches_of(np.stack([side.lengths] * 2), np.arange(23), 8)
    whole = TrainingBatches(Batches(side, side), batches, seed=1)  # type: ignore[arg-type]
    first, second = ([batch.numbers for batch in whole.epoch(epoch)] for epoch in (0, 1))
    assert first != second
    assert {*first} == {*second} == {tuple(batch.tolist()) for batch in batches}
    assert [batch.numbers for batch in whole.epoch(0, skip=5)] == first[5:]
    for ranks, accumulate in ((2, 1), (1, 2), (2, 3)):
        parts = [
            list(
                TrainingBatches(
                    Batches(side, side),  # type: ignore[arg-type]
                    batches,
                    seed=1,
                    rank=rank,
                    ranks=ranks,
                    accumulate=accumulate,
                ).epoch(0)
            )
            for rank in range(ranks)
        ]
        for step, batch in enumerate(first):
            shares = [part for own in parts for part in own[step * accumulate : (step + 1) * accumulate]]
            assert sorted(number for share in shares for number in share.numbers) == sorted(batch)
    empty = next(part for own in parts for part in own if not part.numbers)
    assert (empty.source.tolist(), empty.target.tolist()) == ([[EOS]], [[PAD]])
    seen = []
    for rank in range(3):
        seen += [batch.numbers for batch in EvaluationBatches(Batches(side, side), batches, rank=rank, ranks=3)]  # type: ignore[arg-type]
    assert sorted(number for numbers in seen for number in numbers) == [*range(23)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(SENTENCES, 300)


def test_nothing_is_lost_between_text_and_ids(tokenizer: Tokenizer) -> None:
    texts = [
        "",
        " ",
        "the man",
        "  two  spaces ",
        "\u2026\u00bd \u2047 \u65e5\u672c \U0001f600",
        "a\tb\u00a0c",
        "\u2581x",
    ]
    for text in texts[:-1]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert all(3 < number < tokenizer.size for number in ids)  # never unknown
        assert tokenizer.decode([0, 1, *ids, 2, 1]) == text
    assert tokenizer.size == 300
    assert (
        train_tokenizer(["the man rides a bicycle", "der Mann faehrt Rad", "", "ein Hund"] * 3, 300).model
        == tokenizer.model
    )


def test_other_tokenizers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    import sentencepiece

    (tmp_path / "own.model").write_bytes(tokenizer.model)
    assert Tokenizer.read(tmp_path / "own.model").sha256 == tokenizer.sha256
    (tmp_path / "text.txt").write_text("one two three four five\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text.txt"), model_prefix=str(tmp_path / "foreign"), vocab_size=16, minloglevel=2
    )
    for name, content, message in (
        ("foreign.model", None, r"has the ids bos 1, pad -1, eos 2, unk 0, but the networks have bos 0, pad 1"),
        ("none.model", None, "cannot read the tokenizer"),
        ("text.model", b"no model", "is no model of sentencepiece"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=message):
            Tokenizer.read(tmp_path / name)
    with pytest.raises(DataError, match="must be above 260"):
        train_tokenizer(["a"], 260)
    with pytest.raises(DataError, match="cannot make a vocabulary of 5000"):
        train_tokenizer(["a b c"], 5000)


class Table:
    """What `datasets.load_dataset` returns, as far as it is used."""

    def __init__(self, columns: dict[str, list[Any]]) -> None:
        self.columns, self.column_names = columns, list(columns)

    def __getitem__(self, name: str) -> list[Any]:
        return self.columns[name]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str | None, str], Table]:
    """Datasets by name, configuration and split."""
    tables: dict[tuple[str, str | None, str], Table] = {}

    def load(name: str, configuration: str | None, *, split: str, cache_dir: str | None) -> Table:
        assert cache_dir in (None, "here")
        if not any(key[0] == name for key in tables):
            raise ConnectionError("no network\nat all")
        if (name, configuration, split) not in tables:
            raise ValueError(f"Unknown split {split!r}.")
        return tables[name, configuration, split]

    monkeypatch.setattr(hugging_face, "require", lambda *_, **__: SimpleNamespace(load_dataset=load))
    monkeypatch.setattr("visionmlp.data.hugging_face.offline", contextlib.nullcontext)
    return tables


def test_pairs_of_hugging_faces_library(hub) -> None:
    hub["m", None, "train"] = Table({"de": ["ein Hund", "zwei"], "en": ["a\ndog", "two"]})
    hub["w", "de-en", "validation"] = Table({"translation": [{"de": "drei", "en": "three"}]})
    corpus = open_corpus("hfds/m", "train", "en", "de")
    assert (corpus.source, corpus.target) == (["a dog", "two"], ["ein Hund", "zwei"])
    assert open_corpus("hfds/w:de-en", "val", "de", "en", root=Path("here")).source == ["drei"]
    for data, split, message in (
        ("hfds/m", "test", "hfds/m has no split test"),
        ("hfds/x", "train", "hfds/x cannot be opened: no network; --download fetches it"),
    ):
        with pytest.raises(DataError, match=message):
            open_corpus(data, split, "en", "de")
    hub["m", None, "val"] = Table({"en": ["a"], "fr": ["un"]})
    with pytest.raises(DataError, match="has the columns en, fr, not en and de, nor translation"):
        open_corpus("hfds/m", "val", "en", "de")
    hub["w", "de-en", "train"] = Table({"translation": [{"de": "a", "en": "b"}, {"de": None, "en": "c"}]})
    with pytest.raises(DataError, match="hfds/w:de-en, train, pair 2, has no text in de"):
        open_corpus("hfds/w:de-en", "train", "en", "de")
