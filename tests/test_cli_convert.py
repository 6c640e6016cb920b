"""``visionmlp convert``: the authors' files into ours and back, the same tensors; and what it refuses."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import visionmlp
from tests.randomise import randomise
from visionmlp.cli import main
from visionmlp.models.official import read_official
from visionmlp.models.registry import variant
from visionmlp.models.weights import OFFICIAL_FILES, family_prefix

TINY = [name for name in visionmlp.list_models(test=True) if family_prefix(name) in OFFICIAL_FILES]
DENSE = [name for name in TINY if "feature_norms" in vars(variant(name).config)]


@pytest.fixture
def model():
    return randomise(visionmlp.create_model("resmlp_test"), seed=3).eval()


@pytest.fixture
def fails(capsys):
    """Runs a conversion that must fail with one line; returns it."""

    def run(*words: object) -> str:
        capsys.readouterr()
        assert main(["convert", *map(str, words)]) == 2
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1
        assert captured.out == ""
        return captured.err

    return run


def convert(*words: object) -> None:
    assert main(["convert", *map(str, words)]) == 0


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("fields", [{}, {"num_classes": 3, "in_chans": 5}, {"num_classes": 0}])
def test_there_and_back_is_bit_equal(name, fields, tmp_path):
    model = randomise(visionmlp.create_model(name, **fields), seed=2)
    suffix = OFFICIAL_FILES[family_prefix(name)].suffix
    theirs, ours, again = tmp_path / f"theirs{suffix}", tmp_path / "ours.safetensors", tmp_path / f"again{suffix}"
    visionmlp.save_official(theirs, model)
    convert(theirs, "--model", name, "--output", ours)
    loaded, info = visionmlp.load_checkpoint(ours)
    assert (info.model, loaded.config) == (name, model.config)
    assert equal(loaded.state_dict(), model.state_dict())
    convert(ours, "--to", "official", "--output", again)
    assert equal(read_official(again), read_official(theirs))
    convert(ours, "--to", "official", "--output", tmp_path / "bare.safetensors")
    assert equal(load_file(tmp_path / "bare.safetensors"), read_official(theirs))
    assert {path.name for path in tmp_path.iterdir()} == {theirs.name, ours.name, again.name, "bare.safetensors"}


@pytest.mark.parametrize("name", DENSE)
def test_dense_backbones(name, tmp_path):
    model = randomise(visionmlp.create_model(name, feature_norms=True, num_classes=0), seed=2)
    theirs, ours, again = tmp_path / "theirs.pth", tmp_path / "ours.safetensors", tmp_path / "again.pth"
    visionmlp.save_official(theirs, model)
    convert(theirs, "--model", name, "--output", ours)
    assert visionmlp.load_checkpoint(ours)[0].config == model.config
    convert(ours, "--to", "official", "--output", again)
    assert equal(read_official(again), read_official(theirs))


def test_the_printed_lines(model, tmp_path, capsys):
    visionmlp.save_official(tmp_path / "theirs.pth", model)
    convert(tmp_path / "theirs.pth", "--model", "resmlp_test", "--output", tmp_path / "o.safetensors")
    captured = capsys.readouterr()
    assert captured.out == f"resmlp_test, 10,778 parameters\nwrote {tmp_path / 'o.safetensors'}\n"
    assert captured.err == ""


def test_the_moving_average(model, tmp_path):
    state = model.to_official(model.state_dict())
    torch.save({"model": state, "model_ema": {k: v * 2 for k, v in state.items()}}, tmp_path / "t.pth")
    convert(tmp_path / "t.pth", "--model", "resmlp_test", "--ema", "--output", tmp_path / "ema.safetensors")
    averaged = visionmlp.load_checkpoint(tmp_path / "ema.safetensors")[0].state_dict()
    assert all(torch.equal(averaged[name], value * 2) for name, value in model.state_dict().items())


def test_another_image_size_must_be_named(tmp_path, fails):
    model = randomise(visionmlp.create_model("resmlp_test", img_size=(64, 32)), seed=3)
    visionmlp.save_official(tmp_path / "t.pth", model)
    words = [tmp_path / "t.pth", "--model", "resmlp_test", "--output", tmp_path / "o.safetensors"]
    assert "give img_size" in fails(*words)
    assert "misshapen" in fails(*words, "--img-size", 64)
    assert "--img-size takes a side, or height and width, got 3 numbers" in fails(*words, "--img-size", 64, 32, 1)
    convert(*words, "--img-size", 64, 32)
    loaded, _ = visionmlp.load_checkpoint(tmp_path / "o.safetensors")
    assert loaded.config.img_size == (64, 32)
    assert equal(loaded.state_dict(), model.state_dict())


def test_the_precision_stays(model, tmp_path):
    torch.save(model.bfloat16().to_official(model.state_dict()), tmp_path / "t.pth")
    convert(tmp_path / "t.pth", "--model", "resmlp_test", "--output", tmp_path / "o.safetensors")
    assert equal(visionmlp.load_checkpoint(tmp_path / "o.safetensors")[0].state_dict(), model.state_dict())


def test_a_run_folder(model, tmp_path):
    visionmlp.save_checkpoint(tmp_path / "model.safetensors", model, class_names=list("abcdefghij"))
    convert(tmp_path, "--to", "official", "--model", "resmlp_test", "--output", tmp_path / "o.pth")
    assert equal(read_official(tmp_path / "o.pth"), model.to_official(model.state_dict()))


def test_options_that_their_files_do_not_hold_are_pointed_out(tmp_path, capsys):
    visionmlp.save_checkpoint(
        tmp_path / "m.safetensors", visionmlp.create_model("repmlpnet_test", window_order="authors", drop_rate=0.1)
    )
    convert(tmp_path / "m.safetensors", "--to", "official", "--output", tmp_path / "o.pth")
    assert capsys.readouterr().err == (
        "note: the authors' files hold weights only; give their code window_order='authors'\n"
    )


def test_what_is_refused(model, tmp_path, fails):
    ours, theirs, output = tmp_path / "m.safetensors", tmp_path / "t.pth", tmp_path / "o.safetensors"
    visionmlp.save_checkpoint(ours, model)
    visionmlp.save_official(theirs, model)
    visionmlp.save_checkpoint(tmp_path / "deploy.safetensors", visionmlp.reparameterize(model))
    visionmlp.save_checkpoint(tmp_path / "local.safetensors", visionmlp.add_locality(model, kernel_sizes=(3,)))
    visionmlp.save_checkpoint(tmp_path / "moe.safetensors", visionmlp.create_model("sparsemlp_moe_test"))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    official = ("--to", "official", "--output", tmp_path / "o.pth")
    assert "--model must be given" in fails(theirs, "--output", output)
    assert "did you mean resmlp_s" in fails(theirs, "--model", "resmpl_s12", "--output", output)
    assert "does not fit mlpmixer_test" in fails(theirs, "--model", "mlpmixer_test", "--output", output)
    assert "no moving average" in fails(theirs, "--model", "resmlp_test", "--ema", "--output", output)
    assert "must end in .safetensors" in fails(theirs, "--model", "resmlp_test", "--output", tmp_path / "o.pth")
    assert "is a checkpoint of ours already" in fails(ours, "--model", "resmlp_test", "--output", output)
    assert "no checkpoint file" in fails(tmp_path / "no.pth", "--model", "resmlp_test", "--output", output)
    assert "no checkpoint file" in fails("absent", *official)
    assert "is a model's name" in fails("resmlp_test", *official)
    assert "deploy form" in fails(tmp_path / "deploy.safetensors", *official)
    assert "other parts than resmlp_test" in fails(tmp_path / "local.safetensors", *official)
    assert "no authors' code" in fails(tmp_path / "moe.safetensors", *official)
    assert "holds resmlp_test, not mlpmixer_test" in fails(ours, "--model", "mlpmixer_test", *official)
    assert "does not say which model it holds" in fails(theirs, *official)
    assert "o.npz: weights of resmlp_test go into" in fails(ours, "--to", "official", "--output", tmp_path / "o.npz")
    assert "leave them out with --to official" in fails(ours, "--ema", *official)
    assert "is the source itself" in fails(ours, "--to", "official", "--output", ours, "--force")
    assert "exists" in fails(ours, "--to", "official", "--output", theirs)
    assert "cannot write" in fails(ours, "--to", "official", "--output", tmp_path / "absent" / "o.pth")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    convert(ours, "--to", "official", "--output", theirs, "--force")


def test_a_full_disk_leaves_the_old_file(model, tmp_path, fails, monkeypatch):
    visionmlp.save_checkpoint(tmp_path / "m.safetensors", model)
    output: Path = tmp_path / "o.pth"
    output.write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.save", full)
    assert "No space left" in fails(tmp_path / "m.safetensors", "--to", "official", "--output", output, "--force")
    assert output.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2


def test_mixed_precisions_are_refused(model, tmp_path, fails):
    """A checkpoint of ours is used in one precision, so a file of two would fail at its first image."""
    state = model.to_official(model.state_dict())
    state["head.bias"] = state["head.bias"].double()
    torch.save(state, tmp_path / "mixed.pth")
    line = fails(tmp_path / "mixed.pth", "--model", "resmlp_test", "--output", tmp_path / "ours.safetensors")
    assert "mixes precisions" in line
    assert "head.bias is float64" in line
    assert not (tmp_path / "ours.safetensors").exists()
