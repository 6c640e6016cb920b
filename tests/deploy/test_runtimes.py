import copy
import dataclasses
import io
import logging
import pickle
import shutil
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import visionmlp
from visionmlp.deploy import in_onnxruntime, in_openvino
from visionmlp.deploy.certificate import randomise, relative_error
from visionmlp.deploy.division import DividedCall
from visionmlp.deploy.export import _randomise, export_model
from visionmlp.deploy.graphs import ExportError, Sides, export_program, openvino_model
from visionmlp.deploy.metadata import ExportMetadata, metadata_of
from visionmlp.deploy.runtimes import open_session, session_of, session_of_model
from visionmlp.deploy.session import SessionModel
from visionmlp.errors import CheckpointError, InvalidConfig, InvalidImageSize, MissingExtra
from visionmlp.layers.fusible import reparameterize
from visionmlp.layers.moe import assign_places
from visionmlp.layers.patch_embed import PatchProduct
from visionmlp.models.checkpoint import load_model
from visionmlp.ops import eager

# one worker makes the files
pytestmark = pytest.mark.xdist_group("runtimes")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """One model in every format."""
    folder = tmp_path_factory.mktemp("exported")
    for suffix in (".onnx", ".xml", ".pt2"):
        export_model(*load_model("resmlp_test", depth=1), folder / f"m{suffix}")
    return folder


@pytest.fixture
def model():
    """The model in the files."""
    model, _ = load_model("resmlp_test", depth=1)
    _randomise(model)  # as export_model does with fresh weights
    return model


def images_of(batch: int, size: int = 32) -> torch.Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".pt2"])
def test_images_that_do_not_fit_are_refused(suffix: str, files: Path) -> None:
    session = open_session(files / f"m{suffix}")
    for shape in ((1, 3, 64, 64), (1, 1, 32, 32), (3, 32, 32)):
        with pytest.raises(InvalidImageSize, match="3 channels and 32x32"):
            session(np.zeros(shape, np.float32))
    with pytest.raises(InvalidImageSize, match="batch is empty"):
        session(np.zeros((0, 3, 32, 32), np.float32))


@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".pt2"])
def test_results_of_a_session_are_not_overwritten_by_the_next_call(suffix: str, files: Path) -> None:
    session = open_session(files / f"m{suffix}", threads=1)
    first = session(images_of(2).numpy())
    kept = first.copy()
    session(images_of(2).numpy() + 1)
    assert np.array_equal(first, kept)


def test_a_session_as_a_module(files: Path, model) -> None:
    served = SessionModel(open_session(files / "m.onnx")).eval()
    assert (served.num_classes, served.in_chans, next(served.parameters()).dtype) == (10, 3, torch.float32)
    with torch.no_grad():
        assert relative_error(model(images_of(3)), served(images_of(3))) < 1e-5


@pytest.mark.parametrize("runtime", ["pt2", "onnxruntime", "openvino"])
def test_a_session_for_a_benchmark_leaves_the_model_as_it_is(runtime, model) -> None:
    images = images_of(2)
    with torch.no_grad():
        exact = model(images)
        assert (
            relative_error(exact, torch.from_numpy(session_of(model, images, runtime=runtime)(images.numpy()))) < 1e-5
        )
    half = copy.deepcopy(model).bfloat16()
    if runtime == "onnxruntime":
        with pytest.raises(ExportError, match="ONNX Runtime cannot load"):
            session_of(half, images.bfloat16(), runtime=runtime)
    else:
        logits = torch.from_numpy(session_of(half, images.bfloat16(), runtime=runtime, threads=1)(images.numpy()))
        assert 1e-5 < relative_error(exact, logits) < 0.1
    assert {value.dtype for value in half.parameters()} == {torch.bfloat16}


def test_any_module_of_images_runs_in_a_benchmark() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    images = images_of(2)
    with torch.no_grad():
        exact = module(images)
    for runtime in ("pt2", "onnxruntime", "openvino"):
        logits = session_of(module, images, runtime=runtime)(images.numpy())
        assert relative_error(exact, torch.from_numpy(logits)) < 1e-5


class _Places(nn.Module):
    """Places of items that all want one of two experts; `session_of` asks for a parameter and images."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 1, 1, N) to (B, N)."""
        return assign_places((images[:, 0, 0, :, None] > 0).long(), 2, 400).rows.float()


@pytest.mark.parametrize("runtime", ["pt2", "onnxruntime", "openvino"])
def test_more_than_255_items_of_one_expert_are_counted(runtime) -> None:
    images = torch.ones(2, 1, 1, 700)
    images[:, :, :, ::7] = -1
    exact = _Places()(images)
    assert exact.max() == 2 * 2 * 400  # some find no place
    assert np.array_equal(session_of(_Places().eval(), images, runtime=runtime)(images.numpy()), exact.numpy())


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_model_in_a_runtime_without_a_file(runtime, model) -> None:
    _, info = load_model("resmlp_test", depth=1)
    session = session_of_model(model.bfloat16(), info, runtime=runtime, threads=1)
    assert (session.metadata.form, session.metadata.batch) == ("deploy", "dynamic")
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        exact = copy.deepcopy(model).float()(images_of(3))
    assert relative_error(exact, torch.from_numpy(session(images_of(3).numpy()))) < 1e-5


@pytest.mark.parametrize("fails", [False, True])
def test_a_model_in_memory_divides_large_batches_if_it_can(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, info = load_model("resmlp_test", depth=1)
    _randomise(model)
    real, written = in_onnxruntime.save_onnx, []

    def counted(program, path: Path) -> None:
        written.append(path)
        if fails and len(written) == 2:
            raise OSError("no space left on device")
        real(program, path)

    monkeypatch.setattr(in_onnxruntime, "save_onnx", counted)
    session = session_of_model(model, info, runtime="onnxruntime", threads=2)
    with torch.no_grad():
        for batch in (2, 8, 8):
            logits = torch.from_numpy(session(images_of(batch).numpy()))
            assert relative_error(model(images_of(batch)), logits) < 1e-5
    assert len(written) == 2


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_nothing_is_divided_where_only_pytorch_was_told_to_use_one_thread(
    suffix: str, files: Path, model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    parts = _count_parts(monkeypatch)
    session = open_session(files / f"m{suffix}")
    with torch.no_grad():
        assert relative_error(model(images_of(8)), torch.from_numpy(session(images_of(8).numpy()))) < 1e-5
    assert set(parts) <= {8}


@pytest.mark.parametrize("dtype", ["float32", "fp16"])
def test_an_open_session_of_openvino_stays_the_model_that_was_opened(dtype, tmp_path) -> None:
    for seed, name in enumerate(("one", "other")):
        model, info = load_model("resmlp_test", depth=1)
        randomise(model, seed=seed)
        info = dataclasses.replace(info, source="trained")  # else weights are drawn anew
        export_model(model, info, tmp_path / f"{name}.xml", dtype=dtype)
    images = images_of(8).numpy()
    session = open_session(tmp_path / "one.xml", threads=2)
    first = session(images[:1])
    # into the same file, as cp writes, not in its place
    shutil.copyfile(tmp_path / "other.bin", tmp_path / "one.bin")
    other = open_session(tmp_path / "other.xml", threads=1)(images)
    results = np.concatenate([session(images[:1]), session(images)])
    assert np.allclose(results[:1], first, rtol=0, atol=1e-5)
    assert np.allclose(results[1], first, rtol=0, atol=1e-5)
    assert not np.allclose(results[1:], other, rtol=0, atol=0.01)


def test_streams_are_checked_by_images_of_our_own_once_for_each_size(files: Path, monkeypatch) -> None:
    real, examples = in_openvino._right_requests, []

    def wrong_once(requests, again, part, expected):
        examples.append(part)
        if len(examples) == 1:
            broken = [requests[0], _Wrong(requests[1])]
            return real(broken, again, part, expected)
        return real(requests, again, part, expected)

    monkeypatch.setattr(in_openvino, "_right_requests", wrong_once)
    session = open_session(files / "m.xml", threads=2)
    images = images_of(12).numpy()
    assert np.isnan(session(np.full_like(images[:8], np.nan))).all()
    expected = np.concatenate([session(image[None]) for image in images])
    for batch in (8, 4, 6, 8, 12):
        assert np.allclose(session(images[:batch]), expected[:batch], rtol=0, atol=1e-4 * np.abs(expected).max())
    assert [len(part) for part in examples] == [2, 3]
    assert all(np.isfinite(part).all() and part.std() > 0.5 for part in examples)


class _Wrong:
    """A request whose stream computes wrong results."""

    def __init__(self, request) -> None:
        self._request = request

    def start_async(self, inputs, **options) -> None:
        self._request.start_async(inputs, **options)

    def wait(self) -> None:
        self._request.wait()

    def get_output_tensor(self, index: int) -> "_Wrong":
        self.data = np.array(self._request.get_output_tensor(index).data)
        self.data += 0.8 * np.abs(self.data).max()
        return self


def test_exports_in_two_threads_leave_the_process_as_it_was() -> None:
    before = sys.stdout, logging.getLogger("torch.export").level
    model, info = load_model("resmlp_test", depth=1)
    with ThreadPoolExecutor(2) as pool:
        runtimes = ["onnxruntime", "openvino"] * 2
        sessions = list(pool.map(lambda runtime: session_of_model(model.eval(), info, runtime=runtime), runtimes))
    assert (sys.stdout, logging.getLogger("torch.export").level) == before
    assert not eager._as_images
    with torch.no_grad():
        expected = model(images_of(2))
    for session in sessions:
        assert relative_error(expected, torch.from_numpy(session(images_of(2).numpy()))) < 1e-5


def _count_parts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by the images of every part that is computed from now on."""
    real, parts = DividedCall._part, []

    def counted(self: DividedCall, images: np.ndarray) -> np.ndarray:
        parts.append(len(images))
        return real(self, images)

    monkeypatch.setattr(DividedCall, "_part", counted)
    return parts


def test_metadata_is_the_same_as_text() -> None:
    model, info = load_model("resmlp_test", depth=1)
    info = dataclasses.replace(info, class_names=[str(i) for i in range(10)])
    for batch, sides in (("dynamic", None), (3, Sides(step=32, least=64))):
        metadata = metadata_of(
            model, info, dtype="bf16", batch=batch, sides=sides, size=model.config.img_size, form="deploy"
        )
        read = ExportMetadata.from_text(metadata.to_text(), Path("x"))
        assert dataclasses.replace(read, preprocessing=metadata.preprocessing) == metadata
        assert list(read.preprocessing["mean"]) == list(metadata.preprocessing["mean"])
        text = metadata.to_text()
        for key, value in (("batch", "0"), ("class_names", '["one"]'), ("input_size", "[3]"), ("sides", "7")):
            with pytest.raises(CheckpointError, match="damaged metadata"):
                ExportMetadata.from_text({**text, key: value}, Path("x"))
        del text["form"]
        with pytest.raises(CheckpointError, match="damaged metadata"):
            ExportMetadata.from_text(text, Path("x"))


# files that cannot be served


@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".pt2"])
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.98])
def test_a_truncated_file_gives_one_line(suffix: str, keep: float, files: Path, tmp_path) -> None:
    shutil.copy(files / "m.bin", tmp_path)
    whole = (files / f"m{suffix}").read_bytes()
    (tmp_path / f"m{suffix}").write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(CheckpointError) as caught:
        open_session(tmp_path / f"m{suffix}")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".pt2"])
def test_a_missing_or_foreign_file_is_named(suffix: str, tmp_path) -> None:
    path = tmp_path / f"m{suffix}"
    with pytest.raises(CheckpointError, match="no file"):
        open_session(path)
    path.write_text("<html>not found</html>")
    with pytest.raises(CheckpointError, match=str(path)):
        open_session(path)


def test_openvino_weights_that_are_missing_or_cut(files: Path, tmp_path) -> None:
    shutil.copy(files / "m.xml", tmp_path)
    with pytest.raises(CheckpointError, match=r"cannot load .*m\.xml"):
        open_session(tmp_path / "m.xml")
    weights = (files / "m.bin").read_bytes()
    (tmp_path / "m.bin").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(CheckpointError, match=r"cannot load .*m\.xml"):
        open_session(tmp_path / "m.xml")


def test_files_of_other_programs_do_not_say_which_model_they_hold(files: Path, tmp_path) -> None:
    graph = onnx.load(files / "m.onnx")
    del graph.metadata_props[:]
    onnx.save(graph, tmp_path / "m.onnx")
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),)), tmp_path / "m.pt2")
    for name in ("m.onnx", "m.pt2"):
        with pytest.raises(CheckpointError, match="not written by visionmlp export"):
            open_session(tmp_path / name)
    with pytest.raises(CheckpointError, match="not written by visionmlp export"):
        open_session(tmp_path / "m.onnx", runtime="openvino")


class _Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


def test_a_hostile_program_runs_no_code(files: Path, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    buffer = io.BytesIO()
    torch.save(_Bomb(), buffer)
    for kind, payload in (("weights", buffer.getvalue()), ("opaque_obj_0", pickle.dumps(_Bomb()))):
        path = tmp_path / f"{kind}.pt2"
        with zipfile.ZipFile(files / "m.pt2") as source, zipfile.ZipFile(path, "w") as target:
            for item in source.infolist():
                data = source.read(item)
                if item.filename.endswith("weights_config.json"):
                    data = data.replace(b'"use_pickle": false', b'"use_pickle": true')
                # the second is the layout of PyTorch 2.6
                elif kind == "weights" and ("/data/weights/" in item.filename or item.filename.endswith(".pt")):
                    data = payload
                target.writestr(item, data)
            if kind != "weights":
                root = source.namelist()[0].split("/")[0]
                target.writestr(f"{root}/data/constants/{kind}", payload)
        with pytest.raises(CheckpointError):
            open_session(path)
        assert not (tmp_path / "exploded").exists()


def test_what_cannot_run_it_is_refused(files: Path, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidConfig, match=r"\.pt2 files run in torch"):
        open_session(files / "m.pt2", runtime="onnxruntime")
    with pytest.raises(InvalidConfig, match="at least 1"):
        open_session(files / "m.xml", threads=0)
    with pytest.raises(CheckpointError, match=r"end in \.onnx"):
        open_session(tmp_path / "m.tflite")
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(MissingExtra, match=r"visionmlp\[export\]"):
        open_session(files / "m.onnx")


def test_openvino_graphs_keep_the_sizes_that_are_known():
    pytest.importorskip("openvino")
    model = visionmlp.create_model("resmlp_test", depth=1).eval()
    images = torch.randn(5, 3, 32, 32)
    fixed = openvino_model(export_program(model, images, batch=5))
    assert list(fixed.input(0).get_shape()) == [5, 3, 32, 32]
    dynamic = openvino_model(export_program(model, images, batch="dynamic"))
    assert [side.is_dynamic for side in dynamic.input(0).get_partial_shape()] == [True, False, False, False]


@pytest.mark.parametrize("name", ["hiremlp_test", "asmlp_test", "cyclemlp_test"])
def test_onnx_graphs_mix_channels_by_convolutions(name: str, tmp_path: Path) -> None:
    model, info = load_model(name)
    export_model(model, info, tmp_path / "m.onnx")
    graph = onnx.load(tmp_path / "m.onnx").graph
    blocks = sum(len(stage.blocks) for stage in model.stages)
    assert sum(node.op_type == "Conv" for node in graph.node) >= 2 * blocks + 1
    images = torch.randn(3, 3, *model.config.img_size)
    deployed = reparameterize(model)
    with torch.inference_mode():
        expected = deployed(images)
    for as_images in (False, True):
        program = export_program(deployed, images, batch=3, as_images=as_images)
        products = [node for node in program.graph.nodes if node.target is torch.ops.aten.conv2d.default]
        assert (len(products) > 2 * len(model.stages)) == as_images
        assert relative_error(expected, program.module()(images)) < 1e-5
    assert not eager._as_images


@pytest.mark.parametrize("name", ["resmlp_test", "vip_test", "repmlpnet_test"])
def test_onnx_graphs_embed_patches_by_convolutions(name: str, tmp_path: Path) -> None:
    """ONNX Runtime is slow at the transposition of six dimensions that gathers patches for a product."""
    model, info = load_model(name)
    _randomise(model)
    export_model(model, info, tmp_path / "m.onnx")
    nodes = onnx.load(tmp_path / "m.onnx").graph.node
    dimensions = [len(node.attribute[0].ints) for node in nodes if node.op_type == "Transpose"]
    assert max(dimensions) < 6
    strides = [tuple(a.ints) for node in nodes if node.op_type == "Conv" for a in node.attribute if a.name == "strides"]
    embeddings = [layer for layer in reparameterize(model).modules() if isinstance(layer, PatchProduct)]
    assert embeddings
    assert {(embedding.patch_size,) * 2 for embedding in embeddings} <= set(strides)
    images = torch.randn(3, 3, *model.config.img_size)
    with torch.inference_mode():
        expected = model(images)
    assert relative_error(expected, torch.from_numpy(open_session(tmp_path / "m.onnx")(images.numpy()))) < 1e-5


def test_openvino_divides_large_batches(files: Path, model, monkeypatch: pytest.MonkeyPatch) -> None:
    real, divided = in_openvino.openvino_call, []

    def counted(*arguments, **options):
        divided.append(options.get("divided", False))
        return real(*arguments, **options)

    monkeypatch.setattr(in_openvino, "openvino_call", counted)
    session = open_session(files / "m.xml", threads=2)
    with torch.no_grad():
        for batch in (3, 8, 8, 14, 6):
            logits = torch.from_numpy(session(images_of(batch).numpy()))
            assert relative_error(model(images_of(batch)), logits) < 1e-5
        exact = model(images_of(8))
    assert divided == [False, True]
    fixed = session_of(model, images_of(8), runtime="openvino", threads=2)
    assert divided == [False, True, True]
    assert relative_error(exact, torch.from_numpy(fixed(images_of(8).numpy()))) < 1e-5
    with pytest.raises(ExportError, match=r"OpenVINO cannot run this model at images of \(3, 64, 32\)"):
        fixed(np.zeros((8, 3, 64, 32), np.float32))
    assert relative_error(exact, torch.from_numpy(fixed(images_of(8).numpy()))) < 1e-5


def test_onnx_runtime_divides_large_batches(files: Path, model, monkeypatch: pytest.MonkeyPatch) -> None:
    real, sessions = in_onnxruntime.onnx_session, []

    def counted(path: Path, threads: int | None, reason):
        sessions.append(threads)
        return real(path, threads, reason)

    monkeypatch.setattr(in_onnxruntime, "onnx_session", counted)
    session = open_session(files / "m.onnx", threads=2)
    with torch.no_grad():
        for batch in (3, 8, 8, 14, 6):
            logits = torch.from_numpy(session(images_of(batch).numpy()))
            assert relative_error(model(images_of(batch)), logits) < 1e-5
        exact = model(images_of(8))
    assert sessions == [2, 1]
    fixed = session_of(model, images_of(8), runtime="onnxruntime", threads=2)
    assert sessions == [2, 1, 1]
    assert relative_error(exact, torch.from_numpy(fixed(images_of(8).numpy()))) < 1e-5
    for call in (fixed, session.call):
        with pytest.raises(ExportError, match=r"ONNX Runtime cannot run this model at images of \(3, 64, 32\)"):
            call(np.zeros((8, 3, 64, 32), np.float32))
        assert relative_error(exact, torch.from_numpy(call(images_of(8).numpy()))) < 1e-5


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_one_thread_divides_large_batches_too(suffix: str, files: Path, model, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = _count_parts(monkeypatch)
    session = open_session(files / f"m{suffix}", threads=1)
    with torch.no_grad():
        for batch in (6, 9):
            logits = torch.from_numpy(session(images_of(batch).numpy()))
            assert relative_error(model(images_of(batch)), logits) < 1e-5
        assert parts == [2, 2, 2, 3, 3, 3]
        for batch in (1, 7):
            logits = torch.from_numpy(session(images_of(batch).numpy()))
            assert relative_error(model(images_of(batch)), logits) < 1e-5


@pytest.mark.parametrize("fate", ["replaced", "removed"])
def test_an_onnx_file_that_changed_since_it_was_opened_is_not_read_again(
    fate: str, files: Path, model, tmp_path: Path
) -> None:
    path = tmp_path / "m.onnx"
    shutil.copy(files / "m.onnx", path)
    session = open_session(path, threads=2)
    path.unlink()
    if fate == "replaced":
        other, info = load_model("resmlp_test", depth=2)
        export_model(other, info, path)
    with torch.no_grad():
        logits = torch.from_numpy(session(images_of(8).numpy()))
        assert relative_error(model(images_of(8)), logits) < 1e-5


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
@pytest.mark.parametrize("batch", [3, 8])
def test_two_threads_may_call_one_session(suffix: str, batch: int, files: Path, model) -> None:
    session = open_session(files / f"m{suffix}", threads=2)
    inputs = [images_of(batch) + i for i in range(2)]
    with torch.no_grad():
        exact = [model(images) for images in inputs]
    with ThreadPoolExecutor(2) as pool:
        turns = [i % 2 for i in range(60)]
        results = list(pool.map(lambda i: session(inputs[i].numpy()), turns))
    for i, logits in zip(turns, results, strict=True):
        assert relative_error(exact[i], torch.from_numpy(logits)) < 1e-5
