"""The neck against torchvision's with equal weights, and mmdet's rules where they differ from it."""

from collections import OrderedDict

import pytest
import torch
from torch import nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from tests.randomise import randomise
from visionmlp.errors import InvalidConfig
from visionmlp.heads.fpn import FPN

WIDTHS = (3, 5, 7)


def levels():
    generator = torch.Generator().manual_seed(0)
    sizes = ((13, 10), (7, 5), (4, 3))  # not all halves
    return [torch.randn(2, w, *s, generator=generator).double() for w, s in zip(WIDTHS, sizes, strict=True)]


def fpn(**options):
    return randomise(FPN(WIDTHS, 6, **options)).double()


def torchvisions(net, extra=None):
    """torchvision's network with the weights of ours."""
    other = FeaturePyramidNetwork(list(WIDTHS), 6, extra_blocks=extra).double()
    for mine, theirs in (
        *zip(net.lateral_convs, other.inner_blocks, strict=True),
        *zip(net.fpn_convs, other.layer_blocks, strict=False),
    ):
        theirs[0].load_state_dict(mine.conv.state_dict())
    if isinstance(extra, LastLevelP6P7):
        extra.double()
        extra.p6.load_state_dict(net.fpn_convs[3].conv.state_dict())
        extra.p7.load_state_dict(net.fpn_convs[4].conv.state_dict())
    return lambda maps: list(other(OrderedDict(enumerate(maps))).values())


@pytest.mark.parametrize(
    ("options", "extra"),
    [
        ({}, None),
        ({"extra_levels": 1}, LastLevelMaxPool()),
        ({"extra_levels": 2, "extra_from": "input", "relu_between": True}, LastLevelP6P7(7, 6)),
        ({"extra_levels": 2, "extra_from": "output", "relu_between": True}, LastLevelP6P7(6, 6)),
    ],
    ids=["levels", "pool", "input", "output"],
)
def test_torchvision_computes_the_same(options, extra):
    net = fpn(**options)
    got, expected = net(levels()), torchvisions(net, extra)(levels())
    assert len(got) == len(expected) == 3 + options.get("extra_levels", 0)
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_mmdet_has_no_relu_between_and_can_start_from_the_lateral_map():
    net = fpn(extra_levels=2, extra_from="lateral")
    maps = levels()
    p6 = net.fpn_convs[3](net.lateral_convs[2](maps[2]))
    torch.testing.assert_close(net(maps)[3:], [p6, net.fpn_convs[4](p6)])
    assert (p6 < 0).any()


def test_fresh_convolutions_are_xaviers():
    torch.manual_seed(0)
    net = FPN((64, 128), 96, extra_levels=1, extra_from="input")
    convs = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    assert len(convs) == 5
    for conv in convs:
        area = conv.kernel_size[0] ** 2
        bound = (6 / (area * (conv.in_channels + conv.out_channels))) ** 0.5
        assert 0.95 * bound < conv.weight.abs().max() <= bound
        assert conv.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
        assert not conv.bias.any()


def test_names_are_mmdets():
    assert list(fpn(extra_levels=1, extra_from="input").state_dict()) == [
        f"{convs}.{index}.conv.{kind}"
        for convs, count in (("lateral_convs", 3), ("fpn_convs", 4))
        for index in range(count)
        for kind in ("weight", "bias")
    ]


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (((), 6), {}, "needs levels"),
        (((3,), 0), {}, "at least 1"),
        (((3,), 6), {"extra_levels": -1}, "extra_levels must be"),
        (((3,), 6), {"extra_from": "p5"}, "pool, input, lateral or output"),
    ],
)
def test_what_cannot_be(arguments, options, message):
    with pytest.raises(InvalidConfig, match=message):
        FPN(*arguments, **options)


def test_another_number_of_levels():
    with pytest.raises(InvalidConfig, match="takes 3 levels, got 2"):
        fpn()(levels()[:2])
