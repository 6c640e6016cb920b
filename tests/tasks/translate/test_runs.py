"""Runs: two tasks that are learned, a kill that changes nothing, files, scores, messages."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import visionmlp
from tests.tasks.processes import run as process_run
from visionmlp.cli import main
from visionmlp.engine.run_folder import Table
from visionmlp.errors import CheckpointError
from visionmlp.models.translator import TRANSLATORS
from visionmlp.models.translator_files import load_translator, save_translator
from visionmlp.tasks.translate import names
from visionmlp.tasks.translate.config import TranslateConfig
from visionmlp.tasks.translate.data import open_corpus
from visionmlp.tasks.translate.run import train

pytestmark = pytest.mark.xdist_group("translate")

SYMBOLS = 277
"""Special ones, bytes, six letters, a blank, and the joints of both."""


def write_text(folder: Path, *, train: int, seed: int = 0) -> Path:
    """Letters, the same letters (``.same``), and backwards (``.back``)."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for split, count in (("train", train), ("val", 60), ("test", 20)):
        words = [random.choice([*"abcdefgh"], random.integers(1, 7)).tolist() for _ in range(count)]
        for suffix, step in (("in", 1), ("same", 1), ("back", -1)):
            (folder / f"{split}.{suffix}").write_text("".join(" ".join(letters[::step]) + "\n" for letters in words))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"), train=4000)


def fields(data: Path, output: Path, **options: Any) -> dict[str, Any]:
    return {
        "task": "translate",
        "model": "resmlp_seq2seq_test",
        "model_args": {"dropout": 0.0, "dim": 32, "hidden_dim": 64, "num_heads": 4, "max_length": 16},
        "data": str(data),
        "source": "in",
        "target": "back",
        "vocab_size": SYMBOLS,
        "output": str(output),
        "batch_size": 1024,
        "lr": 1e-2,
        "warmup_steps": 50,
        "schedule": "cosine",
        "label_smoothing": 0.0,
        "threads": 1,
        "shown": 2,
        "accelerator": "cpu",
        **options,
    }


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that learns to say letters backwards."""
    folder = tmp_path_factory.mktemp("run") / "run"
    train(TranslateConfig.from_plain(fields(data, folder, epochs=30, eval_every=30)))
    return folder


def share_of_right_words(run: Path, data: Path, target: str) -> float:
    lines = (run / "translations.txt").read_text().splitlines()
    wanted = open_corpus(data, "val", "in", target).target
    assert len(lines) == len(wanted)
    pairs = [(one.split(), other.split()) for one, other in zip(lines, wanted, strict=True)]
    right = sum(a == b for one, other in pairs for a, b in zip(one, other, strict=False))
    return right / sum(max(len(one), len(other)) for one, other in pairs)


def test_reversing_is_learned(trained: Path, data: Path) -> None:
    assert share_of_right_words(trained, data, "back") > 0.99
    assert Table(trained / "metrics.csv").rows()[-1]["bleu"] > 97


def test_copying_is_learned(data: Path, tmp_path: Path) -> None:
    options = fields(data, tmp_path / "run", target="same", epochs=30, eval_every=30)
    process_run(options)
    assert share_of_right_words(tmp_path / "run", data, "same") > 0.99


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_bfloat16(data: Path, tmp_path: Path, precision: str) -> None:
    """Learns, resumes, and is scored on the weights that its file has, in float32 sums."""
    options = {"precision": precision, "epochs": 30, "eval_every": 30, "max_pairs": 2000}
    process_run(fields(data, tmp_path / "whole", **options))
    process_run(fields(data, tmp_path / "broken", **options, save_every=40), stop_after=50)
    process_run(fields(data, tmp_path / "broken", **options, save_every=40), resume=True)
    weights = load_file(tmp_path / "whole/model.safetensors")
    broken = load_file(tmp_path / "broken/model.safetensors")
    assert all(torch.equal(value, broken[name]) for name, value in weights.items())
    own = torch.bfloat16 if precision == "bf16-true" else torch.float32
    assert weights["embedding.weight"].dtype == own
    (row,) = Table(tmp_path / "whole/metrics.csv").rows()
    assert row["loss"] < 0.3  # 5.6 before the first step
    short = {"max_steps": 2, "max_pairs": 50, "eval_steps": 2, "warmup_steps": 0}
    for name in (precision, "32-true"):
        process_run(fields(data, tmp_path / name, **short, precision=name))
    rounded, exact = (load_file(tmp_path / name / "model.safetensors") for name in (precision, "32-true"))
    assert any(not torch.equal(value.float(), exact[name]) for name, value in rounded.items())


def test_what_a_run_leaves(trained: Path, data: Path) -> None:
    assert {path.name for path in trained.iterdir()} == {
        *("checkpoints", "config.yaml", "curves.png", "data.json", "environment.json", "metrics.csv"),
        *("model.safetensors", "attention.png", "positions.png", "report.html", "samples", "tokenizer.model"),
        *("train.csv", "translations.txt"),
    }
    assert list(Table(trained / "metrics.csv").rows()[0])[:4] == ["step", "epoch", "bleu", "chrf"]
    assert "tokens_per_second" in Table(trained / "train.csv").rows()[0]
    (samples,) = (trained / "samples").iterdir()
    source = open_corpus(data, "val", "in", "back").source
    assert f"16\nsource      {source[15]}\nreference   {' '.join(source[15].split()[::-1])}\n" in samples.read_text()
    page = (trained / "report.html").read_text()
    assert "BLEU" in page
    assert source[15] in page
    network, info = visionmlp.load_translator(trained)
    assert info.languages == ("in", "back")
    assert info.tokenizer == (trained / "tokenizer.model").read_bytes()
    assert network.name == "resmlp_seq2seq_test"


def test_eval(trained: Path, data: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(["eval", str(trained), "--json", "--beam", "1"]) == 0
    record = json.loads(capsys.readouterr().out)
    row = Table(trained / "metrics.csv").rows()[-1]
    for name in ("bleu", "chrf", "loss", "perplexity"):
        assert record[name] == pytest.approx(row[name], rel=1e-5)
    assert record["sentences"] == 60
    words = [
        "eval",
        str(trained),
        "--split",
        "test",
        "--output",
        str(tmp_path / "out.txt"),
        "--tokenised",
        "--beam",
        "3",
    ]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "tok:13a" in out
    assert "tok:none" in out
    wanted = open_corpus(data, "test", "in", "back").target
    lines = (tmp_path / "out.txt").read_text().splitlines()
    assert sum(one == other for one, other in zip(lines, wanted, strict=True)) >= 18
    for line, message in (
        (words, "exists"),
        (["eval", str(trained), "--split", "none"], "has no none.in with none.back"),
        (["eval", str(trained), "--split-hyphens"], "--split-hyphens is about the score of --tokenised"),
        (["eval", str(trained), "--beam", "0"], "beam must be at least 1"),
        (["predict", str(trained), "x.png"], "give its lines to visionmlp translate"),
        (["eval", str(tmp_path / "none"), "--task", "translate"], "no translator"),
    ):
        assert main(line) == 2
        assert message in capsys.readouterr().err


def test_a_killed_run_ends_bit_equal(data: Path, tmp_path: Path) -> None:
    options = {"max_steps": 6, "eval_steps": 3, "save_every": 1, "max_pairs": 200, "batch_size": 256, "warmup_steps": 2}
    dropout = {"dropout": 0.2, "max_length": 16}
    options |= {"model_args": dropout, "ema_decay": 0.9, "label_smoothing": 0.1, "accumulate": 2}
    process_run(fields(data, tmp_path / "one", **options))
    process_run(fields(data, tmp_path / "two", **options), stop_after=4)
    process_run(fields(data, tmp_path / "two", **options), resume=True)
    states = [load_file(max((tmp_path / name / "checkpoints").glob("*.safetensors"))) for name in ("one", "two")]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    for name in ("metrics.csv", "translations.txt", "model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_run_killed_before_its_first_checkpoint_leaves_no_tokenizer_behind(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").touch()
    (folder / "tokenizer.model").write_bytes(b"of other sentences")
    train(TranslateConfig.from_plain(fields(data, folder, max_steps=1, max_pairs=200, warmup_steps=0)))
    written = (folder / "tokenizer.model").read_bytes()
    assert load_translator(folder)[1].tokenizer == written != b"of other sentences"


def test_a_run_starts_from_another(trained: Path, data: Path, tmp_path: Path) -> None:
    """With its tokenizer and weights, and more positions."""
    options = fields(data, tmp_path / "run", model=str(trained), model_args={"max_length": 20}, max_steps=1)
    process_run({**options, "lr": 1e-9, "warmup_lr": 0.0, "warmup_steps": 0})
    network, info = load_translator(tmp_path / "run")
    assert network.config.max_length == 20
    assert info.tokenizer == (trained / "tokenizer.model").read_bytes()
    assert share_of_right_words(tmp_path / "run", data, "back") > 0.99


def test_messages(data: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "long").mkdir()
    for split in ("train", "val"):
        for side in ("in", "back"):
            lines = ["a b c", "a " * 30] if split == "val" else ["a b c d e f g h", "b", ""] * 50
            (tmp_path / "long" / f"{split}.{side}").write_text("\n".join(lines) + "\n")
    base = ["train", "resmlp_seq2seq_test", "--task", "translate", "--source", "in", "--target", "back"]
    base += ["--output", str(tmp_path / "run"), "--vocab-size", str(SYMBOLS), "--data"]
    for words, message in (
        ([*base, str(tmp_path / "none")], "is no folder"),
        ([*base, str(data), "--target", "fr"], "has no train.in with train.fr"),
        ([*base, str(data), "--vocab-size", "9999"], "cannot make a vocabulary of 9999"),
        ([*base, str(data), "--model-args.vocab_size", "9"], "vocab_size is the tokenizer's"),
        ([*base, str(data), "--tokenizer", str(tmp_path / "none.model")], "cannot read the tokenizer"),
        ([*base, str(data), "--schedule", "inverse_sqrt", "--warmup-steps", "0"], "falls from its warm-up on"),
        ([*base, str(tmp_path / "long"), "--vocab-size", "270"], "line 2, has 62 tokens"),
        ([*base, str(data), "--max-tokens", "0"], "max_tokens must be at least 1"),
        ([*base, str(data), "--source", "back"], "source and target are both back"),
        (["train", "resmlp_seq2seq_7", *base[2:], str(data)], "did you mean resmlp_seq2seq_6"),
    ):
        assert main(words) == 2
        err = capsys.readouterr().err
        assert message in err
        assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_of_several_runs(data: Path, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "own.model"
    words = ["train-tokenizer", str(data), "--source", "in", "--target", "back", "--output", str(path)]
    assert main([*words, "--vocab-size", "270"]) == 0
    assert "270 symbols from 4000 pairs" in capsys.readouterr().out
    options = fields(data, tmp_path / "run", tokenizer=str(path), max_steps=1, max_pairs=50, warmup_steps=0)
    process_run(options)
    network, info = load_translator(tmp_path / "run")
    assert info.tokenizer == path.read_bytes()
    assert network.config.vocab_size == 270
    for line, message in (
        (words, "exists; give another --output, or --force"),
        ([*words[:-1], str(tmp_path / "own.txt")], "must end in .model"),
        ([*words, "--force", "--vocab-size", "9999"], "cannot make a vocabulary of 9999"),
        ([*words, "--max-pairs", "0"], "--max-pairs must be at least 1"),
    ):
        assert main(line) == 2
        assert message in capsys.readouterr().err
    assert path.read_bytes() == info.tokenizer


def test_the_mean_of_checkpoints(data: Path, tmp_path: Path, capsys: Any) -> None:
    """Sorted by step, not by name; summed in float64."""
    run, path = tmp_path / "run", tmp_path / "mean.safetensors"
    options = {"max_steps": 11, "save_every": 1, "keep_checkpoints": 3, "max_pairs": 50, "eval_steps": 11}
    process_run(fields(data, run, **options, warmup_steps=0))
    words = ["average", str(run), "--output", str(path)]
    assert main(words) == 0
    assert "the mean of steps 9, 10, 11" in capsys.readouterr().out
    states = [load_file(run / f"checkpoints/step-{step:06d}.safetensors") for step in (9, 10, 11)]
    network, info = load_translator(path)
    for name, value in network.state_dict().items():
        expected = sum(state[name].double() for state in states) / 3
        torch.testing.assert_close(value, expected.float(), rtol=0, atol=0)  # type: ignore[union-attr]
        assert not torch.equal(value, states[-1][name]) or not value.any()
    assert info.languages == ("in", "back")
    for line, message in (
        (words, "exists; give another"),
        ([*words, "--force", "--checkpoints", "4"], "has 3 whole checkpoints, weights with their .state, not 4"),
        ([*words, "--force", "--checkpoints", "0"], "checkpoints must be at least 1"),
        (["average", str(tmp_path), "--output", str(tmp_path / "n.safetensors")], "is no run folder"),
    ):
        assert main(line) == 2
        assert message in capsys.readouterr().err


def test_checkpoints_that_have_no_mean(data: Path, tmp_path: Path, capsys: Any) -> None:
    run = tmp_path / "run"
    process_run(fields(data, run, max_steps=2, save_every=1, max_pairs=50, eval_steps=2, warmup_steps=0))
    capsys.readouterr()
    path = run / "checkpoints/step-000001.safetensors"
    state = load_file(path)
    name, misfit = "embedding.weight", f"step 1 of {run} does not fit resmlp_seq2seq_test: 1 missing (embedding.weight)"
    for damaged, message in (
        ({key: value for key, value in state.items() if key != name}, misfit),
        ({**state, name: state[name][:5]}, "step 1"),
        ({**state, name: state[name] * torch.nan}, f"{name} of step 1 of {run} is not finite"),
    ):
        save_file(damaged, path)
        assert main(["average", str(run), "--output", str(tmp_path / "mean.safetensors")]) == 2
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1
    assert not (tmp_path / "mean.safetensors").exists()


def test_a_name_means_a_fresh_network(trained: Path, data: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Whatever lies beside it."""
    shutil.copytree(trained, tmp_path / "resmlp_seq2seq_test")
    monkeypatch.chdir(tmp_path)
    process_run(fields(data, tmp_path / "run", vocab_size=270, max_steps=1, max_pairs=50, warmup_steps=0))
    assert load_translator(tmp_path / "run")[0].config.vocab_size == 270


def test_diverged_training_is_one_line(data: Path, tmp_path: Path, capsys: Any) -> None:
    options = fields(data, tmp_path / "run", max_steps=2, max_pairs=50, warmup_steps=0, lr=1e30)
    words = [
        word
        for name, value in options.items()
        if name not in ("model", "model_args")
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    words += ["--model-args", json.dumps(options["model_args"])]
    assert main(["train", options["model"], *words]) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert "error: " in err


def test_a_tokenizer_of_another_network(trained: Path, data: Path, tmp_path: Path, capsys: Any) -> None:
    network, _ = load_translator(trained)
    other = tmp_path / "t.model"
    words = ["train-tokenizer", str(data), "--source", "in", "--target", "back", "--output", str(other)]
    assert main([*words, "--vocab-size", "270"]) == 0
    save_translator(tmp_path / "m.safetensors", network, tokenizer=other.read_bytes(), languages=("in", "back"))
    capsys.readouterr()
    assert main(["eval", str(tmp_path / "m.safetensors"), "--data", str(data), "--split", "val"]) == 2
    assert "has 270 symbols, but the network 277" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="tokenizer is empty"):
        save_translator(tmp_path / "m.safetensors", network, tokenizer=b"")


def test_files(trained: Path, tmp_path: Path) -> None:
    network, info = load_translator(trained)
    path = tmp_path / "m.safetensors"
    save_translator(path, network, tokenizer=info.tokenizer, languages=info.languages)
    again, _ = load_translator(path)
    source = torch.tensor([[5, 6, 2]])
    with torch.no_grad():
        assert torch.equal(network(source, source), again(source, source))
    content = path.read_bytes()
    other = info.tokenizer[:-1] + bytes([info.tokenizer[-1] ^ 1])
    for name, damaged, message in (
        ("torn", content[: len(content) // 2], "truncated"),
        ("other", content.replace(info.tokenizer, other), "another tokenizer than it was trained with"),
        ("none", None, "no checkpoint file"),
        (
            "model",
            content.replace(b'\\"resmlp_seq2seq_test\\"', b'\\"resmlp_seq2seq_tast\\"'),
            "cannot build: no translator",
        ),
        (
            "task",
            content.replace(b'\\"translate\\"', b'\\"transkate\\"'),
            "holds a network for transkate, no translator",
        ),
    ):
        assert damaged != content
        if damaged is not None:
            (tmp_path / name).write_bytes(damaged)
        with pytest.raises(CheckpointError, match=message):
            load_translator(tmp_path / name)
    visionmlp.save_checkpoint(tmp_path / "c.safetensors", visionmlp.create_model("resmlp_test"))
    with pytest.raises(CheckpointError, match="a network for classify, no translator"):
        load_translator(tmp_path / "c.safetensors")


def test_names_without_torch_are_those_with_it() -> None:
    assert names.TRANSLATORS == TRANSLATORS
