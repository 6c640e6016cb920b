"""What `save_checkpoint` writes can be loaded, or it says why in one line and writes nothing."""

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import visionmlp
from tests.randomise import randomise
from visionmlp.cli import main
from visionmlp.errors import CheckpointError, CheckpointMismatch, InvalidConfig, Note, VisionMLPError
from visionmlp.models.checkpoint import read_info

TINY = visionmlp.list_models(test=True)


def image(channels: int = 3) -> torch.Tensor:
    return torch.randn(2, channels, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def trained():
    return randomise(visionmlp.create_model("resmlp_test"), seed=3).eval()


def comes_back(model: nn.Module, path: Path) -> nn.Module:
    visionmlp.save_checkpoint(path, model)
    loaded, _ = visionmlp.load_checkpoint(path)
    return loaded


@pytest.mark.parametrize("form", ["training", "deploy"])
@torch.inference_mode()
def test_compiled_and_wrapped_models(form, trained, tmp_path):
    model = trained if form == "training" else visionmlp.reparameterize(trained)
    expected = model(image())
    parts = copy.deepcopy(model)
    parts.stages[0] = torch.compile(parts.stages[0])
    in_place = copy.deepcopy(model)
    in_place.compile()
    for number, wrapped in enumerate(
        (
            torch.compile(model),
            parts,
            in_place,
            nn.DataParallel(model),
            torch.optim.swa_utils.AveragedModel(model),
            torch.compile(nn.DataParallel(torch.compile(model))),
        )
    ):
        loaded = comes_back(wrapped, tmp_path / f"{number}.safetensors")
        assert torch.equal(loaded(image()), expected)
        assert loaded.form == form
        if form == "training":
            target = torch.compile(visionmlp.create_model("resmlp_test"))
            assert visionmlp.load_official(target, load_file(tmp_path / f"{number}.safetensors")) is target
            assert torch.equal(target._orig_mod.eval()(image()), expected)


@torch.inference_mode()
def test_tied_parameters(trained, tmp_path):
    trained.stages[0].blocks[1].channel = trained.stages[0].blocks[0].channel
    trained.stages[0].blocks[2].norm1.beta = trained.stages[0].blocks[2].norm1.alpha
    loaded = comes_back(trained, tmp_path / "m.safetensors")
    assert torch.equal(loaded(image()), trained(image()))
    deployed = visionmlp.reparameterize(trained)
    assert torch.equal(comes_back(deployed, tmp_path / "d.safetensors")(image()), deployed(image()))


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("form", ["training", "deploy"])
@torch.inference_mode()
def test_timm_saves_every_model(name, form, tmp_path):
    model = randomise(visionmlp.create_model(name)).eval()
    model = model if form == "training" else visionmlp.reparameterize(model)
    # timm before 1.0.31 saves no arguments by itself
    timm.models.save_for_hf(model, tmp_path / "saved", model_args=model.factory_args(), safe_serialization="both")
    again = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True).eval()
    assert torch.equal(again(image()), model(image()))
    assert again.form == form


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.prune_intermediate_layers([0]),
        lambda model: setattr(model.head, "fc", nn.Linear(16, 3)),
        lambda model: setattr(model.stages[0].blocks[0].channel, "extra", nn.Linear(2, 2)),
        lambda model: model.register_buffer("seen", torch.zeros(1)),
    ],
)
@pytest.mark.parametrize("form", ["training", "deploy"])
def test_models_that_nothing_could_load_are_refused(change, form, trained, tmp_path):
    model = trained if form == "training" else visionmlp.reparameterize(trained)
    change(model)
    with pytest.raises(CheckpointError, match="nothing was written") as error:
        visionmlp.save_checkpoint(tmp_path / "m.safetensors", model)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_what_is_no_model(tmp_path):
    for other in (nn.Linear(2, 2), nn.Sequential(visionmlp.create_model("resmlp_test")), torch.compile(nn.ReLU())):
        with pytest.raises(CheckpointError, match="neither a model of visionmlp nor a wrapper"):
            visionmlp.save_checkpoint(tmp_path / "m.safetensors", other)
    assert not list(tmp_path.iterdir())


# other numbers of input channels


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_other_channels_are_adapted_as_timm_does(name, channels, tmp_path):
    model = randomise(visionmlp.create_model(name), seed=3)
    visionmlp.save_checkpoint(tmp_path / "ours.safetensors", model)
    torch.save(model.state_dict(), tmp_path / "theirs.pth")
    expected = timm.models.adapt_input_conv(channels, model.stem.proj.weight.detach())
    for reference, options in (
        (tmp_path / "ours.safetensors", {}),
        (name, {"checkpoint": tmp_path / "ours.safetensors"}),
        (name, {"checkpoint": tmp_path / "theirs.pth"}),
    ):
        with pytest.warns(Note, match=rf"takes 3 input channels; its first kernels were adapted to {channels}"):
            adapted, info = visionmlp.load_model(reference, in_chans=channels, **options)
        torch.testing.assert_close(adapted.stem.proj.weight, expected)
        own, state = model.state_dict(), adapted.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in own.items() if key != "stem.proj.weight")
        assert info.preprocessing is not None
        assert info.preprocessing["input_size"][0] == channels
        assert len(info.preprocessing["mean"]) == len(info.preprocessing["std"]) == channels
        visionmlp.save_checkpoint(tmp_path / "again.safetensors", adapted, preprocessing=info.preprocessing)
        assert visionmlp.load_checkpoint(tmp_path / "again.safetensors")[0].in_chans == channels


@torch.no_grad()
def test_a_grey_image_keeps_its_answer(trained):
    state, grey = trained.state_dict(), image(1)
    expected = trained(grey.expand(-1, 3, -1, -1))
    for channels in (1, 6):
        with pytest.warns(Note):
            model = visionmlp.load_official(visionmlp.create_model("resmlp_test", in_chans=channels), state).eval()
        torch.testing.assert_close(model(grey.expand(-1, channels, -1, -1)), expected, rtol=1e-4, atol=1e-5)
    one = {**state, "stem.proj.weight": state["stem.proj.weight"].sum(1, keepdim=True)}
    with pytest.warns(Note, match="takes 1 input channels"):
        model = visionmlp.load_official(visionmlp.create_model("resmlp_test"), one).eval()
    torch.testing.assert_close(model(grey.expand(-1, 3, -1, -1)), expected, rtol=1e-4, atol=1e-5)


# deploy forms as a start of training


@pytest.mark.parametrize("name", TINY)
def test_deploy_forms_are_refused_by_name(name, tmp_path):
    deployed = visionmlp.reparameterize(randomise(visionmlp.create_model(name)).eval())
    model = randomise(visionmlp.create_model(name), seed=7)
    before = copy.deepcopy(model.state_dict())
    visionmlp.save_checkpoint(tmp_path / "ours.safetensors", deployed)
    save_file(deployed.state_dict(), tmp_path / "raw.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in deployed.state_dict().items()}}, tmp_path / "raw.pth")

    def pretrained(file: str, **options: Any) -> None:
        overlay = {"file": str(tmp_path / file)}
        timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options)

    for attempt in (
        lambda: visionmlp.load_official(model, deployed.state_dict()),
        lambda: visionmlp.load_official(model, tmp_path / "ours.safetensors"),
        lambda: visionmlp.load_official(model, tmp_path / "raw.pth"),
        lambda: visionmlp.load_model(name, checkpoint=tmp_path / "raw.safetensors"),
        lambda: pretrained("ours.safetensors"),
        lambda: pretrained("raw.pth"),
        lambda: pretrained("raw.pth", num_classes=3),
        lambda: model.load_state_dict(deployed.state_dict()),
        lambda: model.load_state_dict(deployed.state_dict(), strict=False),
        lambda: nn.Sequential(model).load_state_dict(nn.Sequential(deployed).state_dict(), strict=False),
    ):
        with pytest.raises(CheckpointMismatch, match=rf"is a deploy form of {name}.*training form") as error:
            attempt()
        assert "\n" not in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


# fields that are none


def test_unknown_fields_of_load_model(trained, tmp_path):
    visionmlp.save_checkpoint(tmp_path / "m.safetensors", trained)
    for reference, options in (
        ("resmlp_test", {}),
        (tmp_path / "m.safetensors", {}),
        ("resmlp_test", {"checkpoint": tmp_path / "m.safetensors"}),
    ):
        with pytest.raises(InvalidConfig, match=r"has no option 'deph'; did you mean depth\?"):
            visionmlp.load_model(reference, deph=3, **options)


# damaged metadata

VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 3, 2.5, math.nan, math.inf, -math.inf, 10**9, 10**18, 10**30, "", "text"),
    *([], [0], [None], ["a"], [1, 2], [[1]], [10**9] * 3, [math.nan] * 3, {}, {"a": 1}, {"pretrained": True}),
]


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("good") / "model.safetensors"
    visionmlp.save_checkpoint(path, visionmlp.create_model("hiremlp_test", num_classes=2), class_names=["a", "b"])
    return path


def metadata_of(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as archive:
        return json.loads(archive.metadata()["visionmlp"])


def answer(read: Callable[[Path], object], metadata: str, tensors: dict[str, torch.Tensor], path: Path) -> str | None:
    """The message about a file with this metadata, or none if it loads; anything else fails the test."""
    save_file(tensors, path, metadata={"visionmlp": metadata})
    try:
        read(path)
    except CheckpointError as error:
        return str(error)
    return None


@pytest.mark.parametrize("key", ["model", "config", "form", "class_names", "preprocessing"])
def test_every_value_for_every_key(key, file, tmp_path):
    metadata, tensors, path = metadata_of(file), load_file(file), tmp_path / "damaged.safetensors"
    values = [{**metadata, key: value} for value in VALUES if value != metadata[key]]
    for damaged in (*values, {name: value for name, value in metadata.items() if name != key}):
        for read in (visionmlp.load_checkpoint, visionmlp.load_model, read_info):
            message = answer(read, json.dumps(damaged), tensors, path)
            good = {"class_names": [None], "preprocessing": [None, {}, {"a": 1}, {"pretrained": True}]}
            assert (message is None) == (damaged.get(key) in good.get(key, [])), damaged.get(key)
            assert message is None or ("\n" not in message and str(path) in message)


@pytest.mark.parametrize("name", TINY)
def test_every_value_for_every_field(name, tmp_path):
    model, path = randomise(visionmlp.create_model(name)).eval(), tmp_path / "m.safetensors"
    visionmlp.save_checkpoint(path, model)
    metadata, tensors = metadata_of(path), load_file(path)
    for start, field in enumerate((*metadata["config"], "unknown")):
        for value in VALUES[start % 8 :: 8]:  # all of them, over the fields
            damaged = {**metadata, "config": {**metadata["config"], field: value}}
            message = answer(visionmlp.load_checkpoint, json.dumps(damaged), tensors, path)
            assert message is None or ("\n" not in message and str(path) in message), (field, value)


@pytest.mark.parametrize("key", ["input_size", "mean", "std", "interpolation", "crop_pct", "exif_orientation"])
def test_every_value_for_the_preprocessing(key, file, tmp_path, capsys):
    metadata, tensors, path = metadata_of(file), load_file(file), tmp_path / "m.safetensors"
    Image.new("RGB", (40, 40)).save(tmp_path / "x.png")
    for value in VALUES:
        damaged = {**metadata, "preprocessing": {**metadata["preprocessing"], key: value}}
        message = answer(visionmlp.load_checkpoint, json.dumps(damaged), tensors, path)
        assert message is None or "\n" not in message
        if message is None:  # what loads can be used, or says why
            capsys.readouterr()
            rc = main(["predict", str(path), str(tmp_path / "x.png")])
            assert rc == 0 or capsys.readouterr().err.count("\n") == 1, value


@pytest.mark.parametrize(
    "text", ["", "{", "null", "3", "[" * 5000, '"' + "x" * 10_000, "{}", "9" * 5000, '{"model": ' + "[" * 100_000]
)
def test_metadata_that_is_no_object(text, file, tmp_path):
    save_file(load_file(file), tmp_path / "damaged.safetensors", metadata={"visionmlp": text})
    for read in (visionmlp.load_checkpoint, visionmlp.load_model, read_info):
        with pytest.raises(CheckpointError, match="damaged metadata") as error:
            read(tmp_path / "damaged.safetensors")
        assert "\n" not in str(error.value)


def test_metadata_fetches_and_opens_nothing(file, tmp_path, monkeypatch):
    """Fields that are timm's, not the model's, are none of a checkpoint's business."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something was fetched")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr("torch.load", refuse)
    metadata, tensors = metadata_of(file), load_file(file)
    for field, value in (
        ("pretrained", True),
        ("checkpoint_path", "x.pth"),
        ("pretrained_cfg_overlay", {"url": "http://127.0.0.1:9/x.pth"}),
        ("pretrained_cfg", {"file": "x.pth"}),
        ("features_only", True),
        ("form", "deploy"),
    ):
        damaged = json.dumps({**metadata, "config": {**metadata["config"], field: value}})
        save_file(tensors, tmp_path / "m.safetensors", metadata={"visionmlp": damaged})
        with pytest.raises(VisionMLPError, match="damaged metadata: its config"):
            visionmlp.load_checkpoint(tmp_path / "m.safetensors")
