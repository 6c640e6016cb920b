"""Models as machine code. One package serves most tests: a C++ compiler takes seconds even for the smallest model."""

import gc
import json
import shutil
import tempfile
import zipfile
from pathlib import Path

import pytest
import torch
from torch._inductor.exc import InvalidCxxCompiler

from visionmlp.bench.runners import check_runtimes
from visionmlp.deploy import aotinductor
from visionmlp.deploy.certificate import relative_error
from visionmlp.deploy.export import ExportReport, _randomise, export_model
from visionmlp.deploy.formats import format_of
from visionmlp.deploy.graphs import ExportError, export_program
from visionmlp.deploy.runtimes import open_session, session_of, session_of_model
from visionmlp.errors import CheckpointError, InvalidConfig
from visionmlp.files import OutputError
from visionmlp.models.checkpoint import load_model

try:
    aotinductor.check_compiler()
except InvalidConfig:
    pytest.skip("no C++ compiler", allow_module_level=True)


# one worker makes the package, and asks once what the compiler can do
pytestmark = pytest.mark.xdist_group("aotinductor")


def images_of(batch: int) -> torch.Tensor:
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[torch.nn.Module, ExportReport]:
    """A model and what was exported of it."""
    model, info = load_model("resmlp_test", depth=1)
    path = tmp_path_factory.mktemp("compiled") / "m.pt2"
    return model, export_model(model, info, path, format="aotinductor")


@pytest.fixture
def package(exported, tmp_path) -> Path:
    """A copy of the package, to be spoilt."""
    return shutil.copy(exported[1].files[0], tmp_path / "m.pt2")


def rewritten(package: Path, change) -> Path:
    """The package with another description."""
    other = package.with_name("other.pt2")
    with zipfile.ZipFile(package) as source, zipfile.ZipFile(other, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("_metadata.json"):
                content = json.dumps(change(json.loads(content))).encode()
            target.writestr(name, content)
    return other


def test_a_package_computes_what_the_model_computes(exported) -> None:
    model, report = exported
    assert {check.batch for check in report.checks} == {1, 5}
    session = open_session(report.files[0], runtime="aotinductor")
    assert (session.metadata.model, session.metadata.form) == ("resmlp_test", "deploy")
    with torch.no_grad():
        for batch in (1, 2, 5):
            error = relative_error(model(images_of(batch)), torch.from_numpy(session(images_of(batch).numpy())))
            assert 0 < error < 1e-5


def test_code_runs_only_where_it_is_asked_for(package: Path) -> None:
    with pytest.raises(InvalidConfig, match="holds machine code, which runs when it is loaded"):
        open_session(package)
    with pytest.raises(InvalidConfig, match="cannot run in openvino"):
        open_session(package, runtime="openvino")


def test_a_program_is_no_machine_code(tmp_path) -> None:
    export_model(*load_model("resmlp_test", depth=1), tmp_path / "m.pt2")
    with pytest.raises(InvalidConfig, match="holds no machine code"):
        open_session(tmp_path / "m.pt2", runtime="aotinductor")


def test_packages_that_cannot_run_here(package: Path) -> None:
    other = rewritten(package, lambda entries: entries | {"visionmlp_processor": '["x86_64", "tensor_unit"]'})
    with pytest.raises(CheckpointError, match=r"another processor, with tensor_unit.*; export the model on this"):
        open_session(other, runtime="aotinductor")
    for damage in ("[[" * 50_000, "[1, 2]", "{}"):
        other = rewritten(package, lambda entries, damage=damage: entries | {"visionmlp_text": damage})
        with pytest.raises(CheckpointError, match="not written by visionmlp export"):
            open_session(other, runtime="aotinductor")
    foreign = rewritten(package, lambda entries: {k: v for k, v in entries.items() if "visionmlp" not in k})
    with pytest.raises(CheckpointError, match="not written by visionmlp export"):
        open_session(foreign, runtime="aotinductor")


@pytest.mark.parametrize("part", [slice(0, -1000), slice(0, 2000)])
def test_packages_that_are_cut(part: slice, package: Path) -> None:
    package.write_bytes(package.read_bytes()[part])
    with pytest.raises(CheckpointError, match="truncated"):
        open_session(package, runtime="aotinductor")


@pytest.mark.parametrize("content", [b"", b"no archive"])
def test_files_that_are_no_archive(content: bytes, tmp_path) -> None:
    (tmp_path / "m.pt2").write_bytes(content)
    for runtime in ("torch", "aotinductor"):
        with pytest.raises(CheckpointError, match="truncated, or neither"):
            open_session(tmp_path / "m.pt2", runtime=runtime)


def test_no_damage_of_the_directory_escapes(package: Path) -> None:
    """Python's reader of archives raises many kinds of errors."""
    content = package.read_bytes()
    start = content.index(b"PK\x01\x02")
    for place in range(start, min(len(content), start + 900), 3):
        package.write_bytes(content[:place] + bytes([content[place] ^ 0x8B]) + content[place + 1 :])
        try:
            if aotinductor.is_package(package):
                aotinductor.package_text(package)
        except CheckpointError:
            continue


def test_damaged_code_is_not_run(package: Path) -> None:
    with zipfile.ZipFile(package) as archive:
        code = next(entry for entry in archive.infolist() if entry.filename.endswith(".so"))
    content = bytearray(package.read_bytes())
    place = code.header_offset + 4096
    content[place] ^= 0xFF
    package.write_bytes(content)
    with pytest.raises(CheckpointError, match="truncated or was not written"):
        open_session(package, runtime="aotinductor")


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    def missing() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(aotinductor, "get_cpp_compiler", missing)
    with pytest.raises(InvalidConfig, match=r"install g\+\+ or clang\+\+, or use OpenVINO"):
        export_model(*load_model("resmlp_test", depth=1), tmp_path / "m.pt2", format="aotinductor")
    assert not list(tmp_path.iterdir())
    with pytest.raises(InvalidConfig, match="needs a C"):
        check_runtimes(("aotinductor",), ("float32",), torch.device("cpu"))


def test_a_model_that_cannot_be_compiled(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    program = export_program(load_model("resmlp_test", depth=1)[0], images_of(1), batch=1)
    monkeypatch.setattr(
        torch._inductor, "aoti_compile_and_package", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("no\nmore"))
    )
    with pytest.raises(ExportError, match=r"AOTInductor cannot compile this model: no$"):
        aotinductor.compile_package(program, tmp_path / "m.pt2", {})


def test_the_format_must_be_given(tmp_path) -> None:
    assert format_of(tmp_path / "m.pt2", None) == "pt2"
    assert format_of(tmp_path / "m.pt2", "aotinductor") == "aotinductor"
    with pytest.raises(OutputError, match=r"must end in \.pt2 for --format aotinductor"):
        format_of(tmp_path / "m.so", "aotinductor")


def test_models_in_memory(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    model, info = load_model("resmlp_test", depth=1)
    _randomise(model)
    with torch.no_grad():
        exact = model(images_of(3))
    fixed = session_of(model.bfloat16(), images_of(3).bfloat16(), runtime="aotinductor", threads=1)
    assert 1e-5 < relative_error(exact, torch.from_numpy(fixed(images_of(3).numpy()))) < 0.1
    session = session_of_model(model, info, runtime="aotinductor", threads=1)
    assert relative_error(exact, torch.from_numpy(session(images_of(3).numpy()))) < 0.05
    del fixed, session
    gc.collect()
    assert not list(tmp_path.iterdir())
