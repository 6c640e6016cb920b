import copy
import dataclasses
import errno
import json
import os

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch

import visionmlp
from tests.shallow import load_shallow
from visionmlp.deploy import export as module
from visionmlp.deploy import graphs
from visionmlp.deploy.certificate import randomise, relative_error
from visionmlp.deploy.export import LIMIT, ExportError, export_model
from visionmlp.deploy.formats import format_of
from visionmlp.deploy.graphs import dynamic_sides
from visionmlp.deploy.runtimes import open_session
from visionmlp.errors import InvalidConfig, InvalidImageSize
from visionmlp.files import OutputError
from visionmlp.layers.fusible import is_training_form, reparameterize
from visionmlp.models.checkpoint import load_checkpoint, load_model

# of the slow exporters the form that is shipped
SUFFIXES = {"deploy": (".pt2", ".xml", ".onnx"), "training": (".pt2",)}


def trained(name: str):
    """A model whose weights are not fresh, with class names."""
    model, info = load_shallow(name)
    randomise(model, seed=3)
    return model, dataclasses.replace(info, class_names=[f"digit {i}" for i in range(10)], source="somewhere")


def images_of(batch: int, size=(32, 32), seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed))


def error_of(model, session, images: torch.Tensor) -> float:
    with torch.no_grad():
        return relative_error(model(images), torch.from_numpy(session(images.numpy())))


@pytest.mark.parametrize("form", SUFFIXES)
@pytest.mark.parametrize("name", visionmlp.list_models(test=True))
def test_every_family_is_exported_loaded_and_equal(name: str, form, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, info = load_shallow(name)  # fresh: exported with random weights, which the model then has
    real, made = module.export_program, []

    def export_once(*arguments, **options):
        """One graph for all formats, for speed: the weights stay the same."""
        made[:] = made or [real(*arguments, **options)]
        return made[0]

    monkeypatch.setattr(module, "export_program", export_once)
    for suffix in SUFFIXES[form]:
        report = export_model(model, info, tmp_path / f"m{suffix}", form=form)
        assert {check.batch for check in report.checks} == {1, 5}
        session = open_session(tmp_path / f"m{suffix}", threads=1)
        assert (session.metadata.model, session.metadata.form) == (name, form)
        for batch in (1, 5):
            assert error_of(model, session, images_of(batch)) < LIMIT
            # of other images' logits it would be far above
            with torch.no_grad():
                assert relative_error(model(images_of(batch)), model(-images_of(batch))) > 100 * LIMIT


# what the files say


@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".pt2"])
def test_metadata_is_carried_and_nothing_is_printed(suffix: str, tmp_path, capfd) -> None:
    model, info = trained("resmlp_test")
    report = export_model(model, info, tmp_path / f"m{suffix}")
    assert {check.batch for check in report.random_checks} == {1, 5}
    metadata = open_session(tmp_path / f"m{suffix}").metadata
    assert metadata.class_names == info.class_names
    assert metadata.preprocessing["input_size"] == [3, 32, 32]
    assert (metadata.dtype, metadata.num_classes, metadata.input_size) == ("float32", 10, (3, 32, 32))
    assert (metadata.batch, metadata.sides) == ("dynamic", None)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_onnx_names_metadata_and_opset(tmp_path) -> None:
    model, info = trained("repmlpnet_test")
    export_model(model, info, tmp_path / "t.onnx", form="training", batch=3, opset=20)
    graph = onnx.load(tmp_path / "t.onnx")
    assert graph.graph.input[0].name == "images"
    assert graph.graph.output[0].name == "logits"
    assert graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 3
    assert [entry.version for entry in graph.opset_import if entry.domain in ("", "ai.onnx")] == [20]
    deployed = sum(value.numel() for value in reparameterize(model).state_dict().values())
    assert sum(torch.Size(tensor.dims).numel() for tensor in graph.graph.initializer) > deployed
    text = onnxruntime.InferenceSession(tmp_path / "t.onnx").get_modelmeta().custom_metadata_map
    assert json.loads(text["class_names"])[3] == "digit 3"


def test_onnx_runs_in_openvino_too(tmp_path) -> None:
    model, info = trained("resmlp_test")
    export_model(model, info, tmp_path / "m.onnx")
    session = open_session(tmp_path / "m.onnx", runtime="openvino")
    assert session.metadata.class_names == info.class_names
    assert error_of(model, session, images_of(2)) < 1e-5


def test_a_checkpoint_holds_the_form(tmp_path) -> None:
    model, info = trained("repmlpnet_test")
    report = export_model(model, info, tmp_path / "m.safetensors")
    assert report.random_checks == []
    loaded, loaded_info = load_checkpoint(tmp_path / "m.safetensors")
    assert not is_training_form(loaded)
    assert loaded_info.class_names == info.class_names
    with torch.no_grad():
        assert relative_error(model(images_of(2)), loaded(images_of(2))) < 1e-5


# batch and size


@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".pt2"])
def test_one_batch_size_serves_any_number_of_images(suffix: str, tmp_path) -> None:
    model, info = load_shallow("resmlp_test", depth=1)
    report = export_model(model, info, tmp_path / f"m{suffix}", batch=3)
    assert [check.batch for check in report.checks] == [3]
    session = open_session(tmp_path / f"m{suffix}")
    assert session.metadata.batch == 3
    for batch in (1, 3, 7):
        assert error_of(model, session, images_of(batch)) < 1e-5


@pytest.mark.parametrize(
    ("name", "suffix"), [("asmlp_test", ".pt2"), ("cyclemlp_test", ".onnx"), ("hiremlp_test", ".xml")]
)
def test_one_graph_for_many_sizes(name: str, suffix: str, tmp_path) -> None:
    model, info = load_shallow(name)
    report = export_model(model, info, tmp_path / f"m{suffix}", dynamic_size=True)
    sides = report.sides
    assert sides is not None
    assert {(check.batch, check.size) for check in report.checks} == {
        (batch, size)
        for batch in (1, 5)
        for size in ((sides.least, sides.least + sides.step), (sides.least + 2 * sides.step, sides.least))
    }
    session = open_session(tmp_path / f"m{suffix}")
    assert error_of(model, session, images_of(2, (sides.least + 3 * sides.step, sides.least + sides.step))) < 1e-5
    for size in ((sides.least + 1, sides.least), (sides.least, sides.least - sides.step)):
        with pytest.raises(InvalidImageSize, match=f"multiples of {sides.step} from {sides.least}"):
            session(images_of(1, size).numpy())


def test_sides_of_full_size_models() -> None:
    with torch.device("meta"):
        sides = {name: dynamic_sides(load_model(name)[0]) for name in ("asmlp_t", "cyclemlp_b1", "hiremlp_t")}
    assert {name: (value.step, value.least) for name, value in sides.items()} == {
        "asmlp_t": (32, 64),
        "cyclemlp_b1": (32, 64),
        "hiremlp_t": (192, 192),
    }


@pytest.mark.parametrize(("name", "why"), [("resmlp_test", "all positions"), ("repmlpnet_test", "windows")])
def test_dynamic_size_is_refused_where_the_graph_depends_on_it(name: str, why: str, tmp_path) -> None:
    with pytest.raises(InvalidConfig, match=why):
        export_model(*load_model(name), tmp_path / "m.onnx", dynamic_size=True)
    assert not list(tmp_path.iterdir())


# precision


@pytest.mark.parametrize(
    ("suffix", "dtype", "low", "high"),
    [
        (".onnx", "fp16", 1e-6, 1e-2),
        (".xml", "fp16", 1e-6, 1e-2),
        (".pt2", "fp16", 1e-6, 1e-2),
        (".pt2", "bf16", 1e-4, 1e-1),
        (".safetensors", "bf16", 1e-4, 1e-1),
    ],
)
def test_lower_precision_is_what_it_says(suffix: str, dtype, low: float, high: float, tmp_path) -> None:
    sizes = {}
    for each in ("float32", dtype):
        model, info = load_shallow("mlpmixer_test", depth=1, channel_dim=4000)  # weights that outweigh the graph
        report = export_model(model, info, tmp_path / f"{each}{suffix}", dtype=each)
        sizes[each] = report.files[-1].stat().st_size
    assert all(low < check.error < check.limit < high for check in report.checks)
    assert sizes[dtype] < 0.7 * sizes["float32"]


def test_openvino_computes_in_the_dtype_of_the_file(tmp_path) -> None:
    model, info = load_shallow("mlpmixer_test", depth=1)
    for dtype in ("float32", "bf16"):
        export_model(model, info, tmp_path / f"{dtype}.xml", dtype=dtype)
    images = images_of(4)
    assert error_of(model, open_session(tmp_path / "float32.xml"), images) < 1e-5
    assert open_session(tmp_path / "bf16.xml").metadata.dtype == "bf16"
    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        assert error_of(model, open_session(tmp_path / "bf16.xml"), images) > 1e-4


def test_bfloat16_weights_are_exported_in_float32(tmp_path) -> None:
    model, info = trained("resmlp_test")
    model.bfloat16()
    export_model(model, info, tmp_path / "m.onnx", batch=1)
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}
    assert error_of(copy.deepcopy(model).float(), open_session(tmp_path / "m.onnx"), images_of(1)) < 1e-5


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_int8_reports_agreement_on_the_calibration_images(suffix: str, tmp_path) -> None:
    model, info = trained("mlpmixer_test")
    output = tmp_path / f"m{suffix}"
    report = export_model(model, info, output, dtype="int8", calibration=[images_of(16).numpy()] * 2)
    assert report.agreement is not None
    assert report.agreement.images == 32
    assert report.agreement.top1 > 60
    assert report.agreement.correlation > 0.9
    session = open_session(output)
    assert session.metadata.dtype == "int8"
    assert session.metadata.class_names == info.class_names
    assert 1e-4 < error_of(model, session, images_of(4)) < 0.5


def test_int8_of_another_network_is_not_kept(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = module.quantize_openvino
    other, _ = trained("mlpmixer_test")
    randomise(other, seed=8)
    graph = graphs.openvino_model(graphs.export_program(other, images_of(2), batch="dynamic"))
    monkeypatch.setattr(module, "quantize_openvino", lambda _graph, images: real(graph, images))
    with pytest.raises(ExportError, match="correlation"):
        export_model(*trained("mlpmixer_test"), tmp_path / "m.xml", dtype="int8", calibration=[images_of(16).numpy()])
    assert not list(tmp_path.iterdir())


# wrong graphs


@pytest.mark.parametrize("dtype", ["float32", "bf16"])
def test_a_graph_that_computes_something_else_is_not_kept(dtype, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = module.export_program

    def export_another(model, *arguments, **options):
        other = copy.deepcopy(model)
        randomise(other, seed=5)
        return real(other.to(next(model.parameters()).dtype), *arguments, **options)

    monkeypatch.setattr(module, "export_program", export_another)
    with pytest.raises(ExportError, match="nothing was written"):
        export_model(*trained("resmlp_test"), tmp_path / "m.pt2", dtype=dtype)
    assert not list(tmp_path.iterdir())


def test_a_wrong_graph_cannot_hide_behind_a_zero_classifier(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, info = trained("mlpmixer_test")
    torch.nn.init.zeros_(model.get_classifier().weight)
    export_model(model, info, tmp_path / "right.pt2")
    real = module.export_program

    def export_shifted(model, *arguments, **options):
        shifted = copy.deepcopy(model)
        with torch.no_grad():
            shifted.stem.proj.weight.mul_(1.5)
        return real(shifted, *arguments, **options)

    monkeypatch.setattr(module, "export_program", export_shifted)
    with pytest.raises(ExportError, match="other outputs"):
        export_model(model, info, tmp_path / "wrong.pt2")
    assert [path.name for path in tmp_path.iterdir()] == ["right.pt2"]


def test_a_model_that_rounds_more_has_a_wider_limit_in_float32(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = module._opened

    def rounds_otherwise(*arguments):
        call = real(*arguments)
        return lambda images: np.nextafter(call(images), np.float32(np.inf))

    monkeypatch.setattr(module, "_opened", rounds_otherwise)
    monkeypatch.setattr(module, "LIMIT", 1e-9)
    # the step to the next value is one more rounding of logits that have few
    monkeypatch.setattr(module, "ROUNDINGS", 16)
    model, info = load_shallow("resmlp_test", depth=1)
    checks = export_model(model, info, tmp_path / "m.pt2").checks
    assert all(1e-9 < check.error <= check.limit < 1e-5 for check in checks)
    monkeypatch.setattr(module, "FLOAT32_CEILING", 1e-9)
    with pytest.raises(ExportError, match="limit 1e-09"):
        export_model(model, info, tmp_path / "n.pt2")


def test_fresh_weights_are_randomised_so_that_the_check_can_fail(tmp_path) -> None:
    model, info = load_shallow("mlpmixer_test", depth=1)
    assert not model.get_classifier().weight.any()
    report = export_model(model, info, tmp_path / "m.pt2", batch=2)
    assert open_session(tmp_path / "m.pt2")(images_of(2).numpy()).std() > 0.1
    assert report.random_checks == []


def test_what_a_runtime_cannot_run_is_not_kept(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    other, _ = load_shallow("resmlp_test", depth=1, img_size=64)
    program = graphs.export_program(other, images_of(1, (64, 64)), batch=1)
    monkeypatch.setattr(module, "export_program", lambda *_arguments, **_options: program)
    for suffix, runtime in ((".onnx", "ONNX Runtime"), (".xml", "OpenVINO")):
        with pytest.raises(ExportError, match=f"{runtime} cannot run this model"):
            export_model(*trained("resmlp_test"), tmp_path / f"m{suffix}", batch=1)
    assert not list(tmp_path.iterdir())


# files


def test_openvinos_two_files_appear_together(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, info = load_shallow("resmlp_test", depth=1)
    export_model(model, info, tmp_path / "m.xml")
    assert {path.name for path in tmp_path.iterdir()} == {"m.xml", "m.bin"}
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(OutputError, match="exists"):
        export_model(model, info, tmp_path / "m.xml")
    (tmp_path / "m.xml").rename(tmp_path / "n.xml")
    with pytest.raises(OutputError, match=r"m\.bin exists"):
        export_model(model, info, tmp_path / "m.xml")
    (tmp_path / "n.xml").rename(tmp_path / "m.xml")

    with monkeypatch.context() as patch:
        patch.setattr(module, "FLOAT32_CEILING", -1.0)
        patch.setattr(module, "LIMIT", -1.0)
        with pytest.raises(ExportError):
            export_model(model, info, tmp_path / "m.xml", force=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    export_model(model, info, tmp_path / "m.xml", batch=2, force=True)
    assert open_session(tmp_path / "m.xml").metadata.batch == 2

    real = os.replace

    def fails_for_xml(source, target) -> None:
        if str(target).endswith(".xml"):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr("visionmlp.files.os.replace", fails_for_xml)
    with pytest.raises(OutputError, match="No space left"):
        export_model(model, info, tmp_path / "other.xml")
    assert {path.name for path in tmp_path.iterdir()} == {"m.xml", "m.bin"}


def test_the_format_is_that_of_the_suffix(tmp_path) -> None:
    assert [format_of(tmp_path / f"m.{suffix}", None) for suffix in ("onnx", "xml", "pt2", "safetensors")] == [
        "onnx",
        "openvino",
        "pt2",
        "safetensors",
    ]
    with pytest.raises(OutputError, match=r"noext must end in \.onnx, \.xml, \.pt2, \.safetensors"):
        format_of(tmp_path / "noext", None)
    with pytest.raises(OutputError, match=r"m\.onnx must end in \.xml for --format openvino"):
        format_of(tmp_path / "m.onnx", "openvino")


@pytest.mark.parametrize("opset", [3, -1, 99])
def test_an_opset_that_cannot_be_had_is_refused(opset: int, tmp_path) -> None:
    with pytest.raises(ExportError, match=f"cannot export to opset {opset}, it gives"):
        export_model(*load_shallow("resmlp_test", depth=1), tmp_path / "m.onnx", batch=1, opset=opset)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("suffix", "options", "message"),
    [
        (".onnx", {"batch": 0}, "at least 1"),
        (".onnx", {"dtype": "bf16"}, "use the format openvino or pt2 or aotinductor or safetensors"),
        (".pt2", {"dtype": "int8"}, "int8 cannot run in pt2 files"),
        (".xml", {"dtype": "int8"}, "needs calibration images"),
        (".xml", {"calibration": [np.zeros((1, 3, 32, 32), np.float32)]}, "calibration is for int8"),
        (".xml", {"opset": 20}, "opset is for ONNX"),
        (".safetensors", {"batch": 2}, "takes what the model takes"),
        (".safetensors", {"dynamic_size": True}, "takes what the model takes"),
    ],
)
def test_what_cannot_be_exported_is_refused(suffix: str, options, message: str, tmp_path) -> None:
    with pytest.raises(InvalidConfig, match=message):
        export_model(*trained("resmlp_test"), tmp_path / f"m{suffix}", **options)
    assert not list(tmp_path.iterdir())


def test_a_deploy_form_has_no_training_form(tmp_path) -> None:
    model, info = trained("resmlp_test")
    with pytest.raises(InvalidConfig, match="training form cannot be recovered"):
        export_model(reparameterize(model), info, tmp_path / "m.onnx", form="training")
