"""``translate`` through ``main([...])``: line for line, files and pipes, JSON, and what is refused."""

import gzip
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.tasks.translate import tiny
from visionmlp.cli import main
from visionmlp.models.translator_files import load_translator
from visionmlp.tasks.translate import serving
from visionmlp.tasks.translate.decoding import Search
from visionmlp.tasks.translate.translate import LineTranslator, Sampling, TranslatedLine

LINES = ["ein Hund", "", "7 Katzen laufen", "\u00a0\t", tiny.words(40), "Haus"]
SHORT = ["--max-length", "6"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny.checkpoint(tmp_path_factory.mktemp("translator"))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Without an end of its last line."""
    path = tmp_path / "text.de"
    path.write_bytes("\n".join(LINES).encode())
    return path


def pipe(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))


def expected(model: Path, **options) -> list[TranslatedLine]:
    network, info = load_translator(model)
    options = {"search": Search(max_length=6), "too_long": "cut", **options}
    if options.pop("double", False):
        network.double()
    return [*LineTranslator(network=network, tokenizer=tiny.Tokenizer(info.tokenizer), **options)(LINES)]


def test_from_a_file_a_pipe_and_into_a_file(model: Path, text: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["translate", str(model), *SHORT, "--too-long", "cut"]
    assert main([*words, str(text)]) == 0
    printed = capsys.readouterr()
    assert printed.out == "".join(line.text + "\n" for line in expected(model))
    assert len({*printed.out.splitlines()}) > 3
    assert printed.err == f"note: 1 line is longer than the model takes and lost the end: {text}, line 5\n"
    pipe(monkeypatch, text.read_bytes().replace(b"\n", b"\r\n"))
    assert main([*words, "--chunk", "2", "--batch-size", "1", "--threads", "1"]) == 0
    piped = capsys.readouterr()
    assert piped.out == printed.out
    assert piped.err.endswith("standard input, line 5\n")
    output = text.with_name("text.en")
    assert main([*words[:2], str(text), str(text), *words[2:], "--output", str(output)]) == 0
    assert output.read_bytes() == (2 * printed.out).encode()
    written = capsys.readouterr()
    assert written.out == f"wrote {output}\n"
    assert "2 lines are longer than the model takes and lost the end" in written.err
    assert main([*words[:2], str(text), *words[2:], "--output", str(output)]) == 2
    assert "--force" in capsys.readouterr().err
    assert main([*words[:2], str(text), *SHORT, "--too-long", "skip", "--output", str(output), "--force"]) == 0
    assert output.read_text().split("\n")[4:] == ["", expected(model)[5].text, ""]
    assert "1 line is longer than the model takes and came out empty" in capsys.readouterr().err


def test_json_has_all(model: Path, text: Path, capsys) -> None:
    """Scores in float64, so that they are those of the same search anywhere."""
    words = ["--beam", "5", "--n-best", "3", "--length-penalty", "1.5", "--stopping", "beam", "--min-length", "2"]
    words += ["--max-length", "14", "--max-length-ratio", "0.5", "--dtype", "float64", "--json", "--too-long", "skip"]
    assert main(["translate", str(model), str(text), *words]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    search = Search(
        beam=5, n_best=3, length_penalty=1.5, stopping="beam", min_length=2, max_length=14, max_length_ratio=0.5
    )
    wanted = expected(model, search=search, too_long="skip", double=True)
    assert [line["source"] for line in found] == LINES
    assert [line["state"] for line in found] == ["translated", "empty", "translated", "empty", "skipped", "translated"]
    for line, want in zip(found, wanted, strict=True):
        assert len(line["translations"]) == (3 if want.state == "translated" else 0)
        for one, other in zip(line["translations"], want.translations, strict=True):
            assert (one["text"], one["tokens"]) == (other.text, other.tokens)
            assert one["score"] == pytest.approx(other.score, rel=1e-12)
            assert one["log_probability"] == pytest.approx(other.log_probability, rel=1e-12)
    # each option of the search says something
    for field, value in (
        ("length_penalty", 2.0),
        ("stopping", "exact"),
        ("min_length", 12),
        ("max_length", 9),
        ("max_length_ratio", 0.0),
    ):
        other = Search(**{**vars(search), field: value})
        lines = expected(model, search=other, too_long="skip", double=True)
        assert [line.translations for line in lines] != [line.translations for line in wanted], field


def test_draws_and_prefixes(model: Path, text: Path, capsys) -> None:
    words = ["translate", str(model), str(text), *SHORT, "--too-long", "cut"]
    assert main([*words, "--sample", "--seed", "5", "--temperature", "0.9", "--top-k", "40"]) == 0
    drawn = [line.text for line in expected(model, sampling=Sampling(seed=5, temperature=0.9, top_k=40))]
    assert capsys.readouterr().out.split("\n") == [*drawn, ""]
    prefix = text.with_name("prefix")
    prefix.write_text("Hund\n\nKatzen\n\n\n\n")
    assert main([*words, "--prefix", str(prefix)]) == 0
    lines = capsys.readouterr().out.split("\n")
    assert lines[0].startswith("Hund")
    assert lines[2].startswith("Katzen")
    assert lines[1] == lines[3] == ""
    assert lines[4:6] == [line.text for line in expected(model)[4:]]


def test_each_line_comes_before_the_next_is_read(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a terminal, or with a chunk of one."""
    seen: list[str] = []

    class Out(io.StringIO):
        def flush(self) -> None:
            seen[:] = self.getvalue().splitlines()

    class In:
        def __init__(self, terminal: bool) -> None:
            self.isatty = lambda: terminal

        @property
        def buffer(self) -> Iterator[bytes]:
            for count in range(3):
                assert len(seen) == count
                yield b"Hund\n"

    for stdin, words in ((In(True), []), (In(False), ["--chunk", "1"])):
        seen.clear()
        monkeypatch.setattr("sys.stdout", Out())
        monkeypatch.setattr("sys.stdin", stdin)
        assert main(["translate", str(model), *SHORT, *words]) == 0
        assert len(seen) == 3


def test_nothing_is_translated_before_files_are_looked_through(
    model: Path, text: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What would stop the work in its last line does so at once, and in a pipe where it comes."""
    output = text.with_name("out")
    bad = text.with_name("bad.de")
    bad.write_bytes(b"Hund\nZ\xfcrich\n")
    words = [*SHORT, "--output", str(output), "--chunk", "1"]
    for file, message in (
        (text, "line 5 has 40 tokens, its end symbol among them, more than the 32"),
        (bad, "line 2: byte 2 is no UTF-8"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(LineTranslator, "__call__", lambda *_, **__: pytest.fail("translated"))
            assert main(["translate", str(model), str(file), *words]) == 2
        assert f"error: {file}, {message}" in capsys.readouterr().err
        pipe(monkeypatch, file.read_bytes())
        assert main(["translate", str(model), *SHORT, "--chunk", "1"]) == 2
        printed = capsys.readouterr()
        assert f"error: standard input, {message}" in printed.err
        assert len(printed.out.splitlines()) == (4 if file == text else 1)
    assert {path.name for path in text.parent.iterdir()} == {"text.de", "bad.de"}
    assert main(["translate", str(model), str(bad), *SHORT, "--invalid-utf8", "replace"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_an_interrupt_leaves_what_was_there(model: Path, text: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    output = text.with_name("out")
    output.write_text("before")

    def interrupted(options: object, **switches: object) -> Iterator[TranslatedLine]:  # noqa: ARG001
        yield expected(model)[0]
        raise KeyboardInterrupt

    monkeypatch.setattr(serving, "translate", interrupted)
    assert main(["translate", str(model), str(text), "--output", str(output), "--force"]) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert {path.name: path.read_text() for path in text.parent.iterdir() if path != text} == {"out": "before"}


def test_lines_are_counted_on_a_terminal(model: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    pipe(monkeypatch, b"Hund\n\nHaus\n")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    assert main(["translate", str(model), *SHORT]) == 0
    assert "3 lines" in terminal.getvalue()
    assert len(capsys.readouterr().out.split("\n")) == 4


def test_threads_are_pytorchs(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    pipe(monkeypatch, b"")
    assert main(["translate", str(model), "--threads", "3"]) == 0
    assert asked == [3]


def test_what_is_refused(model: Path, text: Path, capsys, monkeypatch: pytest.MonkeyPatch, checkpoint: Path) -> None:
    few = text.with_name("few")
    few.write_text("Hund\n")
    pipe(monkeypatch, b"Hund\n")
    short = text.with_name("short.de")
    short.write_text("Hund\nHaus\n")
    folder = str(text.parent)
    for words, message in (
        (["nonesuch"], "no run folder, checkpoint or exported model nonesuch"),
        ([str(text)], f"{text} is truncated or not a safetensors file"),
        ([str(checkpoint)], "holds a network for classify, no translator"),
        ([str(text.parent.parent)], "has no model.safetensors"),
        ([str(model), "nonesuch.de"], "cannot read nonesuch.de: No such file"),
        ([str(model), folder], f"cannot read {folder}: Is a directory"),
        ([str(model), str(short), "--prefix", str(few)], "there are 1 prefixes and more lines"),
        ([str(model), str(short), "--prefix", "nonesuch"], "cannot read nonesuch"),
        ([str(model), "--bema", "3"], "did you mean --beam"),
        ([str(model), "--beam", "0"], "beam must be at least 1"),
        ([str(model), "--json", "--beam", "2", "--n-best", "3"], "n_best 3 must be at most the beam, 2"),
        ([str(model), "--n-best", "3"], "give --json for --n-best above 1"),
        ([str(model), "--top-k", "3"], "--top-k is about drawn translations; give --sample"),
        ([str(model), "--seed", "0"], "--seed is about drawn translations"),
        ([str(model), "--sample", "--seed", "-1"], "seed must be at least 0"),
        ([str(model), "--sample", "--beam", "3"], "leave out --beam"),
        ([str(model), "--sample", "--stopping", "beam"], "leave out --stopping"),
        ([str(model), "-", "--prefix", "-"], "cannot both be read from -"),
        ([str(model), "--force"], "--force is about the file of --output"),
        ([str(model), "--output", "-"], "--output takes a file"),
        ([str(model), "--chunk", "99999999999999999999"], "chunk must be at least 1"),
        ([str(model), "--threads", "99999999999"], "threads must be at least 1 and at most"),
        ([str(model), "--sample", "--prefix", str(few)], "--sample takes no --prefix"),
        ([str(model), "--sample", "--temperature", "0"], "temperature must be a number of at least"),
        ([str(model), "--chunk", "0"], "chunk must be at least 1"),
        ([str(model), "--batch-size", "0"], "batch_size must be at least 1"),
        ([str(model), "--threads", "0"], "threads must be at least 1"),
        ([str(model), "--device", "nonesuch"], "no device 'nonesuch' here"),
        ([str(model), "--too-long", "drop"], "--too-long takes stop or cut or skip"),
        ([str(model), "--output", str(text)], "--force"),
        ([str(model), "--output", folder], "is a folder; give a file"),
    ):
        assert main(["translate", *words]) == 2, words
        printed = capsys.readouterr()
        assert message in printed.err, (words, printed.err)
        assert printed.err.count("\n") == 1
        assert printed.out == ""


def test_files_of_another_kind_are_named(model: Path, text: Path, capsys) -> None:
    for content, advice in (
        (gzip.compress(b"ein Hund" * 100), "the file is compressed"),
        ("ein Hund\n".encode("utf-16"), "iconv -f UTF-16"),
        ("\u00e4\n".encode("latin1"), "iconv -f LATIN1"),
    ):
        text.write_bytes(content)
        assert main(["translate", str(model), str(text)]) == 2
        assert advice in capsys.readouterr().err


def test_closed_streams_are_one_line(model: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    assert main(["translate", str(model)]) == 2
    assert "standard input is closed" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdout", None)
    assert main(["models"]) == 2
    assert "standard output is closed" in capsys.readouterr().err


def test_help_and_refusals_do_not_wait_for_torch() -> None:
    code = """
import contextlib, io, sys
import visionmlp_command
from visionmlp.cli import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    assert main(["translate", "--help"]) == 0
    assert main(["translate", "nonesuch"]) == 2
    assert main(["translate", ".", "--bema", "3"]) == 2
assert not {"torch", "numpy", "sentencepiece"} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
