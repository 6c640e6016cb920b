"""Checkpoints of dense networks come back bit by bit, and what is wrong with a file is said in one line."""

import copy
import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import visionmlp
from tests.models.levels import image
from tests.models.test_segmenter import small
from tests.randomise import randomise
from visionmlp.cli import main
from visionmlp.errors import CheckpointError, CheckpointMismatch
from visionmlp.models.checkpoint import read_info
from visionmlp.models.dense import Tiled

CLASSES = ["sky", "road", "car", "tree", "other"]


def trained(name="cyclemlp_test", head="semantic_fpn", **options):
    net = randomise(small(name, head, **options)).eval()
    for module in net.modules():
        if isinstance(module, Tiled):  # how windows are averaged is no value that is learned
            for weight in module.buffers(recurse=False):
                weight.fill_(1.0)
    return net


@pytest.fixture(scope="module")
def network():
    return trained(tile_overlap=0)


@pytest.fixture(scope="module")
def written(network, tmp_path_factory):
    """The tensors and the metadata of a checkpoint."""
    path = tmp_path_factory.mktemp("dense") / "m.safetensors"
    visionmlp.save_dense(path, network, class_names=CLASSES, preprocessing={"mean": [0.5] * 3, "short_side": 512})
    with safe_open(path, framework="pt") as archive:
        tensors = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118 (no mapping)
        return tensors, json.loads(archive.metadata()["visionmlp"])


def refused(path, *needles) -> None:
    with pytest.raises(CheckpointError) as error:
        visionmlp.load_dense(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    for needle in needles:
        assert needle in str(error.value)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cyclemlp_test", {"tile_overlap": 16, "out_channels": 6}),
        ("repmlpnet_test", {}),
        ("resmlp_test", {"head": "upernet", "out_indices": [0], "tile_overlap": 0}),
    ],
)
@pytest.mark.parametrize("form", ["training", "deploy"])
@torch.inference_mode()
def test_they_come_back(name, options, form, tmp_path):
    net = trained(name, **options)
    net = net if form == "training" else visionmlp.reparameterize(net)
    path = tmp_path / "model.safetensors"
    visionmlp.save_dense(path, nn.DataParallel(net), class_names=CLASSES, preprocessing={"std": [1.0, 2.0, 3.0]})
    generator = torch.get_rng_state()
    again, info = visionmlp.load_dense(path)
    assert torch.equal(generator, torch.get_rng_state())
    assert again.state_dict().keys() == net.state_dict().keys()
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in net.state_dict().items())
    x = image(2, (45, 70) if "tile_overlap" in options else (32, 32), torch.float32)
    for a, b in zip(again(x, auxiliary=True), net(x, auxiliary=True), strict=True):
        assert a is b is None or torch.equal(a, b)
    assert (info.task, info.model, info.form, info.class_names) == ("segment", name, form, CLASSES)
    assert info.options == again.options == net.options
    assert info.preprocessing == {"std": [1.0, 2.0, 3.0]}
    assert info.config == json.loads(json.dumps(again.backbone.config.__dict__))
    assert info.source == str(path)
    assert not again.training


def test_dtype_and_shared_parameters_come_back_from_a_run_folder(network, tmp_path):
    half = copy.deepcopy(network).bfloat16()
    half.decode_head.scale_heads[1][0] = half.decode_head.scale_heads[0][0]
    visionmlp.save_dense(tmp_path / "model.safetensors", half)
    again, info = visionmlp.load_dense(tmp_path)
    assert info.class_names is None
    with torch.inference_mode():
        x = image(1, (32, 48), torch.bfloat16)
        assert torch.equal(again(x), half(x))


def test_what_nothing_could_load_is_not_written(network, tmp_path):
    path = tmp_path / "m.safetensors"
    changed = copy.deepcopy(network)
    changed.decode_head.conv_seg = nn.Conv2d(8, 7, 1)
    with pytest.raises(CheckpointMismatch, match="the network as it is now does not fit"):
        visionmlp.save_dense(path, changed)
    for arguments, needle in (
        ({"class_names": ["one"]}, "class_names"),
        ({"preprocessing": {"mean": torch.zeros(3)}}, "JSON"),
        ({"preprocessing": {"std": [0.0] * 3}}, "std"),
    ):
        with pytest.raises(CheckpointError, match=needle) as error:
            visionmlp.save_dense(path, network, **arguments)
        assert "\n" not in str(error.value)
    for other in (nn.Linear(2, 2), visionmlp.create_model("cyclemlp_test")):
        with pytest.raises(CheckpointError, match="neither a DenseNetwork of visionmlp nor a wrapper"):
            visionmlp.save_dense(path, other)
    with pytest.raises(CheckpointError, match="cannot write"):
        visionmlp.save_dense(tmp_path / "none" / "m.safetensors", network)
    assert not list(tmp_path.iterdir())


# files that are damaged, hostile, or something else


HUGE = 1 << 40


@pytest.mark.parametrize(
    ("place", "value", "needle"),
    [
        (("task",), "translate", "task"),
        (("task",), ["segment"], "task"),
        (("model",), 3, "model"),
        (("model",), "cyclemlp_b9", "no model 'cyclemlp_b9'"),
        (("form",), "fused", "form"),
        (("config",), [], "config"),
        (("config", "color"), 1, "config"),
        (("config", "blocks"), [HUGE, 1], "blocks"),
        (("config", "blocks"), [1 << 20, 1], "blocks"),
        (("config", "blocks"), "many", "blocks"),
        (("config", "dims"), [HUGE, 24], "dims"),
        (("config", "dims"), [1 << 12, 24], "fit"),
        (("config", "img_size"), [1 << 18, 1 << 18], "config"),
        (("config", "drop_path_rate"), math.nan, "drop_path_rate"),
        (("options",), 7, "options"),
        (("options", "head"), "unet", "head must be"),
        (("options", "head"), ["upernet"], "head must be"),
        (("options", "head"), "upernet", "neck"),
        (("options", "num_classes"), HUGE, "num_classes"),
        (("options", "num_classes"), "5", "class_names"),
        (("options", "channels"), 1 << 23, "fit"),
        (("options", "channels"), None, "fit"),
        (("options", "channels"), "8", "channels"),
        (("options", "neck_channels"), [8], "cannot build"),
        (("options", "out_indices"), "all", "out_indices"),
        (("options", "out_indices"), {"a": 1}, "out_indices"),
        (("options", "tile_overlap"), "none", "tile_overlap"),
        (("options", "weights"), "x", "weights"),
        (("class_names",), ["one"], "class_names"),
        (("class_names",), [1, 2, 3, 4, 5], "class_names"),
        (("preprocessing",), None, "preprocessing"),
        (("preprocessing", "std"), [0, 1, 1], "std"),
    ],
)
def test_damaged_and_hostile_metadata(place, value, needle, written, tmp_path):
    tensors, metadata = copy.deepcopy(written)
    *above, last = place
    inner = metadata
    for key in above:
        inner = inner[key]
    inner[last] = value
    save_file(tensors, tmp_path / "m.safetensors", metadata={"visionmlp": json.dumps(metadata)})
    refused(tmp_path / "m.safetensors", needle)


@pytest.mark.parametrize("text", ["", "{", "null", "[" * 100_000, "3", '{"model": "cyclemlp_test", "options": 3}'])
def test_metadata_of_another_kind(text, written, tmp_path):
    save_file(written[0], tmp_path / "m.safetensors", metadata={"visionmlp": text})
    refused(tmp_path / "m.safetensors", "damaged metadata")


def test_other_tensors(written, tmp_path):
    tensors, metadata = written
    path = tmp_path / "m.safetensors"
    for change in (
        lambda state: state.pop("decode_head.conv_seg.bias"),
        lambda state: state.update(more=torch.zeros(1)),
        lambda state: state.update({"decode_head.conv_seg.bias": torch.zeros(7)}),
    ):
        state = dict(tensors)
        change(state)
        save_file(state, path, metadata={"visionmlp": json.dumps(metadata)})
        with pytest.raises(CheckpointMismatch, match="does not fit a segment network of cyclemlp_test"):
            visionmlp.load_dense(path)


def test_files_that_are_something_else(written, tmp_path):
    path = tmp_path / "m.safetensors"
    refused(path, "no checkpoint file")
    refused(tmp_path, "no run folder")
    save_file(written[0], path)
    refused(path, "does not say which network it holds")
    path.write_bytes(path.read_bytes()[:1000])
    refused(path, "truncated")
    path.write_text("weights")
    refused(path, "truncated or not a safetensors file")
    visionmlp.save_checkpoint(path, visionmlp.create_model("cyclemlp_test"))
    refused(path, "holds a classifier, cyclemlp_test", "load_model")


def test_a_dense_checkpoint_is_no_classifier(network, tmp_path, capsys):
    path = tmp_path / "m.safetensors"
    visionmlp.save_dense(path, network)
    says = r"holds a network for dense prediction \(segment on cyclemlp_test\), not a classifier; .*load_dense"
    for load in (visionmlp.load_model, visionmlp.load_checkpoint, read_info):
        with pytest.raises(CheckpointError, match=says):
            load(path)
    with pytest.raises(CheckpointError, match=says):
        visionmlp.load_model("cyclemlp_test", checkpoint=path)
    with pytest.raises(CheckpointError, match="Segmenter is neither a model"):
        visionmlp.save_checkpoint(path, network)
    assert main(["deploy", str(path), "--output", str(tmp_path / "deploy.safetensors")]) == 2
    assert "not a classifier" in capsys.readouterr().err
