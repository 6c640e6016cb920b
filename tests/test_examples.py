"""Every example runs, and shows what its first lines say."""

import importlib
import json
import re
import sys
import threading
import urllib.error
import urllib.request

import pytest
import torch
from examples import dense_head, finetune, locality, serve
from PIL import Image

import visionmlp
from tests.randomise import randomise
from tests.test_docs import ROOT
from visionmlp.measure.catalog import count_macs, count_params
from visionmlp.models import registry
from visionmlp.tasks.classify.predict import predict


def save_images(folder, colours, *, count):
    for name, colour in colours.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (40, 40), tuple(max(0, value - 5 * i) for value in colour)).save(
                folder / name / f"{i}.png"
            )


def test_finetune(tmp_path, capsys):
    for split, count in (("train", 16), ("val", 4)):
        save_images(tmp_path / "data" / split, {"red": (255, 60, 60), "blue": (60, 60, 255)}, count=count)
    run = tmp_path / "run"
    options = ["--model", "resmlp_test", "--epochs", "4", "--batch-size", "8", "--lr", "0.01", "--num-workers", "0"]
    finetune.main([str(tmp_path / "data"), str(run), *options])
    assert "top-1 100.00 %, deploy form 100.00 %" in capsys.readouterr().out
    assert (run / "report.html").exists()
    assert not [module for module in visionmlp.load_model(run / "deploy.safetensors")[0].modules() if fusible(module)]


def fusible(module):
    return isinstance(module, visionmlp.Fusible)


def test_locality():
    result = locality.run(steps=40)
    assert result.accuracy > 90
    assert result.error < 1e-12
    assert result.modules[0] > result.modules[1]


def test_locality_merges_what_it_should():
    mixer = randomise(visionmlp.add_locality(locality.Mixer((5, 4)), (1, 3))).double().eval()
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    deployed = visionmlp.reparameterize(mixer)
    torch.testing.assert_close(deployed(x), mixer(x))
    branches = mixer.locality.add_to(torch.zeros_like(x), x)
    assert branches.abs().max() > 1e-2  # or nothing was merged


@pytest.mark.parametrize("model", ["hiremlp_test", "resmlp_test"])
def test_dense_head(model):
    overlap, error = dense_head.run(model=model, steps=10)
    assert overlap > 60
    assert error < 1e-5


def test_serve(tmp_path, capsys):
    file = tmp_path / "model.onnx"
    model, info = visionmlp.load_model("resmlp_test")
    visionmlp.save_checkpoint(tmp_path / "model.safetensors", randomise(model), class_names=list("abcdefghij"))
    serve.deploy(str(tmp_path / "model.safetensors"), file)
    assert "error" in capsys.readouterr().out
    Image.linear_gradient("L").resize((50, 40)).convert("RGB").save(tmp_path / "image.png")
    model, info = visionmlp.load_model(tmp_path / "model.safetensors")
    (expected,) = predict(model, info, [str(tmp_path / "image.png")], top_k=3)
    with serve.build_server(file, host="127.0.0.1", port=0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            answer = post(server.server_port, (tmp_path / "image.png").read_bytes())
            assert [score["name"] for score in answer["classes"]] == [score.name for score in expected.classes]
            assert answer["classes"][0]["probability"] == pytest.approx(expected.classes[0].probability, abs=1e-4)
            with pytest.raises(urllib.error.HTTPError, match="400") as refusal:
                post(server.server_port, b"no image")
            assert "image" in json.loads(refusal.value.read())["error"]
            with pytest.raises(urllib.error.HTTPError, match="413"):
                post(server.server_port, b"")
        finally:
            server.shutdown()
            thread.join()


def post(port, data):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}", data=data, timeout=30) as answer:
        return json.load(answer)


@pytest.fixture(scope="module")
def new_family():
    """The module, whose models are gone again when the tests of this file end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_VARIANTS", dict(registry._VARIANTS))
        yield importlib.import_module("examples.new_family")
        del sys.modules["examples.new_family"]


def test_new_family(new_family, capsys):
    assert visionmlp.list_models("gMLP") == ["gmlp_ti"]
    new_family.main("gmlp_test")
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "features through timm: 16x4x4, 16x4x4, 16x4x4, 16x4x4"
    assert float(lines[2].rsplit(" ", 1)[1]) < 1e-5
    assert lines[3].endswith("interpolated to 64x64: (1, 5)")
    for variant in new_family.VARIANTS:
        model = visionmlp.create_model(variant.name)
        assert count_params(model) == variant.params
        assert count_macs(model, (3, *variant.img_size)) == variant.macs


@pytest.mark.usefixtures("new_family")
def test_new_family_merges_what_it_should():
    model = randomise(visionmlp.create_model("gmlp_test", kernel_sizes=(1, 3))).double().eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    deployed = visionmlp.reparameterize(model)
    torch.testing.assert_close(deployed(x), model(x), rtol=1e-10, atol=1e-10)
    assert count_params(deployed) < count_params(model)
    assert model(x).std() > 1e-2


def test_every_example_says_how_to_run_it_and_is_in_readme():
    files = sorted((ROOT / "examples").glob("*.py"))
    assert len(files) == 5
    readme = (ROOT / "README.md").read_text()
    for file in files:
        text = file.read_text()
        assert re.match(rf'"""\S[^\n]+[.:]\n\n    python examples/{file.name}', text), file
        assert f"examples/{file.name}" in readme
