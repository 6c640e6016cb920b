"""Exported files appear whole or not at all, also where the disk ends or the weights need a file of their own."""

import resource
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from visionmlp.deploy import writing
from visionmlp.deploy.aotinductor import compile_package
from visionmlp.deploy.certificate import relative_error
from visionmlp.deploy.export import export_model
from visionmlp.deploy.graphs import ExportError, export_program, onnx_program, openvino_model
from visionmlp.deploy.metadata import ExportMetadata, metadata_of
from visionmlp.deploy.runtimes import open_session, session_of
from visionmlp.deploy.writing import save_onnx, save_openvino, save_program, whole_output
from visionmlp.files import OutputError
from visionmlp.models.checkpoint import load_model, save_checkpoint

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
MODEL, INFO = load_model("resmlp_test", depth=1)


@pytest.fixture(scope="module")
def metadata() -> ExportMetadata:
    return metadata_of(MODEL, INFO, dtype="float32", batch=2, sides=None, size=MODEL.config.img_size, form="training")


@pytest.fixture(scope="module")
def program() -> torch.export.ExportedProgram:
    return export_program(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10)).eval(), IMAGES, batch=2)


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file can grow beyond 4 kB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, before)


def write(program: torch.export.ExportedProgram, path: Path, metadata: ExportMetadata) -> None:
    if path.suffix == ".pt2":
        save_program(program, path, metadata)
    elif path.suffix == ".onnx":
        save_onnx(onnx_program(program), path, metadata)
    elif path.suffix == ".xml":
        save_openvino(openvino_model(program), path, metadata)
    else:
        save_checkpoint(path, MODEL)


@pytest.mark.parametrize("suffix", [".pt2", ".onnx", ".xml", ".safetensors"])
@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_is_one_line_and_no_file(suffix: str, program, metadata, tmp_path) -> None:
    with (
        pytest.raises(OutputError, match=f"cannot write {tmp_path}/m{suffix}: ") as caught,
        whole_output(tmp_path / f"m{suffix}", force=False, suffix=suffix) as staged,
    ):
        write(program, staged, metadata)
    assert len(str(caught.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_does_not_end_the_process_with_machine_code(program, tmp_path, monkeypatch) -> None:
    def package(_program, *, package_path, **_options) -> None:
        """As PyTorch's: its writer of archives ends the process if a file cannot take them."""
        assert not isinstance(package_path, (str, Path))
        package_path.write(bytes(1 << 13))

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", package)
    monkeypatch.setattr("visionmlp.deploy.aotinductor.check_compiler", lambda: None)
    with (
        pytest.raises(OutputError, match=f"cannot write {tmp_path}/m.pt2: File too large"),
        whole_output(tmp_path / "m.pt2", force=False, suffix=".pt2") as staged,
    ):
        compile_package(program, staged, {})
    assert not list(tmp_path.iterdir())


def test_files_come_together_and_as_the_users_mask_has_them(tmp_path) -> None:
    for force in (False, True):
        with whole_output(tmp_path / "m.onnx", force=force, suffix=".onnx") as staged:
            for path in (staged, staged.with_name("m.onnx.data")):
                path.write_text(str(force))
                path.chmod(0o600)
        (tmp_path / "usual").touch()
        modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
        assert len(modes) == 1
        assert {(tmp_path / name).read_text() for name in ("m.onnx", "m.onnx.data")} == {str(force)}
    (tmp_path / "m.onnx").unlink()
    with (
        pytest.raises(OutputError, match=r"m\.onnx\.data exists"),
        whole_output(tmp_path / "m.onnx", force=False, suffix=".onnx") as staged,
    ):
        staged.with_name("m.onnx.data").touch()
    assert {path.name for path in tmp_path.iterdir()} == {"m.onnx.data", "usual"}


def test_large_weights_of_onnx_lie_beside_it(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "ONE_FILE", 1000)
    model, info = load_model("mlpmixer_test", depth=1)
    report = export_model(model, info, tmp_path / "m.onnx")
    assert report.files == [tmp_path / "m.onnx", tmp_path / "m.onnx.data"]
    assert {path.name for path in tmp_path.iterdir()} == {"m.onnx", "m.onnx.data"}
    weights = onnx.load(tmp_path / "m.onnx", load_external_data=False).graph.initializer
    assert {tensor.data_location for tensor in weights} == {onnx.TensorProto.EXTERNAL, onnx.TensorProto.DEFAULT}
    with torch.no_grad():
        exact = model(IMAGES)
    for runtime in ("onnxruntime", "openvino"):
        session = open_session(tmp_path / "m.onnx", runtime=runtime)
        assert session.metadata.model == "mlpmixer_test"
        assert relative_error(exact, torch.from_numpy(session(IMAGES.numpy()))) < 1e-5
    in_memory = session_of(model, IMAGES, runtime="onnxruntime")
    assert relative_error(exact, torch.from_numpy(in_memory(IMAGES.numpy()))) < 1e-5

    calibration = [np.random.default_rng(0).standard_normal((8, 3, 32, 32), dtype=np.float32)]
    export_model(model, info, tmp_path / "m.onnx", dtype="int8", calibration=calibration, force=True)
    assert {path.name for path in tmp_path.iterdir()} == {"m.onnx", "m.onnx.data"}
    assert open_session(tmp_path / "m.onnx").metadata.dtype == "int8"

    monkeypatch.setattr("visionmlp.deploy.export.LIMIT", -1.0)
    monkeypatch.setattr("visionmlp.deploy.export.FLOAT32_CEILING", -1.0)
    with pytest.raises(ExportError, match="nothing was written"):
        export_model(model, info, tmp_path / "n.onnx")
    assert {path.name for path in tmp_path.iterdir()} == {"m.onnx", "m.onnx.data"}
