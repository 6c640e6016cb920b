"""Checkpoints with objects beside the weights: the weights load, and nothing of the file's choice ever runs."""

import argparse
import builtins
import collections
import datetime
import enum
import os
import pathlib
import pickle
import shutil
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import visionmlp
from tests.models.test_official import official_resmlp, same
from tests.randomise import randomise
from visionmlp.errors import CheckpointError
from visionmlp.models import unpickling
from visionmlp.models.unpickling import RunsCode, Stranger, read_inert


class Stage(enum.Enum):
    PRE = "pre"


class EasyDict(dict):
    """As many configurations are: a dictionary of another class."""


class Remembers(list):
    def __setstate__(self, state: object) -> None:
        raise AssertionError("it was made")


class OldPath(pathlib.PureWindowsPath):
    """Named as a path of another system when it is written."""


def omegaconf_like() -> object:
    """An object with a state, of a package that is not here."""
    module = types.ModuleType("omegaconf.dictconfig")
    kind = type("DictConfig", (), {"__module__": "omegaconf.dictconfig"})
    module.DictConfig = kind  # type: ignore[attr-defined]
    sys.modules["omegaconf"], sys.modules["omegaconf.dictconfig"] = types.ModuleType("omegaconf"), module
    node = kind()
    node.__dict__["_content"] = {"lr": 0.1, "stages": [1, 2], "out": pathlib.PurePosixPath("/out")}
    return node


LEFTOVERS: dict[str, Any] = {
    "path": pathlib.Path("/data/imagenet"),
    "windows path": pathlib.PureWindowsPath("C:/data"),
    "device": torch.device("cuda:1"),
    "dtype": torch.bfloat16,
    "enum": Stage.PRE,
    "namespace": argparse.Namespace(lr=0.1, output=pathlib.Path("x"), device=torch.device("cpu")),
    "array": np.arange(6.0).reshape(2, 3),
    "scalar": np.float64(3),
    "defaultdict": collections.defaultdict(list, a=[1]),
    "ordered": collections.OrderedDict(b=2),
    "easydict": EasyDict(a=EasyDict(b=pathlib.Path("x"))),
    "datetime": datetime.datetime(2024, 5, 1, tzinfo=datetime.timezone.utc),
    "list of another class": Remembers([1, 2]),
    "set": {1, frozenset({"a"})},
    "class": Stage,
    "function": official_resmlp,
    "counter": collections.Counter("aab"),
    "module": torch.nn.Linear(2, 2),
    "complex": 1 + 2j,
    "generator state": torch.get_rng_state(),
    "slice": slice(1, 2),
}


@pytest.fixture(scope="module")
def trained():
    return randomise(visionmlp.create_model("resmlp_test"), seed=3).eval()


def load(path: Path):
    return visionmlp.load_official(visionmlp.create_model("resmlp_test"), path)


@pytest.mark.parametrize("kind", [*LEFTOVERS, "omegaconf", "all"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_weights_load_whatever_lies_beside_them(kind, zipped, trained, tmp_path, monkeypatch):
    if kind == "omegaconf":
        beside = omegaconf_like()
    else:
        beside = list(LEFTOVERS.values()) if kind == "all" else LEFTOVERS[kind]
    path = tmp_path / "theirs.pth"
    content = {"args": beside, "state_dict": official_resmlp(trained), "nested": {"deep": [beside]}}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    for name in ("omegaconf", "omegaconf.dictconfig"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(builtins, "__import__", _no_new_import(builtins.__import__))
    assert same(load(path), trained)


def _no_new_import(real: Any) -> Any:
    def guarded(name: str, *rest: Any, **names: Any) -> Any:
        assert name.partition(".")[0] != "omegaconf", "a class of the file was looked up"
        return real(name, *rest, **names)

    return guarded


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_and_every_dtype(protocol, tmp_path):
    dtypes = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
    shared = torch.randn(4, 6)
    content = {
        "beside": pathlib.Path("x"),
        "tensors": {str(dtype): torch.randn(3, 2).to(dtype) for dtype in dtypes},
        "views": [shared, shared[1:3, ::2], shared.t(), torch.empty(0), torch.tensor(3.0), torch.zeros(1).expand(3)],
        "parameter": torch.nn.Parameter(torch.randn(2)),
    }
    torch.save(content, tmp_path / "x.pth", pickle_protocol=protocol)
    read = read_inert(tmp_path / "x.pth")
    assert isinstance(read["beside"], Stranger)
    for name, value in content["tensors"].items():
        assert read["tensors"][name].dtype == value.dtype
        assert torch.equal(read["tensors"][name], value)
    for value, other in zip(content["views"], read["views"], strict=True):
        assert torch.equal(value, other)
    assert read["views"][0].untyped_storage().data_ptr() == read["views"][1].untyped_storage().data_ptr()
    assert torch.equal(read["parameter"], content["parameter"])


def test_a_tensor_with_attributes(tmp_path):
    value = torch.nn.Parameter(torch.randn(3))
    value.no_decay = True  # type: ignore[attr-defined]
    torch.save({"a": value, "b": pathlib.Path("x")}, tmp_path / "x.pth")
    assert torch.equal(read_inert(tmp_path / "x.pth")["a"], value)


# hostile files


class Calls:
    """Pickles as any call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Builds:
    """Pickles as a call and a state for its result."""

    def __init__(self, function: Any, arguments: tuple[Any, ...], state: Any) -> None:
        self.made = function, arguments, state

    def __reduce__(self):
        return self.made


def ran(*_: object) -> None:
    """What hostile files below want to call."""
    Path("ran").touch()


def attempt(path: Path) -> tuple[Any, str | None]:
    """What was loaded, or the message."""
    try:
        return load(path), None
    except CheckpointError as error:
        return None, str(error)


HOSTILE: dict[str, Any] = {
    "os.system": Calls(os.system, "touch ran"),
    "eval": Calls(eval, "ran()"),
    "exec": Calls(exec, "open('ran', 'w')"),
    "import": Calls(__import__, "antigravity"),
    "getattr": Calls(Path.touch, Path("ran")),
    "a function of ours": Calls(ran),
    "open": Calls(open, "ran", "w"),
    "rmtree": Calls(shutil.rmtree, "."),
    "torch.load": Calls(torch.load, "other.pth", None),
    "bytes to load": Calls(torch.storage._load_from_bytes, b"x"),
    "partial": Calls(Calls(ran).__reduce__()[0]),
    "state of a call": Builds(ran, (), {"__setstate__": ran}),
    "state of a tensor": Builds(torch.zeros, (2,), {"data": ran}),
    "state of a function": Builds(getattr, (torch._utils._rebuild_tensor_v2, "__call__"), {"__code__": 1}),
    "state of a dictionary": Builds(collections.OrderedDict, (), {"__class__": ran, "items": ran}),
    "slots": Builds(collections.OrderedDict, (), ({}, {"__class__": ran})),
    "in a key": {Calls(ran): 1},
    "in a set": {Calls(ran)},
    "deep": [[[[Calls(os.system, "touch ran")]]]],
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle 0", "pickle 4"])
@pytest.mark.parametrize("place", ["beside", "within"])
def test_nothing_runs(kind, form, place, trained, tmp_path, monkeypatch):
    (tmp_path / "files").mkdir()
    path, state = tmp_path / "files" / "evil.pth", official_resmlp(trained)
    content = {"a": HOSTILE[kind], "model": state} if place == "beside" else {"model": {**state, "a": HOSTILE[kind]}}
    monkeypatch.chdir(tmp_path)
    if form.startswith("pickle"):
        path.write_bytes(pickle.dumps({**content, "model": {"a": HOSTILE[kind]}}, protocol=int(form[-1])))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    assert not Path("ran").exists()
    files = sorted(tmp_path.rglob("*"))
    loaded, error = attempt(path)
    if error is not None:
        assert "\n" not in error
        assert "evil.pth" in error
    else:  # the weights are whole, and what was beside them is gone
        assert place == "beside"
        assert same(loaded, trained)
    assert sorted(tmp_path.rglob("*")) == files


def test_what_runs_code_is_named(trained, tmp_path):
    for hostile, name in (
        (Calls(os.system, "true"), r"could run code \((posix|nt)\.system\)"),
        (Calls(eval, "1"), r"could run code \(builtins\.eval\)"),
        (Calls(Path.touch, Path("x")), r"could run code \((what builtins\.getattr gives|pathlib.*touch)\)"),
    ):
        torch.save({"model": official_resmlp(trained), "a": hostile}, tmp_path / "x.pth")
        with pytest.raises(CheckpointError, match=name):
            load(tmp_path / "x.pth")


def test_weights_of_an_unknown_class_are_refused_by_its_name(trained, tmp_path):
    state = official_resmlp(trained)
    for content, name in (
        ({"model": EasyDict(state), "epoch": 3}, r"'model' that is no tensor but of class tests\..*EasyDict"),
        (EasyDict(state), r"an object of tests\..*EasyDict, not a state dict"),
        (trained, r"holds an object of visionmlp\.models\.resmlp\.ResMLP, not a state dict"),
        ({"state_dict": {**state, "norm.alpha": Stage.PRE}}, r"'norm\.alpha' .*Stage"),
        ({"state_dict": {**state, "norm.alpha": np.zeros(16)}}, r"'norm\.alpha' .*multiarray"),
    ):
        torch.save(content, tmp_path / "x.pth")
        with pytest.raises(CheckpointError, match=name) as error:
            load(tmp_path / "x.pth")
        assert "\n" not in str(error.value)


def rewritten(source: Path, target: Path, pickled: bytes) -> Path:
    """A file of PyTorch with another pickle in it."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, pickled if name.endswith("data.pkl") else old.read(name))
    return target


HEAD = b"\x80\x02"
SYSTEM = b"cposix\nsystem\n"


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def storage(kind: bytes, key: str, count: bytes) -> bytes:
    """A persistent id, and the opcode that resolves it."""
    return b"(" + text("storage") + kind + text(key) + text("cpu") + count + b"tQ"


FLOATS = b"ctorch\nFloatStorage\n"
PICKLES: dict[str, bytes] = {
    "persistent id that is no storage": HEAD + text("gadget") + b"K\x01\x86Q.",
    "persistent id in a persistent id": HEAD + b"(" + text("storage") + SYSTEM + b"(" + text("a") + b"QtQ.",
    "textual persistent id": b"Pid\n.",
    "storage of a hostile type": HEAD + storage(SYSTEM, "0", b"K\x01") + b".",
    "storage outside the archive": HEAD + storage(FLOATS, "../../etc", b"K\x01") + b".",
    "storage without end": HEAD + storage(FLOATS, "0", b"\x8a\x08" + b"\xff" * 7 + b"\x7f") + b".",
    "view beyond its storage": HEAD
    + b"ctorch._utils\n_rebuild_tensor_v2\n("
    + storage(FLOATS, "0", b"K\x02")
    + b"K\x00J\xff\xff\xff\x0f\x85K\x01\x85\x89NtR.",
    "extension registry": HEAD + b"\x82\x01.",
    "huge memo": HEAD + b"cargparse\nNamespace\n)\x81r\xff\xff\xff\xff.",
    "forgotten mark": HEAD + b"K\x01t.",
    "empty stack": HEAD + b"0.",
    "no end": HEAD + b"}",
    "unhashable key": HEAD + b"}]]s.",
    "huge string": HEAD + b"X\xff\xff\xff\x7fabc.",
    "long number": b"L" + b"9" * 5000 + b"L\n.",
    "ten thousand lists": HEAD + b"]" * 10_000 + b"a" * 9_999 + b".",
    "ten thousand calls": HEAD + b"ca\nb\n" * 10_000 + b")R" * 10_000 + b".",
    "itself": HEAD + b"}q\x00" + text("model") + b"h\x00s.",
}


@pytest.mark.parametrize("kind", PICKLES)
@pytest.mark.parametrize("zipped", [True, False])
def test_broken_pickles_are_one_line(kind, zipped, tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "good.pth")
    path = tmp_path / "bad.pth"
    if zipped:
        rewritten(tmp_path / "good.pth", path, PICKLES[kind])
    else:
        path.write_bytes(PICKLES[kind])
    for read in (load, lambda path: visionmlp.load_model("resmlp_test", checkpoint=path)):
        with pytest.raises(CheckpointError) as error:
            read(path)
        assert "\n" not in str(error.value)
        assert "bad.pth" in str(error.value)


def test_a_bomb_of_an_archive(tmp_path):
    """A small file whose entry unpacks to more than the file."""
    torch.save({"a": torch.zeros(2), "b": pathlib.Path("x")}, tmp_path / "good.pth")
    with zipfile.ZipFile(tmp_path / "good.pth") as old:
        content = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as new:
        for name, value in content.items():
            new.writestr(name, value + bytes(10_000_000) if name.endswith("data.pkl") else value)
    with pytest.raises(ValueError, match="larger than the whole file"):
        read_inert(tmp_path / "bomb.pth")
    with pytest.raises(CheckpointError, match="truncated"):
        load(tmp_path / "bomb.pth")


def test_calls_on_results_are_refused_even_of_unknown_classes():
    with pytest.raises(RunsCode, match=r"what a\.b gives"):
        unpickling._made(Stranger("a.b"), ())
    assert isinstance(unpickling._made(unpickling.Global("a.b"), ()), Stranger)


def test_truncated_legacy_files(trained, tmp_path):
    torch.save(
        {"model": official_resmlp(trained), "a": pathlib.Path("x")},
        tmp_path / "x.pth",
        _use_new_zipfile_serialization=False,
    )
    whole = (tmp_path / "x.pth").read_bytes()
    for size in (len(whole) - 1, len(whole) // 2, 100, 11):
        (tmp_path / "x.pth").write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="truncated"):
            load(tmp_path / "x.pth")
