"""timm's conventions hold, and libraries that build on them work: transformers, segmentation-models-pytorch."""

import re
from collections import OrderedDict
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import visionmlp
from tests.contracts.conftest import TINY
from visionmlp.errors import InvalidConfig
from visionmlp.models.registry import variant

FOUR_STAGES = {"repmlpnet": "t224", "asmlp": "t", "hiremlp": "t", "cyclemlp": "b1"}
PUBLISHED = visionmlp.list_models()


# timm ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*PUBLISHED, *TINY])
def test_timm_selects_levels(name):
    """``out_indices=(1, 2, 3)``; a model of fewer than four levels says which there are."""
    config = variant(name).config
    height, width = config.img_size
    count = len(config.blocks) if isinstance(getattr(config, "blocks", None), tuple) else config.depth
    with torch.device("meta"):
        if count < 4:
            assert name in ("repmlpnet_cifar", *TINY)
            with pytest.raises(InvalidConfig, match=rf"{name} has feature levels 0 to {count - 1}, got \(1, 2, 3\)"):
                timm.create_model(name, features_only=True, out_indices=(1, 2, 3))
            return
        net = timm.create_model(name, features_only=True, out_indices=(1, 2, 3)).eval()
        levels = net(torch.empty(1, 3, height, width))
    info = net.feature_info
    assert len(levels) == 3
    for level, dim, stride in zip(levels, info.channels(), info.reduction(), strict=True):
        assert level.shape == (1, dim, height // stride, width // stride)
    strides = [level["reduction"] for level in info.info]
    assert (strides == [4, 8, 16, 32]) == (name.split("_")[0] in FOUR_STAGES)


# transformers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TINY)
def test_transformers_loads_a_backbone(name):
    transformers = pytest.importorskip("transformers")
    config = transformers.TimmBackboneConfig(backbone=name, out_indices=[0, -1])
    torch.manual_seed(0)
    backbone = transformers.AutoBackbone.from_config(config).eval()
    assert isinstance(backbone, transformers.TimmBackbone)
    torch.manual_seed(0)
    same = timm.create_model(name, features_only=True, out_indices=(0, -1)).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        maps, expected = backbone(x).feature_maps, same(x)
    assert [level.shape[1] for level in maps] == list(backbone.channels) == same.feature_info.channels()
    assert all(torch.equal(a, b) for a, b in zip(maps, expected, strict=True))


def test_transformers_loads_a_published_model():
    transformers = pytest.importorskip("transformers")
    config = transformers.TimmBackboneConfig(backbone="repmlpnet_t224", out_indices=[1, 2, 3], num_channels=4)
    backbone = transformers.TimmBackbone(config).eval()
    assert list(backbone.channels) == [128, 256, 512]
    with torch.no_grad():
        maps = backbone(torch.randn(1, 4, 224, 224)).feature_maps
    assert [tuple(level.shape) for level in maps] == [(1, 128, 28, 28), (1, 256, 14, 14), (1, 512, 7, 7)]


# segmentation-models-pytorch -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", FOUR_STAGES)
def test_smp_segments_with_every_four_stage_family(prefix):
    smp = pytest.importorskip("segmentation_models_pytorch")
    size = 224 if prefix == "repmlpnet" else 64
    net = smp.UPerNet(f"tu-{prefix}_{FOUR_STAGES[prefix]}", encoder_weights=None, classes=3, decoder_channels=32)
    y = net(torch.randn(2, 3, size, size))
    assert y.shape == (2, 3, size, size)
    y.square().sum().backward()
    assert not [n for n, p in net.named_parameters() if p.grad is None]


def test_smp_passes_options_of_the_backbone():
    smp = pytest.importorskip("segmentation_models_pytorch")
    net = smp.FPN("tu-repmlpnet_t224", encoder_weights=None, in_channels=4, classes=3, img_size=(64, 96))
    assert net.eval()(torch.randn(1, 4, 128, 96)).shape == (1, 3, 128, 96)
    with pytest.raises(InvalidConfig, match="did you mean kernel_sizes"):
        smp.FPN("tu-repmlpnet_t224", encoder_weights=None, kernel_size=3)


@pytest.mark.parametrize("name", TINY)
def test_smp_decoders_take_the_pyramid_of_every_family(name):
    pytest.importorskip("segmentation_models_pytorch")
    from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder

    backbone = visionmlp.dense_features(name, tile_overlap=0)
    # smp counts from strides 1 and 2, which this decoder does not read
    decoder = UPerNetDecoder([3, 0, *backbone.feature_info.channels()], decoder_channels=16)
    x = torch.randn(2, 3, 64, 96)
    y = decoder([x, x[:, :0, ::2, ::2], *backbone(x)])
    assert y.shape == (2, 16, 16, 24)
    y.square().sum().backward()
    assert not [n for n, p in backbone.named_parameters() if p.grad is None]


# torchvision ---------------------------------------------------------------------------------------------------------


def test_torchvision_detects_with_the_pyramid():
    detection = pytest.importorskip("torchvision.models.detection")

    class Levels(nn.Module):
        out_channels = 16

        def __init__(self):
            super().__init__()
            self.net = visionmlp.dense_features("mlpmixer_test", tile_overlap=8, out_channels=self.out_channels)

        def forward(self, x):
            return OrderedDict((str(i), level) for i, level in enumerate(self.net(x)))

    anchors = detection.anchor_utils.AnchorGenerator(
        sizes=tuple((8 * stride,) for stride in (4, 8, 16, 32)), aspect_ratios=((0.5, 1.0, 2.0),) * 4
    )
    net = detection.RetinaNet(Levels(), num_classes=3, anchor_generator=anchors, min_size=64, max_size=96)
    boxes = [{"boxes": torch.tensor([[8.0, 8.0, 40.0, 50.0]]), "labels": torch.tensor([1])}]
    losses = net([torch.rand(3, 60, 81)], boxes)
    sum(losses.values()).backward()
    assert not [n for n, p in net.backbone.named_parameters() if p.grad is None]
    assert net.eval()([torch.rand(3, 60, 81)])[0]["boxes"].shape[1] == 4


# docs/dense.md -------------------------------------------------------------------------------------------------------


def test_python_on_the_page_runs():
    pytest.importorskip("transformers")
    pytest.importorskip("segmentation_models_pytorch")
    page = (Path(__file__).parents[1] / "docs" / "dense.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 7
    for block in blocks:
        exec(compile(block, "dense.md", "exec"), {})
