"""Segmenters of every family: shapes, forms, options; what their heads compute is in tests/heads."""

import copy

import pytest
import torch
from torch.nn import functional as F

import visionmlp
from tests.models.levels import image
from tests.randomise import randomise
from tests.shallow import FEWEST
from visionmlp.errors import InvalidConfig, InvalidImageSize, NotInEvalMode, UnknownModel
from visionmlp.heads.conv import ConvNormAct
from visionmlp.layers.fusible import is_training_form
from visionmlp.layers.packing import PackedConv2d
from visionmlp.models.segmenter import Segmenter
from visionmlp.ops.product import can_pack

HEADS = ("upernet", "semantic_fpn")
SMALL = {"upernet": {"channels": 8, "auxiliary_channels": 4}, "semantic_fpn": {"channels": 8, "neck_channels": 6}}


def small(name, head="upernet", num_classes=5, **options) -> Segmenter:
    backbone = visionmlp.create_model(name, num_classes=0, **FEWEST[name])
    return visionmlp.create_segmenter(backbone, head=head, num_classes=num_classes, **{**SMALL[head], **options})


@pytest.fixture(params=FEWEST)
def name(request):
    return request.param


@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_every_family_and_its_deploy_form(name, head):
    """Of images of any size, in windows where the family needs them."""
    net = randomise(small(name, head, tile_overlap=0)).double().eval()
    x = image(1, (45, 70))
    logits = net(x)
    assert logits.shape == (1, 5, 45, 70)
    main, auxiliary = net(x, auxiliary=True)
    assert main.shape == (1, 5, 12, 18)
    torch.testing.assert_close(logits, F.interpolate(main, size=(45, 70), mode="bilinear", align_corners=False))
    deployed = visionmlp.reparameterize(net)
    assert is_training_form(net)
    assert not is_training_form(deployed)
    others = deployed(x, auxiliary=True)
    torch.testing.assert_close(others[0], main, rtol=1e-10, atol=1e-10)
    if head == "upernet":
        assert auxiliary.shape == (1, 5, 3, 5)
        torch.testing.assert_close(others[1], auxiliary, rtol=1e-10, atol=1e-10)
    else:
        assert auxiliary is others[1] is None
    assert main.std() > 1e-3


@pytest.mark.parametrize("head", HEADS)
@torch.inference_mode()
def test_packed_segmenters_compute_the_same(name, head):
    deployed = visionmlp.reparameterize(randomise(small(name, head)).eval())
    packed = visionmlp.prepack(deployed)
    x = image(2, dtype=torch.float32)
    torch.testing.assert_close(packed(x), deployed(x), rtol=1e-3, atol=1e-4)
    assert isinstance(packed.decode_head.conv_seg, PackedConv2d) == can_pack(torch.ones(2, 2))


@torch.no_grad()
def test_a_broken_fusion_is_noticed(monkeypatch):
    net = randomise(small("cyclemlp_test")).double().eval()
    whole = ConvNormAct.fused

    def without_shift(self):
        fused = whole(self)
        fused.conv.bias.zero_()
        return fused

    monkeypatch.setattr(ConvNormAct, "fused", without_shift)
    assert (visionmlp.reparameterize(net)(image()) - net(image())).abs().max() > 1e-3


def test_a_training_mode_does_not_fuse():
    with pytest.raises(NotInEvalMode):
        visionmlp.reparameterize(small("cyclemlp_test"))


def test_a_name_is_built_as_the_authors_dense_code_does():
    with torch.device("meta"):
        net = visionmlp.create_segmenter("asmlp_test", num_classes=3, img_size=(64, 32))
        fpn = visionmlp.create_segmenter("resmlp_test", head="semantic_fpn", num_classes=3)
    assert net.backbone.config.feature_norms
    assert net.backbone.config.img_size == (64, 32)
    assert net.num_classes == 3
    assert net.decode_head.bottleneck.conv.out_channels == 512
    assert net.auxiliary_head.convs[0].conv.out_channels == 256
    assert fpn.neck.out_channels == 256
    assert fpn.decode_head.conv_seg.in_channels == 128
    assert fpn.auxiliary_head is None
    assert not {name for name in net.state_dict() if "head.fc" in name}


def test_a_backbone_is_used_as_it_is():
    backbone = randomise(visionmlp.create_model("cyclemlp_test"))
    net = visionmlp.create_segmenter(backbone, num_classes=3, **SMALL["upernet"])
    state = net.backbone.state_dict()
    assert state
    assert all(torch.equal(value, state[key]) for key, value in backbone.state_dict().items() if key in state)
    assert not net.backbone.config.feature_norms
    assert backbone.num_classes == 10


@pytest.mark.parametrize("head", HEADS)
def test_options_build_the_same_network_again(head):
    given = {"tile_overlap": 0, "out_indices": (0, -1), "out_channels": 6, "dropout": 0.25, "auxiliary_channels": 3}
    net = small("mlpmixer_test", head, **given)
    again = visionmlp.create_segmenter(net.backbone, **net.options)
    assert again.options == net.options
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in net.state_dict().items()}
    assert again.decode_head.dropout.p == again.auxiliary_head.dropout.p == 0.25
    assert net.options["out_indices"] == [0, -1]


@torch.no_grad()
def test_in_half_precision():
    net = randomise(small("cyclemlp_test")).eval()
    expected = net(image(dtype=torch.float32))
    half = copy.deepcopy(net).bfloat16()(image(dtype=torch.bfloat16))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = net(image(dtype=torch.float32))
    assert half.dtype == torch.bfloat16
    for logits in (half, mixed):
        assert (logits.float() - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "unet"}, "upernet or semantic_fpn, got 'unet'"),
        ({"num_classes": 0}, "num_classes must be"),
        ({"num_classes": 2.0}, "num_classes must be"),
        ({"num_classes": 1}, "num_classes must be"),
        ({"channels": -1}, "channels must be"),
        ({"auxiliary_channels": -1}, "channels must be"),
        ({"neck_channels": 8}, "upernet has no neck"),
        ({"head": "semantic_fpn", "neck_channels": 0}, "at least 1"),
        ({"dropout": 1.5}, "dropout must be"),
        ({"tile_overlap": 5}, "overlap of mlpmixer_test must be"),
        ({"tile_overlap": 8.0}, "tile_overlap must be"),
        ({"out_indices": [7]}, "feature levels 0 to"),
        ({"out_indices": ["a"]}, "out_indices must be"),
        ({"out_channels": 0}, "out_channels must be"),
        ({"img_size": 64}, "build mlpmixer_test with it"),
    ],
)
def test_options_that_cannot_be(options, message):
    backbone = visionmlp.create_model("mlpmixer_test")
    with pytest.raises(InvalidConfig, match=message) as error:
        visionmlp.create_segmenter(backbone, **{"num_classes": 3, **options})
    assert "\n" not in str(error.value)


def test_backbones_that_cannot_be():
    with pytest.raises(UnknownModel, match="cyclemlp_b1"):
        visionmlp.create_segmenter("cyclemlp_b1x", num_classes=3)
    with pytest.raises(InvalidConfig, match=r"model of visionmlp or its name, got Linear"):
        visionmlp.create_segmenter(torch.nn.Linear(2, 2), num_classes=3)  # type: ignore[arg-type]
    deployed = visionmlp.reparameterize(visionmlp.create_model("cyclemlp_test").eval())
    with pytest.raises(InvalidConfig, match="deploy form"):
        visionmlp.create_segmenter(deployed, num_classes=3)


def test_an_image_of_another_size_says_what_helps():
    net = small("mlpmixer_test").eval()
    with pytest.raises(InvalidImageSize, match=r"exactly 32x32, got 45x70.*img_size.*tile_overlap"):
        net(image(1, (45, 70), torch.float32))
