"""Our checkpoints: both forms, self-describing, written atomically."""

import json

import pytest
import torch
from safetensors import safe_open

import visionmlp
from tests.randomise import randomise
from visionmlp.errors import CheckpointError, CheckpointMismatch, InvalidConfig, UnknownModel
from visionmlp.layers.fusible import is_training_form


@pytest.mark.parametrize("name", ["repmlpnet_test", "resmlp_test", "mlpmixer_test"])
@pytest.mark.parametrize("form", ["training", "deploy"])
@torch.no_grad()
def test_round_trip(name, form, tmp_path):
    model = randomise(visionmlp.create_model(name, num_classes=4, img_size=(32, 64), kernel_sizes=(1, 3))).eval()
    if form == "deploy":
        model = visionmlp.reparameterize(model)
    path = tmp_path / "model.safetensors"
    visionmlp.save_checkpoint(path, model, class_names=["a", "b", "c", "d"])
    loaded, info = visionmlp.load_checkpoint(path)
    x = torch.randn(2, 3, 32, 64)
    assert torch.equal(loaded(x), model(x))
    assert info.form == form
    assert is_training_form(loaded) == (form == "training")
    assert info.class_names == ["a", "b", "c", "d"]
    assert info.preprocessing is not None
    assert info.preprocessing["input_size"] == [3, 32, 64]
    assert not loaded.training
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    (tmp_path / "other").touch()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode
    torch.testing.assert_close(visionmlp.reparameterize(loaded)(x), model(x), rtol=1e-4, atol=1e-5)


def test_loaded_tensors_are_aligned(tmp_path):
    """Products of tensors that are not, as they lie in a file's memory, round in another order."""
    visionmlp.save_checkpoint(tmp_path / "m.safetensors", visionmlp.create_model("asmlp_test"))
    loaded, _ = visionmlp.load_checkpoint(tmp_path / "m.safetensors")
    assert not [name for name, value in loaded.state_dict().items() if value.data_ptr() % 64]


def test_a_class_mlp_and_dtype_survive(tmp_path):
    model = randomise(visionmlp.create_model("resmlp_test", global_pool="class_mlp")).bfloat16().eval()
    deployed = visionmlp.reparameterize(model)
    visionmlp.save_checkpoint(tmp_path / "m.safetensors", deployed)
    loaded, _ = visionmlp.load_checkpoint(tmp_path / "m.safetensors")
    x = torch.randn(2, 3, 32, 32).bfloat16()
    assert next(loaded.parameters()).dtype == torch.bfloat16
    assert torch.equal(loaded(x), deployed(x))


def test_bad_files(tmp_path):
    good = tmp_path / "good.safetensors"
    visionmlp.save_checkpoint(good, visionmlp.create_model("resmlp_test"))
    (tmp_path / "short.safetensors").write_bytes(good.read_bytes()[:-1000])
    (tmp_path / "text.safetensors").write_text("not weights")
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "theirs.safetensors")
    for name, message in {
        "missing.safetensors": "no checkpoint file",
        "short.safetensors": "truncated",
        "text.safetensors": "truncated",
        "theirs.safetensors": "does not say which model",
    }.items():
        with pytest.raises(CheckpointError, match=message):
            visionmlp.load_checkpoint(tmp_path / name)


def test_damaged_metadata(tmp_path):
    from safetensors.torch import save_file

    for text in ("{}", "not json", "[]", '"text"', '{"model": "resmlp_test", "config": 3}'):
        save_file({"x": torch.zeros(1)}, tmp_path / "m.safetensors", metadata={"visionmlp": text})
        with pytest.raises(CheckpointError, match=r"damaged metadata|cannot build"):
            visionmlp.load_checkpoint(tmp_path / "m.safetensors")


def test_equal_models_are_equal_bytes(tmp_path):
    model = visionmlp.create_model("resmlp_test")
    for name in ("a", "b"):
        visionmlp.save_checkpoint(tmp_path / name, model)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_other_channels_than_rgb_have_their_own_statistics():
    _, info = visionmlp.load_model("repmlpnet_test", in_chans=1)
    assert info.preprocessing is not None
    assert info.preprocessing["mean"] == pytest.approx((0.449,))
    assert info.preprocessing["input_size"] == (1, 32, 32)


def test_a_models_name_wins_over_a_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resmlp_test").mkdir()
    assert visionmlp.load_model("resmlp_test", num_classes=3)[0].num_classes == 3
    with pytest.raises(CheckpointError, match=r"no model\.safetensors"):
        visionmlp.load_model("./resmlp_test/")


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    visionmlp.save_checkpoint(path, visionmlp.create_model("resmlp_test"))
    old = path.read_bytes()

    def full(_tensors, target, **_metadata):
        target.write_bytes(b"partial")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("visionmlp.models.checkpoint.save_file", full)
    with pytest.raises(CheckpointError, match="No space left"):
        visionmlp.save_checkpoint(path, visionmlp.create_model("resmlp_test"))
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(CheckpointError, match="cannot write"):
        visionmlp.save_checkpoint(tmp_path / "absent" / "m.safetensors", visionmlp.create_model("resmlp_test"))


def test_load_model_takes_names_folders_and_files(tmp_path):
    model = randomise(visionmlp.create_model("resmlp_test", num_classes=4)).eval()
    path = tmp_path / "model.safetensors"
    visionmlp.save_checkpoint(path, model, class_names=list("abcd"))
    x = torch.randn(1, 3, 32, 32)
    for reference in (path, tmp_path, str(path)):
        loaded, info = visionmlp.load_model(reference)
        torch.testing.assert_close(loaded(x), model(x))
        assert info.class_names == list("abcd")
    fresh, info = visionmlp.load_model("resmlp_test", num_classes=3)
    assert fresh.num_classes == 3
    assert info.source == "fresh weights"
    tuned, info = visionmlp.load_model("resmlp_test", checkpoint=path, num_classes=6)
    assert tuned(x).shape == (1, 6)
    assert info.class_names is None
    assert torch.equal(tuned.stem.proj.weight, model.stem.proj.weight)
    with pytest.raises(CheckpointMismatch, match="holds resmlp_test, not mlpmixer_test"):
        visionmlp.load_model("mlpmixer_test", checkpoint=path)
    assert visionmlp.load_model(path, num_classes=3)[0](x).shape == (1, 3)
    larger, info = visionmlp.load_model(path, img_size=(64, 32), drop_path_rate=0.1)
    assert larger(torch.randn(1, 3, 64, 32)).shape == (1, 4)
    assert larger.config.drop_path_rate == 0.1
    assert info.preprocessing is not None
    assert info.preprocessing["input_size"] == (3, 64, 32)
    with pytest.raises(InvalidConfig, match="checkpoint with a model name"):
        visionmlp.load_model(path, checkpoint=path)
    with pytest.raises(UnknownModel):
        visionmlp.load_model("resnet50")
    for missing in ("runs/none", "model.pth"):
        with pytest.raises(CheckpointError, match="no checkpoint file"):
            visionmlp.load_model(missing)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"no model\.safetensors"):
        visionmlp.load_model(tmp_path / "empty")
    torch.save({}, tmp_path / "theirs.pth")
    with pytest.raises(CheckpointError, match="give the model's name"):
        visionmlp.load_model(tmp_path / "theirs.pth")


@pytest.mark.parametrize(
    "damage", [{"model": 5}, {"class_names": "abc"}, {"class_names": ["a"]}, {"form": "x"}, {"config": {"depth": "a"}}]
)
def test_damaged_metadata_is_one_line(damage, tmp_path):
    from safetensors.torch import load_file, save_file

    path = tmp_path / "model.safetensors"
    visionmlp.save_checkpoint(path, visionmlp.create_model("resmlp_test"))
    with safe_open(path, framework="pt") as archive:
        metadata = json.loads(archive.metadata()["visionmlp"])
    save_file(load_file(path), path, metadata={"visionmlp": json.dumps({**metadata, **damage})})
    with pytest.raises(CheckpointError, match=r"damaged|cannot build") as info:
        visionmlp.load_checkpoint(path)
    assert "\n" not in str(info.value)


def test_features_only_is_no_model_to_load():
    with pytest.raises(InvalidConfig, match="create_model"):
        visionmlp.load_model("resmlp_test", features_only=True)
