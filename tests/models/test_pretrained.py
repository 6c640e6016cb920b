"""``pretrained=True`` against a server on this machine: files in the authors' layout, and all that goes wrong."""

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch

import visionmlp
from tests.randomise import randomise
from visionmlp.cli import main
from visionmlp.errors import CheckpointError, CheckpointMismatch, InvalidConfig
from visionmlp.models import pretrained
from visionmlp.models.registry import variant
from visionmlp.models.weights import OFFICIAL_FILES, WEIGHTS, PublishedWeights, family_prefix

TINY = visionmlp.list_models(test=True)


class Server(http.server.ThreadingHTTPServer):
    """Serves bytes by path; promises more bytes than it sends where it is told to; counts what is asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.promised: dict[str, int | None] = {}
        self.asked: list[str] = []

    def put(self, name: str, content: bytes) -> str:
        self.files[f"/{name}"] = content
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        length = self.server.promised.get(self.path, len(content))
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """PyTorch's cache, in a folder of the test."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def trained():
    return randomise(visionmlp.create_model("resmlp_test"), seed=3).eval()


def official_bytes(model, folder: Path) -> bytes:
    """A file as the authors would have written it."""
    layout = OFFICIAL_FILES.get(family_prefix(model.name))
    path = folder / f"official{layout.suffix if layout else '.pth'}"
    if layout is None:
        torch.save(model.state_dict(), path)
    else:
        visionmlp.save_official(path, model)
    return path.read_bytes()


def fetch(name: str, url: str, **fields):
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"url": url}, **fields)


def same(model, other, *, but: tuple[str, ...] = ()) -> bool:
    mine, theirs = model.state_dict(), other.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in mine.items() if not name.startswith(but or "\n"))


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", TINY)
def test_every_family_is_fetched_once_and_then_cached(name, server, cache, tmp_path):
    model = randomise(visionmlp.create_model(name), seed=5)
    suffix = OFFICIAL_FILES[family_prefix(name)].suffix if family_prefix(name) in OFFICIAL_FILES else ".pth"
    url = server.put(f"weights/{name}{suffix}", official_bytes(model, tmp_path))
    assert same(model, fetch(name, url))
    assert same(model, visionmlp.create_model(name, pretrained=True, pretrained_cfg_overlay={"url": url}))
    assert len(server.asked) == 1
    assert [path.name for path in cache.iterdir()] == [f"weights-{name}{suffix}"]


def test_another_cache_folder(trained, server, cache, tmp_path):
    url = server.put("weights/r.pth", official_bytes(trained, tmp_path))
    assert same(trained, fetch("resmlp_test", url, cache_dir=tmp_path / "mine"))
    assert (tmp_path / "mine" / "weights-r.pth").is_file()
    assert not cache.exists()


def test_other_classes_keep_a_fresh_classifier(trained, server, tmp_path):
    url = server.put("r.pth", official_bytes(trained, tmp_path))
    three = fetch("resmlp_test", url, num_classes=3)
    assert three.head.fc.weight.shape == (3, 16)
    assert same(trained, three, but=("head.",))
    assert same(fetch("resmlp_test", url, num_classes=0), trained)


def test_weights_without_labels_make_a_feature_extractor(trained, server, tmp_path):
    url = server.put("r.pth", official_bytes(trained, tmp_path))
    overlay = {"url": url, "num_classes": 0}
    model = timm.create_model("resmlp_test", pretrained=True, pretrained_cfg_overlay=overlay)
    assert model.num_classes == 0
    assert same(model, trained)
    ten = timm.create_model("resmlp_test", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=10)
    assert not torch.equal(ten.head.fc.weight, trained.head.fc.weight)
    assert same(trained, ten, but=("head.",))


def test_other_input_channels_are_timms_adaptation(trained, server, tmp_path):
    url = server.put("r.pth", official_bytes(trained, tmp_path))
    grey = fetch("resmlp_test", url, in_chans=1)
    torch.testing.assert_close(grey.stem.proj.weight, trained.stem.proj.weight.sum(1, keepdim=True))
    five = fetch("resmlp_test", url, in_chans=5)
    torch.testing.assert_close(five.stem.proj.weight[:, 3], trained.stem.proj.weight[:, 0] * 3 / 5)
    assert same(trained, five, but=("stem.proj.weight",))


def test_another_image_size_resizes_the_token_matrices(trained, server, tmp_path):
    url = server.put("r.pth", official_bytes(trained, tmp_path))
    larger = fetch("resmlp_test", url, img_size=(64, 48))
    expected = visionmlp.load_official(visionmlp.create_model("resmlp_test", img_size=(64, 48)), trained_state(trained))
    assert same(expected, larger)


def trained_state(model) -> dict[str, torch.Tensor]:
    return model.to_official(model.state_dict())


def test_features_only(trained, server, tmp_path):
    url = server.put("r.pth", official_bytes(trained, tmp_path))
    net = fetch("resmlp_test", url, features_only=True, out_indices=(0, 2)).eval()
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = trained.forward_intermediates(x, indices=[0, 2], intermediates_only=True)
        for level, wanted in zip(net(x), expected, strict=True):
            torch.testing.assert_close(level, wanted)


@pytest.mark.parametrize("name", [name for name in TINY if "feature_norms" in vars(variant(name).config)])
def test_dense_backbones_start_from_a_classifier(name, server, tmp_path):
    model = randomise(visionmlp.create_model(name), seed=5)
    dense = fetch(name, server.put("r.pth", official_bytes(model, tmp_path)), feature_norms=True)
    fresh = visionmlp.create_model(name, feature_norms=True)
    assert same(model, dense)
    assert all(torch.equal(v, fresh.state_dict()[k]) for k, v in dense.state_dict().items() if "feature_norms" in k)


def test_files_and_state_dicts_in_either_format(trained, tmp_path):
    visionmlp.save_official(tmp_path / "theirs.pth", trained)
    visionmlp.save_checkpoint(tmp_path / "ours.safetensors", trained)
    for overlay in (
        {"file": str(tmp_path / "theirs.pth")},
        {"file": str(tmp_path / "ours.safetensors")},
        {"state_dict": trained_state(trained)},
        {"state_dict": trained.state_dict()},
    ):
        model = timm.create_model("resmlp_test", pretrained=True, pretrained_cfg_overlay=overlay)
        assert same(trained, model)
        assert "state_dict" not in model.pretrained_cfg


def test_a_model_that_timm_saved(trained, tmp_path):
    timm.models.save_for_hf(trained, tmp_path / "saved", model_config=trained.pretrained_cfg)
    assert same(trained, timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True))


# what goes wrong


def test_a_file_that_comes_short_is_fetched_again(trained, server, cache, tmp_path):
    whole = official_bytes(trained, tmp_path)
    url = server.put("r.pth", whole[:-200])
    server.promised["/r.pth"] = len(whole)
    with pytest.raises(CheckpointError, match=rf"{len(whole) - 200} of {len(whole)} bytes came; try again") as error:
        fetch("resmlp_test", url)
    assert url in one_line(error)
    assert not list(cache.iterdir())
    server.put("r.pth", whole)
    assert same(trained, fetch("resmlp_test", url))


@pytest.mark.parametrize("content", [b"<html>please log in</html>", b"", "short"])
def test_a_broken_file_does_not_stay_in_the_cache(content, trained, server, cache, tmp_path):
    whole = official_bytes(trained, tmp_path)
    url = server.put("r.pth", whole[:-200] if content == "short" else content)
    server.promised["/r.pth"] = None
    with pytest.raises(CheckpointError, match=r"removed again: .* truncated") as error:
        fetch("resmlp_test", url)
    assert url in one_line(error)
    assert not list(cache.iterdir())
    server.put("r.pth", whole)
    assert same(trained, fetch("resmlp_test", url))


def test_a_checksum_in_the_address(trained, server, cache, tmp_path):
    content = official_bytes(trained, tmp_path)
    digest = hashlib.sha256(content).hexdigest()
    assert same(trained, fetch("resmlp_test", server.put(f"r-{digest[:8]}.pth", content)))
    url = server.put("r-0123abcd.pth", content)
    with pytest.raises(CheckpointError, match=f"SHA-256 is {digest}, not 0123abcd") as error:
        fetch("resmlp_test", url)
    assert url in one_line(error)
    assert [path.name for path in cache.iterdir()] == [f"r-{digest[:8]}.pth"]


def test_a_checksum_in_the_table(trained, server, cache, tmp_path, monkeypatch):
    content = official_bytes(trained, tmp_path)
    digest = hashlib.sha256(content).hexdigest()
    url = server.put("r.pth", content)

    def table(sha256: str) -> None:
        entry = PublishedWeights(tag="x", licence="mit", page="here", url=url, sha256=sha256)
        monkeypatch.setattr(pretrained, "WEIGHTS", {"resmlp_test": (entry,)})

    table(digest)
    assert same(trained, fetch("resmlp_test", url))
    table("0" * 64)
    with pytest.raises(CheckpointError, match="SHA-256"):
        fetch("resmlp_test", url)
    assert not list(cache.iterdir())
    table(digest)
    assert same(trained, fetch("resmlp_test", url))
    assert len(server.asked) == 2


def test_not_found_and_no_network(server, cache):
    url = server.put("x", b"") + "/missing.pth"
    with pytest.raises(CheckpointError, match="the server answers 404 Not Found") as error:
        fetch("resmlp_test", url)
    assert url in one_line(error)
    assert "load_official" in one_line(error)
    for url in ("http://127.0.0.1:9/r.pth", "nowhere/r.pth"):
        with pytest.raises(CheckpointError, match="cannot be fetched") as error:
            fetch("resmlp_test", url)
        assert url in one_line(error)
    assert not list(cache.iterdir())


def test_the_weights_of_another_model(trained, server, tmp_path):
    url = server.put("r.pth", official_bytes(trained, tmp_path))
    with pytest.raises(CheckpointMismatch) as error:
        fetch("repmlpnet_test", url)
    assert url in one_line(error)
    assert "does not fit repmlpnet_test" in one_line(error)
    with pytest.raises(CheckpointMismatch) as error:
        fetch("resmlp_test", url, dim=24, num_classes=3)
    assert "stem.proj.weight" in error.value.misshapen
    assert "head.fc.weight" not in error.value.misshapen
    with pytest.raises(CheckpointMismatch) as error:
        fetch("resmlp_test", url, depth=4)
    assert error.value.missing


class Touch:
    """Runs code when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def test_a_pickle_that_would_run_code(server, cache, tmp_path):
    for value in (Path("x"), Touch(tmp_path / "ran")):
        torch.save({"model": {"a": value}}, tmp_path / "x.pth")
        with pytest.raises(CheckpointError, match="could run code"):
            fetch("resmlp_test", server.put("r.pth", (tmp_path / "x.pth").read_bytes()))
    assert not (tmp_path / "ran").exists()
    assert not list(cache.iterdir())


# what there is


@pytest.mark.usefixtures("offline")
def test_nothing_is_downloaded_unasked(cache):
    with torch.device("meta"):
        for name in (*TINY, *WEIGHTS):
            timm.create_model(name)
        timm.create_model("resmlp_s12.dist", features_only=True)
        visionmlp.create_model("cyclemlp_b1")
    visionmlp.load_model("resmlp_test")
    assert not cache.exists()
    with pytest.raises(AssertionError, match="downloaded"):
        timm.create_model("resmlp_s12", pretrained=True)


# through load_model and the command line


@pytest.fixture
def published(trained, server, tmp_path, monkeypatch) -> str:
    """An address of weights for ``resmlp_test``, as if it stood in the table."""
    url = server.put("r.pth", official_bytes(trained, tmp_path))
    known = pretrained.resolve_pretrained_cfg
    monkeypatch.setattr(
        pretrained,
        "resolve_pretrained_cfg",
        lambda name, pretrained_cfg, pretrained_cfg_overlay: known(
            name, pretrained_cfg, {"url": url, **(pretrained_cfg_overlay or {})}
        ),
    )
    return url


def test_load_model(published, trained, tmp_path):
    model, info = visionmlp.load_model("resmlp_test", pretrained=True)
    assert same(trained, model)
    assert not model.training
    assert info.source == published
    assert visionmlp.load_model("resmlp_test", pretrained=True, num_classes=3)[0].num_classes == 3
    visionmlp.save_checkpoint(tmp_path / "m.safetensors", model)
    with pytest.raises(InvalidConfig, match="either checkpoint or pretrained"):
        visionmlp.load_model("resmlp_test", pretrained=True, checkpoint=tmp_path / "m.safetensors")
    with pytest.raises(InvalidConfig, match="give pretrained with a model name only"):
        visionmlp.load_model(tmp_path / "m.safetensors", pretrained=True)


def test_a_tag_is_not_a_file_name(tmp_path):
    with torch.device("meta"):
        model, info = visionmlp.load_model("resmlp_s12.dist")
    assert info.model == model.name == "resmlp_s12"
    assert model.pretrained_cfg["tag"] == "dist"
    visionmlp.save_checkpoint(tmp_path / "m.safetensors", visionmlp.create_model("resmlp_s12", depth=1, dim=8))
    model, _ = visionmlp.load_model("resmlp_s12.dist", checkpoint=tmp_path / "m.safetensors")
    assert model.config.depth == 1
    with pytest.raises(CheckpointError, match="no checkpoint file"):
        visionmlp.load_model("resmlp_s12.pth")


@pytest.mark.usefixtures("published")
def test_the_command_line(trained, tmp_path, capsys):
    words = ["deploy", "resmlp_test", "--pretrained", "--output", str(tmp_path / "d.safetensors"), "--seconds", "0.02"]
    assert main(words) == 0
    assert capsys.readouterr().err == ""
    deployed, _ = visionmlp.load_checkpoint(tmp_path / "d.safetensors")
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(deployed(x), trained(x), rtol=1e-4, atol=1e-5)
    assert main(["deploy", "vip_s7", "--pretrained", "--output", str(tmp_path / "v.safetensors")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
