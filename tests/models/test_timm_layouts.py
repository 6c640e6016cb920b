"""timm's own ResMLP and MLP-Mixer: their weights load into ours, which then compute the same."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.mlp_mixer import Affine, MlpMixer, ResBlock
from torch import nn

import visionmlp
from tests.randomise import randomise
from visionmlp.deploy.convert import convert_from_official
from visionmlp.errors import CheckpointMismatch, UnknownModel

RESMLP = {"mlp_ratio": 4, "block_layer": ResBlock, "norm_layer": Affine}
# ours, timm's network of the same patches and widths, what makes ours small
TWINS = {
    "resmlp_s12": (MlpMixer(7, patch_size=16, embed_dim=24, num_blocks=3, **RESMLP), {"dim": 24, "depth": 3}),
    "resmlp_b24_p8": (MlpMixer(7, patch_size=8, embed_dim=8, num_blocks=2, **RESMLP), {"dim": 8, "depth": 2}),
    "mlpmixer_b16": (
        MlpMixer(7, patch_size=16, embed_dim=32, num_blocks=3),
        {"dim": 32, "depth": 3, "token_dim": 16, "channel_dim": 128},
    ),
    "mlpmixer_s32": (
        MlpMixer(7, patch_size=32, embed_dim=24, num_blocks=2),
        {"dim": 24, "depth": 2, "token_dim": 12, "channel_dim": 96},
    ),
}


@pytest.fixture(params=TWINS)
def twins(request) -> tuple[nn.Module, str, dict[str, int]]:
    theirs, fields = TWINS[request.param]
    return randomise(theirs).eval(), request.param, fields


def agree(model: nn.Module, theirs: nn.Module) -> None:
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = theirs(x)
        assert expected.std() > 0.01
        torch.testing.assert_close(model.eval()(x), expected, rtol=0, atol=1e-5 * expected.abs().max().item())
        deployed = visionmlp.reparameterize(model)(x)
        torch.testing.assert_close(deployed, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_the_same_function(twins, tmp_path):
    theirs, name, fields = twins
    state = theirs.state_dict()
    agree(visionmlp.load_official(visionmlp.create_model(name, num_classes=7, **fields), state), theirs)
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "x.pth")
    save_file(state, tmp_path / "x.safetensors")
    for file in ("x.pth", "x.safetensors"):
        loaded = visionmlp.load_official(visionmlp.create_model(name, num_classes=7, **fields), tmp_path / file)
        agree(loaded, theirs)
        overlay = {"file": str(tmp_path / file), "num_classes": 7}
        agree(timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=7, **fields), theirs)
    # what was loaded stays what it is on the way through our own files
    visionmlp.save_checkpoint(tmp_path / "ours.safetensors", loaded)
    agree(visionmlp.load_model(tmp_path / "ours.safetensors")[0], theirs)
    other = timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay={**overlay, "num_classes": 7}, num_classes=3, **fields
    )
    assert torch.equal(other.stem.proj.weight, theirs.stem.proj.weight)
    assert other.head.fc.weight.shape[0] == 3


@pytest.mark.parametrize(
    ("name", "ours"), [("mixer_s32_224", "mlpmixer_s32"), ("resmlp_12_224", "resmlp_s12")], ids=str
)
def test_at_full_size(name, ours, tmp_path):
    """timm's registered models, through load_model and convert."""
    theirs = randomise(timm.create_model(name)).eval()
    torch.save(theirs.state_dict(), tmp_path / "x.pth")
    agree(visionmlp.load_model(ours, checkpoint=tmp_path / "x.pth")[0], theirs)
    theirs.reset_classifier(5)
    torch.save(randomise(theirs).state_dict(), tmp_path / "x.pth")
    with pytest.raises(CheckpointMismatch, match="misshapen"):
        visionmlp.load_model(ours, checkpoint=tmp_path / "x.pth")
    convert_from_official(tmp_path / "x.pth", ours, tmp_path / "ours.safetensors")
    loaded, info = visionmlp.load_model(tmp_path / "ours.safetensors")
    assert (info.model, loaded.num_classes) == (ours, 5)
    agree(loaded, theirs)


def test_the_authors_files_keep_their_function():
    model = randomise(visionmlp.create_model("mlpmixer_test"))
    again = visionmlp.load_official(visionmlp.create_model("mlpmixer_test"), model.to_official(model.state_dict()))
    assert again.config.gelu == "tanh"
    assert all(module.approximate == "tanh" for module in again.modules() if isinstance(module, nn.GELU))


@pytest.mark.parametrize("name", ["gmlp_s16_224", "gmixer_24_224"])
def test_models_of_timm_that_are_not_ours(name, tmp_path):
    with torch.device("meta"):
        state = {key: torch.zeros(value.shape) for key, value in timm.create_model(name).state_dict().items()}
    torch.save(state, tmp_path / "theirs.pth")
    with torch.device("meta"):
        models = [visionmlp.create_model(ours) for ours in ("resmlp_s12", "mlpmixer_b16", "vip_s7")]
    for model in models:
        with pytest.raises(CheckpointMismatch, match=f"does not fit {model.name}") as error:
            visionmlp.load_official(model, tmp_path / "theirs.pth")
        assert "\n" not in str(error.value)
    with pytest.raises(UnknownModel) as unknown:
        visionmlp.load_model(name, checkpoint=tmp_path / "theirs.pth")
    assert "\n" not in str(unknown.value)
