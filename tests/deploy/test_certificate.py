import copy
import dataclasses
import functools

import pytest
import torch
from torch import nn

from visionmlp.deploy import certificate as module
from visionmlp.deploy.certificate import CertificateError, certificate_table, certify, deploy, randomise, relative_error
from visionmlp.errors import CheckpointError, InvalidConfig
from visionmlp.files import OutputError, beside
from visionmlp.layers.fusible import Fusible, reparameterize
from visionmlp.models.checkpoint import load_checkpoint, load_model, save_checkpoint

MODELS = ("repmlpnet_test", "resmlp_test", "mlpmixer_test")
SIZE = (3, 8, 8)
quick = functools.partial(certify, seconds=0.02)


class ConvNorm(Fusible):
    """Convolution and norm that fold into one convolution, with a mistake to choose."""

    def __init__(self, mistake: str = "") -> None:
        super().__init__()
        self.conv, self.norm, self.mistake = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), mistake

    def forward(self, x):
        return self.norm(self.conv(x))

    def fused(self) -> nn.Module:
        folded = copy.deepcopy(self.conv).double()
        variance = self.norm.running_var.double() + self.norm.eps
        scale = self.norm.weight.double() / variance.sqrt()
        mean, shift = self.norm.running_mean.double(), self.norm.bias.double()
        if self.mistake == "mean":
            mean = torch.zeros_like(mean)
        if self.mistake == "bias":
            shift = torch.zeros_like(shift)
        if self.mistake == "nan":
            scale = scale * float("nan")
        folded.weight = nn.Parameter(folded.weight * scale.view(-1, 1, 1, 1))
        folded.bias = nn.Parameter((folded.bias - mean) * scale + shift)
        return folded.to(self.conv.weight.dtype)


def net(mistake: str = "") -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(ConvNorm(mistake), nn.Flatten()).eval()


def test_a_right_fusion_passes() -> None:
    deployed, certificate = quick(net(), SIZE)
    assert certificate.passed
    assert 0 < certificate.float32 < 1e-5
    assert (certificate.training.norms, certificate.deploy.norms) == (1, 0)
    assert (certificate.training.modules, certificate.deploy.modules) == (3, 2)
    assert isinstance(deployed[0], nn.Conv2d)


@pytest.mark.parametrize("mistake", ["mean", "bias"])
def test_a_fusion_that_is_right_only_for_fresh_norms_fails(mistake: str) -> None:
    _, certificate = quick(net(mistake), SIZE)
    assert certificate.float64 < 1e-10
    assert certificate.float32 < 1e-5
    assert certificate.randomised > 1e-2
    assert not certificate.passed


def test_not_a_number_fails() -> None:
    _, certificate = quick(net("nan"), SIZE)
    assert not certificate.passed


def test_a_model_that_rounds_by_itself_is_not_held_against_its_fusion() -> None:
    _, certificate = quick(net(), SIZE)
    assert 0 < certificate.rounding < 1e-6
    rough = dataclasses.replace(certificate, rounding=1e-4, float32=3e-4)
    assert rough.passed
    assert not dataclasses.replace(rough, float32=5e-4).passed


@pytest.mark.parametrize("limit", ["float64", "float32", "randomised"])
def test_each_error_alone_decides(limit: str) -> None:
    _, certificate = quick(net(), SIZE)
    assert not dataclasses.replace(certificate, **{limit: 1e-4}).passed
    assert not dataclasses.replace(certificate, **{limit: float("nan")}).passed


@pytest.mark.parametrize("name", MODELS)
def test_every_family_is_certified_and_the_file_is_its_deploy_form(name: str, tmp_path) -> None:
    model, info = load_model(name)
    randomise(model, seed=1)
    before = copy.deepcopy(model.state_dict())
    info = dataclasses.replace(info, class_names=[str(i) for i in range(10)])
    certificate = deploy(model, info, tmp_path / "d.safetensors", seconds=0.02)
    assert certificate.passed
    assert certificate.float32 > 0, "compared zeros"
    assert certificate.deploy.modules < certificate.training.modules
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    reread, reread_info = load_checkpoint(tmp_path / "d.safetensors")
    assert reread_info.form == "deploy"
    assert reread_info.class_names == info.class_names
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert relative_error(model(image), reread(image)) < 1e-5
    assert [path.name for path in tmp_path.iterdir()] == ["d.safetensors"]
    assert certificate_table(certificate).row_count == 8


def test_a_failed_certificate_leaves_the_old_file(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "d.safetensors"
    output.write_bytes(b"old")
    monkeypatch.setattr(module, "reparameterize", wrong)
    with pytest.raises(CertificateError, match="nothing was written"):
        deploy(*load_model("resmlp_test"), output, force=True, seconds=0.02)
    assert output.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [output]


def wrong(model: nn.Module) -> nn.Module:
    """A deploy form whose last bias is off."""
    result = reparameterize(model)
    with torch.no_grad():
        result.get_classifier().bias += 0.01
    return result


def test_a_file_that_does_not_read_back_is_not_kept(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path):
        model, info = load_checkpoint(path)
        randomise(model)
        return model, info

    monkeypatch.setattr(module, "load_checkpoint", broken)
    with pytest.raises(CertificateError, match="read back"):
        deploy(*load_model("resmlp_test"), tmp_path / "d.safetensors", seconds=0.02)
    assert not list(tmp_path.iterdir())


def test_a_deploy_form_cannot_be_deployed(tmp_path) -> None:
    model, info = load_model("resmlp_test")
    with pytest.raises(CheckpointError, match="deploy form already"):
        deploy(reparameterize(model), info, tmp_path / "d.safetensors")


def test_an_existing_file_needs_force_and_is_found_before_the_work(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "certify", None)
    output = tmp_path / "d.safetensors"
    output.write_bytes(b"old")
    with pytest.raises(OutputError, match="exists"):
        deploy(*load_model("resmlp_test"), output)
    with pytest.raises(OutputError, match=r"cannot write .*No such file"):
        deploy(*load_model("resmlp_test"), tmp_path / "missing" / "d.safetensors")
    with pytest.raises(OutputError, match="folder"):
        deploy(*load_model("resmlp_test"), tmp_path)


def test_a_file_that_no_reader_would_take_is_refused(tmp_path) -> None:
    with pytest.raises(OutputError, match=r"noext must end in \.safetensors"):
        deploy(*load_model("resmlp_test"), tmp_path / "noext")
    assert not list(tmp_path.iterdir())


def test_the_training_form_is_not_overwritten_by_its_deploy_form(tmp_path) -> None:
    path, link = tmp_path / "model.safetensors", tmp_path / "link.safetensors"
    save_checkpoint(path, load_model("resmlp_test")[0])
    link.symlink_to(path)
    before = path.read_bytes()
    for output in (path, link):
        with pytest.raises(OutputError, match="holds the training form"):
            deploy(*load_model(path), output, force=True, seconds=0.02)
    assert path.read_bytes() == before


def test_bfloat16_is_deployed_in_float32(tmp_path) -> None:
    model, info = load_model("resmlp_test")
    randomise(model)
    model.bfloat16()
    assert deploy(model, info, tmp_path / "d.safetensors", seconds=0.02).passed
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}
    reread, _ = load_checkpoint(tmp_path / "d.safetensors")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert relative_error(copy.deepcopy(model).float()(images), reread(images)) < 1e-5


@pytest.mark.parametrize(
    "options", [{"batch_size": 0}, {"batch_size": -1}, {"seconds": 0}, {"seconds": -1}, {"seconds": float("nan")}]
)
def test_what_cannot_be_measured_is_refused(options: dict, tmp_path) -> None:
    with pytest.raises(InvalidConfig, match=next(iter(options)).replace("_", "-")):
        deploy(*load_model("resmlp_test"), tmp_path / "d.safetensors", **options)
    assert not list(tmp_path.iterdir())


def test_beside_reports_what_the_system_says_and_keeps_nothing(tmp_path) -> None:
    def fill_the_disk() -> None:
        with beside(tmp_path / "x", force=False) as partial:
            partial.write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match="No space left"):
        fill_the_disk()
    assert not list(tmp_path.iterdir())


def test_relative_error() -> None:
    reference = torch.tensor([1.0, -4.0])
    assert relative_error(reference, torch.tensor([1.5, -4.0])) == 0.125
    assert relative_error(torch.zeros(2), torch.zeros(2)) == 0
    assert relative_error(torch.zeros(2), torch.ones(2)) > 1


def test_randomise_leaves_nothing_as_it_was() -> None:
    model, _ = load_model("repmlpnet_test")
    randomise(model)
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if value.is_floating_point() and value.numel() > 1:
            assert value.unique().numel() > 1, name
        if name.endswith("running_var"):
            assert value.min() > 0
