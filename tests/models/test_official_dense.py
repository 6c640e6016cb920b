"""Files in mmseg's layout, made here as its classes name their parts: read, written, read again."""

import pytest
import torch

import visionmlp
from tests.models.levels import image
from tests.randomise import randomise
from visionmlp.errors import CheckpointError, CheckpointMismatch, InvalidConfig

FOUR_STAGES = {
    "asmlp_test": {"blocks": (1, 1, 2, 1), "dim": 6},
    "cyclemlp_test": {"blocks": (1, 1, 1, 1), "dims": (4, 6, 8, 10), "mlp_ratios": (2,) * 4},
    "hiremlp_test": {
        "blocks": (1, 1, 1, 1),
        "dims": (4, 6, 8, 10),
        "region_sizes": (2,) * 4,
        "step_strides": (2,) * 4,
        "step_dilations": (1,) * 4,
    },
}
"""No pyramid stands between such a backbone and its head."""


def backbone(name="asmlp_test"):
    return visionmlp.create_model(name, num_classes=0, feature_norms=True, **FOUR_STAGES[name])


def segmenter(name="asmlp_test", head="upernet", num_classes=5, seed=0):
    net = visionmlp.create_segmenter(backbone(name), head=head, num_classes=num_classes, channels=8)
    return randomise(net, seed).eval()


def authors_state(net):
    """What their training would have saved: the backbone in its authors' names, the rest in mmseg's."""
    state = {f"backbone.{k}": v for k, v in net.backbone.to_official(net.backbone.state_dict()).items()}
    inner = "levels.net.model."
    return state | {k: v for k, v in net.state_dict().items() if not k.startswith(inner)}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(value, b[key]) for key, value in a.items())


def test_names_are_those_of_the_reference():
    """shared/reference, "Checkpoints that exist": UperNet on AS-MLP."""
    state = authors_state(segmenter())
    for name in (
        "backbone.patch_embed.proj.weight",
        "backbone.norm3.weight",
        "decode_head.psp_modules.3.1.conv.weight",
        "decode_head.psp_modules.0.1.bn.running_var",
        "decode_head.bottleneck.conv.weight",
        "decode_head.lateral_convs.2.bn.weight",
        "decode_head.fpn_convs.2.conv.weight",
        "decode_head.fpn_bottleneck.bn.bias",
        "decode_head.conv_seg.bias",
        "auxiliary_head.convs.0.conv.weight",
        "auxiliary_head.convs.0.bn.running_mean",
        "auxiliary_head.conv_seg.weight",
    ):
        assert name in state
    assert {name.partition(".")[0] for name in state} == {"backbone", "decode_head", "auxiliary_head"}
    fpn = authors_state(segmenter(head="semantic_fpn"))
    assert "neck.lateral_convs.3.conv.bias" in fpn
    assert "neck.fpn_convs.0.conv.weight" in fpn
    assert "decode_head.scale_heads.3.4.conv.weight" in fpn


@pytest.mark.parametrize("name", FOUR_STAGES)
@pytest.mark.parametrize("head", ["upernet", "semantic_fpn"])
@torch.no_grad()
def test_both_ways(name, head, tmp_path):
    source = segmenter(name, head)
    state = authors_state(source)
    file = {
        "meta": {"mmcv_version": "1.2", "CLASSES": ["a"], "iter": 160_000},
        "state_dict": state,
        "optimizer": {"state": {}, "param_groups": [{"lr": 6e-5}]},
    }
    torch.save(file, tmp_path / "theirs.pth")
    target = segmenter(name, head, seed=1)
    assert visionmlp.load_official_dense(target, tmp_path / "theirs.pth") is target
    assert equal(target.state_dict(), source.state_dict())
    assert torch.equal(target(image(1, (64, 64), torch.float32)), source(image(1, (64, 64), torch.float32)))
    visionmlp.save_official_dense(tmp_path / "ours.pth", target)
    again = torch.load(tmp_path / "ours.pth", weights_only=True)["state_dict"]
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], value) for key, value in state.items())
    # from several processes, without counts of batches, as a mapping
    bare = {f"module.{k}": v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    compiled = torch.compile(segmenter(name, head, seed=2))
    visionmlp.load_official_dense(compiled, bare)
    assert torch.equal(compiled._orig_mod(image(1, (64, 64), torch.float32)), source(image(1, (64, 64), torch.float32)))


def test_parts_of_a_file():
    """Other classes, or another head: the backbone, and what of the rest is wanted."""
    source, target = segmenter(), segmenter(head="semantic_fpn", num_classes=3, seed=1)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    visionmlp.load_official_dense(target, authors_state(source), only={"backbone"})
    assert equal(target.backbone.state_dict(), source.backbone.state_dict())
    rest = {key for key in before if not key.startswith("levels.")}
    assert rest
    assert all(torch.equal(before[key], target.state_dict()[key]) for key in rest)
    with pytest.raises(InvalidConfig, match="has no part neck; it has auxiliary_head, backbone, decode_head"):
        visionmlp.load_official_dense(target, authors_state(source), only={"backbone", "neck"})


def test_a_pyramid_keeps_its_values():
    source = segmenter()
    target = visionmlp.create_segmenter(backbone(), num_classes=5, channels=8, out_channels=6)
    visionmlp.load_official_dense(target, authors_state(source), only=["backbone"])
    assert equal(target.backbone.state_dict(), source.backbone.state_dict())


def test_what_does_not_fit(tmp_path):
    net = segmenter(seed=1)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    state = authors_state(segmenter())
    classifier = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    with pytest.raises(CheckpointError, match=r"the mapping has no backbone\.\* .* before the network is built"):
        visionmlp.load_official_dense(net, classifier)
    with pytest.raises(CheckpointMismatch, match="fit a segment network of asmlp_test") as error:
        visionmlp.load_official_dense(net, authors_state(segmenter(num_classes=7)))
    assert error.value.misshapen == [
        f"{h}.conv_seg.{k}" for h in ("auxiliary_head", "decode_head") for k in ("bias", "weight")
    ]
    gap = dict(state)
    gap.pop("backbone.norm0.weight")
    gap["decode_head.more"] = torch.zeros(1)
    with pytest.raises(CheckpointMismatch) as error:
        visionmlp.load_official_dense(net, gap)
    assert error.value.missing == ["levels.net.model.feature_norms.0.weight"]
    assert error.value.unexpected == ["decode_head.more"]
    assert equal(net.state_dict(), before)
    deployed = visionmlp.reparameterize(net)
    with pytest.raises(CheckpointError, match="deploy form"):
        visionmlp.load_official_dense(deployed, state)
    with pytest.raises(CheckpointError, match="deploy form"):
        visionmlp.save_official_dense(tmp_path / "m.pth", deployed)
    with pytest.raises(CheckpointError, match=r"go into a \.pth file"):
        visionmlp.save_official_dense(tmp_path / "m.safetensors", net)
    with pytest.raises(CheckpointError, match="only four-stage families fit"):
        visionmlp.save_official_dense(
            tmp_path / "m.pth", visionmlp.create_segmenter("mlpmixer_test", num_classes=3, channels=8)
        )
    with pytest.raises(CheckpointError, match="no authors' code"):
        visionmlp.save_official_dense(
            tmp_path / "m.pth", visionmlp.create_segmenter("sparsemlp_moe_test", num_classes=3, channels=8)
        )
    assert not list(tmp_path.iterdir())
