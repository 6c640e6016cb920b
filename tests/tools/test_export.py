import dataclasses
import json

import onnx
import onnxruntime
import pytest
import torch

from visionmlp.errors import InvalidConfig
from visionmlp.layers.fusible import reparameterize
from visionmlp.models.checkpoint import load_model
from visionmlp.tools import export as module
from visionmlp.tools.certificate import randomise, relative_error
from visionmlp.tools.export import ExportError, export_onnx
from visionmlp.tools.files import OutputError


def trained(name: str):
    """A model whose weights are not fresh, with class names."""
    model, info = load_model(name)
    randomise(model, seed=3)
    return model, dataclasses.replace(info, class_names=[f"digit {i}" for i in range(10)], source="somewhere")


@pytest.mark.parametrize("name", ["repmlpnet_test", "resmlp_test", "mlpmixer_test"])
def test_dynamic_batch_carries_metadata_and_matches(name: str, tmp_path, capfd) -> None:
    model, info = trained(name)
    output = tmp_path / "m.onnx"
    errors = export_onnx(model, info, output)
    assert set(errors) == {1, 5}
    assert list(tmp_path.iterdir()) == [output]
    session = onnxruntime.InferenceSession(output)
    images = torch.randn(7, 3, 32, 32)
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    with torch.no_grad():
        assert relative_error(model(images), torch.from_numpy(logits)) < 1e-5
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["class_names"])[3] == "digit 3"
    assert json.loads(metadata["preprocessing"])["input_size"] == [3, 32, 32]
    assert (metadata["model"], metadata["form"]) == (name, "deploy")
    captured = capfd.readouterr()
    assert captured.out == ""


def test_training_form_fixed_batch_and_opset(tmp_path) -> None:
    model, info = trained("repmlpnet_test")
    errors = export_onnx(model, info, tmp_path / "t.onnx", form="training", batch=3, opset=20)
    assert set(errors) == {3}
    graph = onnx.load(tmp_path / "t.onnx")
    assert graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 3
    assert [entry.version for entry in graph.opset_import if entry.domain in ("", "ai.onnx")] == [20]
    deployed = sum(value.numel() for value in reparameterize(model).state_dict().values())
    assert sum(torch.Size(tensor.dims).numel() for tensor in graph.graph.initializer) > deployed


def test_a_graph_that_computes_something_else_is_not_kept(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = module._write

    def write_another(model, *arguments) -> None:
        randomise(model, seed=5)
        real(model, *arguments)
        randomise(model, seed=6)

    monkeypatch.setattr(module, "_write", write_another)
    with pytest.raises(ExportError, match="nothing was written"):
        export_onnx(*trained("resmlp_test"), tmp_path / "m.onnx", batch=1)
    assert not list(tmp_path.iterdir())


def test_fresh_weights_are_randomised_so_that_the_check_can_fail(tmp_path) -> None:
    model, info = load_model("mlpmixer_test")
    assert not model.get_classifier().weight.any()
    errors = export_onnx(model, info, tmp_path / "m.onnx", batch=2)
    assert model.get_classifier().weight.any()
    assert errors[2] > 0


def test_bfloat16_is_exported_in_float32(tmp_path) -> None:
    model, info = trained("resmlp_test")
    model.bfloat16()
    assert export_onnx(model, info, tmp_path / "m.onnx", batch=1)[1] < 1e-5
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}
    assert onnxruntime.InferenceSession(tmp_path / "m.onnx").get_inputs()[0].type == "tensor(float)"


@pytest.mark.parametrize("opset", [3, -1, 99])
def test_an_opset_that_cannot_be_had_is_refused(opset: int, tmp_path) -> None:
    with pytest.raises(ExportError, match=f"cannot export to opset {opset}, it gives"):
        export_onnx(*trained("resmlp_test"), tmp_path / "m.onnx", batch=1, opset=opset)
    assert not list(tmp_path.iterdir())


def test_what_onnx_runtime_cannot_load_or_run_is_not_kept(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, info = trained("resmlp_test")
    monkeypatch.setattr(module, "_write", lambda _model, path, *_: path.write_bytes(b"no graph"))
    with pytest.raises(ExportError, match=r"cannot load.*nothing was written"):
        export_onnx(model, info, tmp_path / "m.onnx", batch=1)
    other, _ = load_model("resmlp_test", img_size=64)
    monkeypatch.undo()
    export_onnx(other, info, tmp_path / "other.onnx", batch=1)
    graph = (tmp_path / "other.onnx").read_bytes()
    (tmp_path / "other.onnx").unlink()
    monkeypatch.setattr(module, "_write", lambda _model, path, *_: path.write_bytes(graph))
    with pytest.raises(ExportError, match=r"cannot run.*at batch 1.*nothing was written"):
        export_onnx(model, info, tmp_path / "m.onnx", batch=1)
    assert not list(tmp_path.iterdir())


def test_a_name_must_end_in_onnx(tmp_path) -> None:
    with pytest.raises(OutputError, match=r"noext must end in \.onnx"):
        export_onnx(*trained("resmlp_test"), tmp_path / "noext")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_is_refused(tmp_path) -> None:
    model, info = trained("resmlp_test")
    with pytest.raises(InvalidConfig, match="at least 1"):
        export_onnx(model, info, tmp_path / "m.onnx", batch=0)
    with pytest.raises(InvalidConfig, match="training form cannot be recovered"):
        export_onnx(reparameterize(model), info, tmp_path / "m.onnx", form="training")
    assert not list(tmp_path.iterdir())
