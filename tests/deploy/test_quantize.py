import json
import sys
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from PIL import Image

import visionmlp
from tests.randomise import randomise
from tests.shallow import load_shallow
from visionmlp.deploy.graphs import export_program, onnx_program
from visionmlp.deploy.quantize import MINIMUM_IMAGES, calibration_images, quantize_onnx, quantize_openvino
from visionmlp.errors import DataError, InvalidConfig, MissingExtra

pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")

PREPROCESSING = {
    "input_size": (3, 32, 32),
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "interpolation": "bicubic",
    "crop_pct": 1.0,
}
CALIBRATION = [np.random.default_rng(seed).standard_normal((4, 3, 32, 32), dtype=np.float32) for seed in range(2)]
IMAGES = np.random.default_rng(9).standard_normal((5, 3, 32, 32), dtype=np.float32)
LIMIT = 0.06
"""Norm of the error over that of the logits: 8 bits leave 0.01 to 0.05, sums that overflow 0.07 to 0.3."""
SIMULATED = {"LP_TRANSFORMS_MODE": "NO"}
"""Makes OpenVINO compute in float32 what the quantised graph says."""


def deployed(name: str) -> torch.nn.Module:
    return visionmlp.reparameterize(randomise(load_shallow(name)[0]))


def openvino_model(model: torch.nn.Module, batch: int = -1) -> openvino.Model:
    example = torch.zeros(max(batch, 1), 3, 32, 32)
    return openvino.convert_model(model, example_input=example, input=[[batch, 3, 32, 32]])


def run_openvino(model: openvino.Model, images: np.ndarray, **settings: str) -> np.ndarray:
    compiled = openvino.Core().compile_model(
        model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, **settings}
    )
    return compiled([images])[0]


def difference(reference: np.ndarray, logits: np.ndarray) -> float:
    return float(np.linalg.norm(logits - reference) / np.linalg.norm(reference))


def error(model: torch.nn.Module, logits: np.ndarray) -> float:
    with torch.no_grad():
        return difference(model(torch.from_numpy(IMAGES)).numpy(), logits)


def image_folder(folder, images: int) -> str:
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for index in range(images):
            path = folder / split / "ab"[index % 2] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
    return str(folder)


@pytest.fixture(scope="module")
def resmlp() -> openvino.Model:
    return openvino_model(deployed("resmlp_test"))


@pytest.mark.parametrize("name", visionmlp.list_models(test=True))
def test_openvino_in_int8_computes_the_same_for_any_batch(name: str, capfd) -> None:
    model = deployed(name)
    graph = openvino_model(model)
    quantised = quantize_openvino(graph, CALIBRATION)
    logits = run_openvino(quantised, IMAGES)
    assert error(model, logits) < LIMIT
    # OpenVINO simulates rows of an unknown batch wrongly: 0.22 on CycleMLP, whose int8 is right
    fixed = quantised.clone()
    fixed.reshape(list(IMAGES.shape))
    # up to 0.017 with AVX-512 VNNI, elsewhere under 0.01, cause unknown; sums that overflow leave 0.07 and more. A
    # router may send an item elsewhere
    assert difference(run_openvino(fixed, IMAGES, **SIMULATED), logits) < (0.04 if "moe" in name else 0.02)
    # the model that was given is as it was
    assert error(model, run_openvino(graph, IMAGES)) < 1e-4
    kinds = Counter(node.get_type_name() for node in quantised.get_ops())
    assert kinds["FakeQuantize"] > 4
    assert capfd.readouterr().out == ""


class _Product(torch.nn.Module):
    """Products with a matrix of ones or with another map, at which 16-bit sums overflow first."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.matrix = torch.nn.Parameter(torch.ones(64, 64))
        self.conv = torch.nn.Conv2d(1, 16, 3, bias=False)
        torch.nn.init.ones_(self.conv.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 64, 64) to the same, or to (B, 16, 62, 62)."""
        if self.kind == "matrix on the right":
            return x @ self.matrix
        if self.kind == "matrix on the left":
            return self.matrix @ x
        return 0.99 * x @ (1.01 * x.transpose(1, 2)) if self.kind == "two maps" else self.conv(x[:, None])


KINDS = ["matrix on the right", "matrix on the left", "two maps", "convolution"]


def extreme_maps(kind: str) -> np.ndarray:
    """Values at the ends of their range, mostly of one sign."""
    generator = np.random.default_rng(KINDS.index(kind))
    return (generator.choice([1.0, 0.95, 0.9], (8, 64, 64)) * generator.choice([1, 1, 1, -1], (8, 64, 64))).astype("f4")


@pytest.mark.parametrize("kind", KINDS)
def test_no_sum_overflows_in_openvino(kind: str) -> None:
    maps = extreme_maps(kind)
    graph = openvino.convert_model(_Product(kind), example_input=torch.from_numpy(maps), input=[[8, 64, 64]])
    quantised = quantize_openvino(graph, [maps])
    assert difference(run_openvino(graph, maps), run_openvino(quantised, maps)) < 0.02
    # on every processor: what stands on the right of a product, and a kernel, has 7 bits
    for node in quantised.get_ops():
        if node.get_type_name() in ("MatMul", "Convolution"):
            right = node.input_value(1).get_node()
            while right.get_type_name() not in ("FakeQuantize", "Constant"):
                right = right.input_value(0).get_node()
            if right.get_type_name() == "Constant":
                assert np.abs(right.get_data().astype(int)).max() <= 64
            else:
                low, high = (right.input_value(port).get_node().get_data() for port in (3, 4))
                assert np.abs(maps).max() / (high - low) * (right.get_attributes()["levels"] - 1) <= 65


@pytest.mark.parametrize("kind", KINDS)
def test_no_sum_overflows_in_onnx_runtime(kind: str, tmp_path) -> None:
    maps = extreme_maps(kind)
    program = onnx_program(export_program(_Product(kind), torch.from_numpy(maps), batch=8))
    program.save(tmp_path / "float.onnx")
    quantize_onnx(tmp_path / "float.onnx", tmp_path / "int8.onnx", [maps])
    exact, quantised = (
        onnxruntime.InferenceSession(tmp_path / f"{name}.onnx").run(None, {"images": maps})[0]
        for name in ("float", "int8")
    )
    assert difference(exact, quantised) < 0.02
    weights = [t for t in onnx.load(tmp_path / "int8.onnx").graph.initializer if t.data_type == onnx.TensorProto.INT8]
    for weight in map(onnx.numpy_helper.to_array, weights):
        assert np.abs(weight.astype(int)).max() <= 64


def test_sums_and_the_classifier_stay_in_float32(resmlp: openvino.Model) -> None:
    quantised = quantize_openvino(resmlp, CALIBRATION)
    readers = Counter()
    for node in quantised.get_ops():
        if node.get_type_name() == "FakeQuantize":
            readers.update(reader.get_node().get_type_name() for reader in node.output(0).get_target_inputs())
    products = Counter(node.get_type_name() for node in quantised.get_ops())
    assert set(readers) <= {"Convolution", "MatMul", "Reshape", "Transpose"}
    (head,) = (node for node in quantised.get_ops() if node.get_type_name() == "MatMul" and "head" in str(node))
    assert all(value.get_node().get_type_name() != "FakeQuantize" for value in head.input_values())
    assert products["MatMul"] > 1


def test_products_that_compute_matrices_stay_in_float32() -> None:
    quantised = quantize_openvino(openvino_model(deployed("cyclemlp_test")), CALIBRATION)
    makers = []
    for product in (node for node in quantised.get_ops() if node.get_type_name() == "MatMul"):
        for value in product.input_values():
            node = value.get_node()
            while node.get_type_name() in ("FakeQuantize", "Reshape", "Transpose"):
                node = node.input_value(0).get_node()
            if node.get_type_name() == "MatMul":
                makers.append(node)
    assert makers
    for maker in makers:
        assert all(value.get_node().get_type_name() != "FakeQuantize" for value in maker.input_values())


def test_a_fixed_batch_is_calibrated_at_its_size() -> None:
    model = deployed("mlpmixer_test")
    quantised = quantize_openvino(
        openvino_model(model, batch=5), (image[None] for part in CALIBRATION for image in part)
    )
    assert quantised.input(0).get_partial_shape().to_shape() == [5, 3, 32, 32]
    assert error(model, run_openvino(quantised, IMAGES)) < LIMIT


def test_ranges_are_those_of_the_calibration_images() -> None:
    model = deployed("mlpmixer_test")
    dark = quantize_openvino(openvino_model(model), [part / 20 for part in CALIBRATION])
    assert error(model, run_openvino(dark, IMAGES)) > 2 * LIMIT


def test_one_bright_calibration_image_widens_the_ranges() -> None:
    model = deployed("resmlp_test")
    usual = [IMAGES[:1] / 10] * 15
    quantised = quantize_openvino(openvino_model(model), [*usual, IMAGES[:1]])
    narrow = quantize_openvino(openvino_model(model), usual)
    with torch.no_grad():
        reference = model(torch.from_numpy(IMAGES[:1])).numpy()
    errors = [np.linalg.norm(run_openvino(graph, IMAGES[:1]) - reference) for graph in (quantised, narrow)]
    assert errors[0] < LIMIT * np.linalg.norm(reference)
    assert errors[1] > 3 * errors[0]


@pytest.mark.parametrize("name", ["resmlp_test", "mlpmixer_test", "cyclemlp_test", "sparsemlp_moe_test"])
def test_onnx_in_int8_computes_the_same_and_keeps_its_metadata(name: str, tmp_path, capfd) -> None:
    model = deployed(name)
    source, target = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    program = onnx_program(export_program(model, torch.zeros(2, 3, 32, 32), batch="dynamic"))
    program.model.metadata_props["class_names"] = json.dumps(["a", "b"])
    program.save(source)
    capfd.readouterr()
    quantize_onnx(source, target, CALIBRATION)
    assert capfd.readouterr().out == ""
    session = onnxruntime.InferenceSession(target)
    assert session.get_modelmeta().custom_metadata_map["class_names"] == '["a", "b"]'
    (logits,) = session.run(None, {"images": IMAGES})
    assert error(model, logits) < LIMIT
    graph = onnx.load(target).graph
    assert {tensor.data_type for tensor in graph.initializer} >= {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}
    classifier = [node for node in graph.node if node.op_type == "Gemm" and "head.fc.weight" in node.input]
    assert len(classifier) == 1
    assert sorted(tmp_path.iterdir()) == [source, target]


def test_calibration_images_are_a_fixed_choice_preprocessed_as_in_evaluation(tmp_path) -> None:
    folder = image_folder(tmp_path, 24)
    first = list(calibration_images(folder, PREPROCESSING, count=10))
    assert len(first) == 10
    assert {image.shape for image in first} == {(1, 3, 32, 32)}
    assert {image.dtype for image in first} == {np.dtype(np.float32)}
    again = list(calibration_images(folder, PREPROCESSING, count=10))
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))
    for arguments in ({"seed": 1}, {"split": "validation"}):
        others = list(calibration_images(folder, PREPROCESSING, count=10, **arguments))
        assert not all(np.array_equal(one, other) for one, other in zip(first, others, strict=True))
    assert len(list(calibration_images(folder, PREPROCESSING))) == 24


def test_broken_images_are_replaced_and_too_few_are_an_error(tmp_path) -> None:
    folder = image_folder(tmp_path, 10)
    broken = sorted(tmp_path.glob("train/a/*.png"))
    broken[0].write_bytes(b"no image")
    assert len(list(calibration_images(folder, PREPROCESSING, count=9))) == 9
    for path in broken:
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match=f"5 readable images in its train split; calibration needs {MINIMUM_IMAGES}"):
        list(calibration_images(folder, PREPROCESSING))
    with pytest.raises(InvalidConfig, match="at least"):
        next(calibration_images(folder, PREPROCESSING, count=MINIMUM_IMAGES - 1))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([CALIBRATION[0]], "at least 8 images"),
        ([np.zeros((8, 3, 16, 32), np.float32)], "takes images of 3 x 32 x 32, but calibration images are 3 x 16 x 32"),
        ([np.zeros((8, 32, 32), np.float32)], "calibration images are 32 x 32"),
    ],
)
def test_unusable_images_are_one_line(images, message: str, resmlp: openvino.Model) -> None:
    with pytest.raises(InvalidConfig, match=message):
        quantize_openvino(resmlp, images)


def test_missing_packages_name_the_extra(monkeypatch: pytest.MonkeyPatch, resmlp: openvino.Model) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(MissingExtra, match=r"nncf is not installed.*visionmlp\[int8\]"):
        quantize_openvino(resmlp, CALIBRATION)
