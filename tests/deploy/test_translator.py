"""Translators in ONNX: the same hypotheses as PyTorch's, a folder that is whole or not there, and what is refused."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch

from tests.tasks.translate import tiny
from visionmlp.cli import main
from visionmlp.deploy import translator
from visionmlp.deploy.graphs import ExportError
from visionmlp.deploy.translator import ExportedTranslator, export_translator, open_exported_translator
from visionmlp.deploy.writing import whole_folder
from visionmlp.errors import CheckpointError, InvalidConfig, SentenceTooLong
from visionmlp.files import OutputError
from visionmlp.models.translator import EOS, PAD, Translator, create_translator
from visionmlp.models.translator_files import TranslatorInfo, load_translator
from visionmlp.tasks.translate.decoding import Network, Search, beam_search, sample

# one worker exports for all of them
pytestmark = pytest.mark.xdist_group("exported_translators")
NAMES = ("resmlp_seq2seq_test", "transformer_seq2seq_test")
SENTENCES = ("Hund", "7 Katzen laufen um das Haus", "ein Hund und 3 Katzen", tiny.words(tiny.LENGTH), "49 mal")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Of both architectures, written by the command."""
    root = tmp_path_factory.mktemp("exported")
    for name in NAMES:
        assert main(["export", str(tiny.checkpoint(root, name)), "--output", str(root / name)]) == 0
    return {name: root / name for name in NAMES}


def padded(sentences: tuple[str, ...]) -> torch.Tensor:
    ids = [[*tiny.tokenizer().encode(text), EOS] for text in sentences]
    longest = max(map(len, ids))
    return torch.tensor([[*one, *[PAD] * (longest - len(one))] for one in ids])


def loaded(folder: Path) -> Translator:
    """What the folder is the export of."""
    return load_translator(f"{folder}.safetensors")[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_search_finds_the_same(name: str, folders: dict[str, Path]) -> None:
    exported, network = open_exported_translator(folders[name], threads=1), loaded(folders[name])
    said = set()
    for search, prefix in (
        (Search(beam=2, min_length=tiny.LENGTH - 1), None),
        (Search(beam=4, n_best=4, length_penalty=0.6, max_length=12), None),
        (Search(beam=3, n_best=2, max_length=8), [[], [40, 41], [], [50], []]),
    ):
        for texts in (SENTENCES, SENTENCES[:1]):
            part = None if prefix is None else prefix[: len(texts)]
            given = beam_search(exported, padded(texts), search, prefix=part)
            expected = beam_search(network, padded(texts), search, prefix=part)
            for own, other in zip(given, expected, strict=True):
                assert [one.tokens for one in own] == [one.tokens for one in other]
                assert [one.score for one in own] == pytest.approx([one.score for one in other], rel=1e-5)
            said |= {tuple(found[0].tokens) for found in given}
    assert len(said) > 4
    assert max(map(len, said)) == tiny.LENGTH - 1  # the last position too
    draws = [sample(net, padded(SENTENCES), Search(max_length=9), seeds=range(5)) for net in (exported, network)]
    assert [one.tokens for one in draws[0]] == [one.tokens for one in draws[1]]


def test_the_command_translates_the_same(folders: dict[str, Path], capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "\n".join([*SENTENCES, "", "Hund Hund"]).encode()
    outputs = []
    for model in (folders[NAMES[0]], f"{folders[NAMES[0]]}.safetensors"):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))
        assert main(["translate", str(model), "--max-length", "8", "--batch-size", "2", "--threads", "1"]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    assert len({*outputs[0].splitlines()}) > 3
    for words in (["--dtype", "float64"], ["--device", "meta"]):
        assert main(["translate", str(folders[NAMES[0]]), *words]) == 2
    assert "exported models run on cpu in float32" in capsys.readouterr().err


def test_beyond_the_longest_sentence(folders: dict[str, Path]) -> None:
    exported = open_exported_translator(folders[NAMES[0]])
    with pytest.raises(SentenceTooLong, match="33 tokens"):
        exported.encode(torch.full((1, 33), EOS))
    state = exported.start(exported.encode(torch.full((1, 32), EOS)))
    for _ in range(32):
        _, state = exported.step(torch.tensor([5]), state)
    with pytest.raises(SentenceTooLong):
        exported.step(torch.tensor([5]), state)


def test_what_the_folder_says(folders: dict[str, Path]) -> None:
    """For other programs: names of what goes in and comes out."""
    for name, pasts in zip(NAMES, (2, 2), strict=True):
        folder = folders[name]
        assert {path.name for path in folder.iterdir()} == {
            "encoder.onnx",
            "step.onnx",
            "tokenizer.model",
            "translator.json",
        }
        _, info = load_translator(f"{folder}.safetensors")
        assert (folder / "tokenizer.model").read_bytes() == info.tokenizer
        said = json.loads((folder / "translator.json").read_text())
        assert (said["model"], said["languages"], said["config"]) == (name, ["de", "en"], info.config)
        encoder, step = (onnx.load(folder / f"{graph}.onnx") for graph in ("encoder", "step"))
        memory, past = [f"memory_{i}" for i in range(2 * info.config["depth"])], [f"past_{i}" for i in range(pasts)]
        assert [one.name for one in encoder.graph.input] == ["source"]
        assert [one.name for one in encoder.graph.output] == ["states", "mask", *memory]
        assert [one.name for one in step.graph.input] == ["tokens", "mask", *past, *memory]
        assert [one.name for one in step.graph.output] == ["logits", *[f"new_{one}" for one in past]]


def test_a_wrong_graph_is_noticed(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """In any of its parts."""
    for name in NAMES:
        exported = open_exported_translator(folders[name])
        network = loaded(folders[name])
        assert translator._check(network, exported, 2, 9, 2, 4).error < 1e-5
        layers: list[Callable[[torch.nn.Module], torch.Tensor]] = [
            lambda net: net.get_parameter("embedding.weight")[7],
            lambda net: next(p for n, p in net.named_parameters() if n.startswith("encoder.0") and "norm2" in n),
            lambda net: next(p for n, p in net.named_parameters() if n.startswith("decoder.0") and "norm2" in n),
        ]
        for part in layers:
            other = loaded(folders[name])
            with torch.no_grad():
                part(other).mul_(1.01)
            with pytest.raises(ExportError, match=r"other outputs than PyTorch for 2 sentences.*nothing was written"):
                translator._check(other, exported, 2, 9, 2, 4)
    step = ExportedTranslator.step
    with monkeypatch.context() as patch:  # a value that is no number
        patch.setattr(ExportedTranslator, "step", lambda *words: (step(*words)[0] * torch.nan, step(*words)[1]))
        with pytest.raises(ExportError, match="relative error nan"):
            translator._check(network, exported, 2, 9, 2, 4)


def test_damaged_folders(folders: dict[str, Path], tmp_path: Path) -> None:
    def damaged(damage: Callable[[Path], object]) -> Path:
        folder = tmp_path / "copy"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(folders[NAMES[0]], folder)
        damage(folder)
        return folder

    def say(folder: Path, **fields: object) -> None:
        path = folder / "translator.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    other = folders[NAMES[1]] / "step.onnx"
    for damage, message in (
        (lambda f: (f / "step.onnx").unlink(), "has no step.onnx"),
        (lambda f: (f / "encoder.onnx").write_bytes(b"x" * 99), "cannot load .*encoder.onnx"),
        (lambda f: shutil.copy(f / "encoder.onnx", f / "step.onnx"), "step.onnx is another graph than the model's"),
        (lambda f: shutil.copy(other, f / "step.onnx"), "step.onnx is another graph than the model's"),
        (lambda f: (f / "translator.json").write_text("{"), "translator.json is damaged"),
        (lambda f: (f / "translator.json").write_text("[]"), "translator.json is damaged"),
        (lambda f: say(f, config={"vocab_size": -3}), "translator.json is damaged"),
        (lambda f: say(f, languages=["de"]), "translator.json is damaged"),
        (lambda f: say(f, task="classify"), "translator.json is damaged"),
        (lambda f: (f / "tokenizer.model").write_bytes(b""), "another tokenizer than the model"),
    ):
        with pytest.raises(CheckpointError, match=message):
            open_exported_translator(damaged(damage))


def test_what_export_refuses(folders: dict[str, Path], capsys) -> None:
    model = f"{folders[NAMES[0]]}.safetensors"
    for words, message in (
        (["--output", str(folders[NAMES[0]])], "exists; give another --output"),
        (["--output", "x", "--dtype", "fp16"], "--dtype is for models of images"),
        (["--output", "x", "--batch", "3"], "--batch is for models of images"),
        (["--output", "x.onnx"], "give --output FOLDER, not x.onnx"),
        (["--output", "nonesuch/x"], "cannot write nonesuch/x"),
        (["--output", str(folders[NAMES[0]].parent), "--force"], "was not written by export"),
    ):
        assert main(["export", model, *words]) == 2, words
        printed = capsys.readouterr()
        assert message in printed.err
        assert printed.out == ""
    network = create_translator("resmlp_seq2seq_test", vocab_size=9, max_length=7)
    info = TranslatorInfo(model="", config={}, languages=None, tokenizer=b"", source="")
    with pytest.raises(InvalidConfig, match="at least 8 positions, this model has 7"):
        export_translator(network, info, Path("x"))


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    output = tmp_path / "out"

    def write(content: str, *, force: bool = False, fail: bool = False) -> None:
        with whole_folder(output, force=force, mark="mark") as staged:
            (staged / "mark").write_text(content)
            assert not output.exists() or (output / "mark").read_text() == "first"
            if fail:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write("none", fail=True)
    assert [*tmp_path.iterdir()] == []
    write("first")
    with pytest.raises(OutputError, match="exists"):
        write("second")
    with pytest.raises(KeyboardInterrupt):
        write("second", force=True, fail=True)
    assert (output / "mark").read_text() == "first"
    write("second", force=True)
    assert (output / "mark").read_text() == "second"
    (output / "mark").rename(output / "other")
    with pytest.raises(OutputError, match="was not written by export"):
        write("third", force=True)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "other"]


def test_the_session_is_what_a_search_asks_for(folders: dict[str, Path]) -> None:
    """Types; and what it keeps is one for all hypotheses of a sentence."""
    exported: Network = open_exported_translator(folders[NAMES[1]])
    memory = exported.encode(padded(SENTENCES[:2]))
    state = exported.start(memory)
    assert [part.shape for part in state.past] == [(2, 2, 0, 8)] * 2
    rows = torch.tensor([0, 0, 0, 1, 1, 1])
    logits, state = exported.step(torch.full((6,), EOS), state.select(rows))
    assert logits.shape == (6, 320)
    assert {part.shape for part in state.past} == {(6, 2, 1, 8)}
    assert {len(part) for layer in state.memory for part in layer} == {2}
