"""UperNet against transformers' with equal weights, Semantic FPN against its formula, and what mmseg defines beside."""

import copy
import math
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.randomise import randomise
from visionmlp.errors import InvalidConfig
from visionmlp.heads.conv import ConvNormAct
from visionmlp.heads.pixels import FCNHead
from visionmlp.heads.semantic_fpn import SemanticFPNHead
from visionmlp.heads.upernet import UperNetHead
from visionmlp.layers.fusible import reparameterize
from visionmlp.layers.synchronised_norm import synchronise_norms

WIDTHS = (4, 6, 8, 10)
CLASSES = 5


def levels(batch=2, side=52):
    generator = torch.Generator().manual_seed(0)
    sizes = [(-(-side // s), -(-(side + 24) // s)) for s in (4, 8, 16, 32)]
    return [torch.randn(batch, w, *s, generator=generator).double() for w, s in zip(WIDTHS, sizes, strict=True)]


def upernet():
    return randomise(UperNetHead(WIDTHS, CLASSES, channels=12)).double()


def fcn():
    return randomise(FCNHead(WIDTHS[2], CLASSES, channels=7)).double()


def semantic_fpn():
    return randomise(SemanticFPNHead(6, (4, 8, 16, 32), CLASSES, channels=7)).double()


def neck_levels():
    return [F.pad(level[:, :6], (0, 0, 0, 0, 0, max(0, 6 - level.shape[1]))) for level in levels()]


# UperNet -------------------------------------------------------------------------------------------------------------


def transformers_names(head):
    """A head's state with the names of transformers."""
    renamed = {}
    for name, value in head.state_dict().items():
        name = re.sub(r"\.bn\.", ".batch_norm.", name).replace("conv_seg", "classifier")
        renamed[name] = value
    return renamed


@torch.no_grad()
def test_transformers_computes_the_same():
    """Main and auxiliary logits of one network, at the image's size."""
    transformers = pytest.importorskip("transformers")
    config = transformers.UperNetConfig(
        backbone_config=transformers.ConvNextConfig(
            hidden_sizes=list(WIDTHS), depths=[1] * 4, out_features=[f"stage{i}" for i in (1, 2, 3, 4)]
        ),
        hidden_size=12,
        num_labels=CLASSES,
        auxiliary_channels=7,
        auxiliary_in_channels=WIDTHS[2],
    )
    net = transformers.UperNetForSemanticSegmentation(config).double().eval()
    main, auxiliary = upernet().eval(), fcn().eval()
    net.decode_head.load_state_dict(transformers_names(main))
    net.auxiliary_head.load_state_dict(transformers_names(auxiliary))
    x = torch.randn(2, 3, 96, 64).double()
    maps = net.backbone(x).feature_maps
    seen = []
    net.auxiliary_head.register_forward_hook(lambda *hooked: seen.append(hooked[2]))
    logits = net(x).logits
    expected = F.interpolate(main(maps), size=(96, 64), mode="bilinear", align_corners=False)
    torch.testing.assert_close(expected, logits, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(auxiliary(maps), seen[0], rtol=1e-10, atol=1e-10)
    # and of maps whose sides are no halves of each other
    torch.testing.assert_close(main(levels()), net.decode_head(levels()), rtol=1e-10, atol=1e-10)
    assert logits.std() > 0.1


def test_upernet_refuses_to_normalise_one_value():
    """mmsegmentation#272: the pooling to 1x1 of one image."""
    head = upernet().train()
    with pytest.raises(InvalidConfig, match=r"one value per channel.*at least two images"):
        head(levels(1))
    assert head(levels(2)).shape == (2, CLASSES, 13, 19)
    assert head.eval()(levels(1)).shape == (1, CLASSES, 13, 19)
    head.train()
    for module in head.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    assert head(levels(1)).shape == (1, CLASSES, 13, 19)  # frozen norms have no such limit


def test_a_norm_over_processes_may_see_one_value_in_each(monkeypatch):
    layer = synchronise_norms(ConvNormAct(3, 4, 1)).train()
    x = torch.randn(1, 3, 1, 1)
    with pytest.raises(InvalidConfig, match="synchronise norms"):
        layer(x)
    monkeypatch.setattr("visionmlp.heads.conv.are_several", lambda: True)
    # only the norm's own refusal is left, as there are no others here
    with pytest.raises(ValueError, match="more than 1 value"):
        layer(x)


# Semantic FPN --------------------------------------------------------------------------------------------------------


def functional_semantic_fpn(state, maps):
    """Kirillov et al.'s Figure 3, written down with functions alone."""

    def block(x, name):
        x = F.conv2d(x, state[f"{name}.conv.weight"], padding=1)
        mean, var, weight, bias = (
            state[f"{name}.bn.{k}"].view(1, -1, 1, 1) for k in ("running_mean", "running_var", "weight", "bias")
        )
        return ((x - mean) / (var + 1e-5).sqrt() * weight + bias).clamp(min=0)

    def up(x, size):
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)

    total = block(maps[0], "scale_heads.0.0")
    for i, x in enumerate(maps[1:], 1):
        for k in range(i):
            x = block(x, f"scale_heads.{i}.{2 * k}")
            x = up(x, (2 * x.shape[2], 2 * x.shape[3]))
        total = total + up(x, total.shape[2:])
    return torch.einsum("bchw,kc->bkhw", total, state["conv_seg.weight"][:, :, 0, 0]) + state["conv_seg.bias"].view(
        1, -1, 1, 1
    )


@torch.no_grad()
def test_semantic_fpn_is_its_formula():
    head = semantic_fpn().eval()
    assert [len(branch) for branch in head.scale_heads] == [1, 2, 4, 6]
    maps = neck_levels()
    torch.testing.assert_close(head(maps), functional_semantic_fpn(head.state_dict(), maps), rtol=1e-10, atol=1e-10)


def test_strides_that_do_not_double():
    for strides in ((4, 12), (4, 2), ()):
        with pytest.raises(InvalidConfig, match="powers of two"):
            SemanticFPNHead(6, strides, CLASSES)


# all -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [upernet, fcn, semantic_fpn])
def test_fresh_heads_are_initialised_as_mmsegs(make):
    heads = {upernet: lambda: UperNetHead((64,) * 4, 30, channels=64), fcn: lambda: FCNHead(64, 30, channels=64)}
    torch.manual_seed(0)
    head = heads.get(make, lambda: SemanticFPNHead(64, (4, 8, 16), 30, channels=64))()
    for name, module in head.named_modules():
        if isinstance(module, ConvNormAct):
            expected = math.sqrt(2 / (module.conv.out_channels * module.conv.kernel_size[0] ** 2))
            assert module.conv.weight.std().item() == pytest.approx(expected, rel=0.05), name
            assert module.conv.bias is None
            assert torch.equal(module.bn.weight, torch.ones(64))
    assert head.conv_seg.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert not head.conv_seg.bias.any()


@torch.no_grad()
def test_a_head_trains_as_one_graph():
    head = upernet().train()
    head.dropout.p = 0.0
    compiled = torch.compile(copy.deepcopy(head), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(levels()), head(levels()))


@pytest.mark.parametrize("make", [upernet, fcn, semantic_fpn])
@torch.no_grad()
def test_dropout_takes_whole_channels_before_the_classifier(make):
    head = make().eval()
    maps = neck_levels() if make is semantic_fpn else levels()
    seen = []
    head.conv_seg.register_forward_pre_hook(lambda *hooked: seen.append(hooked[1][0]))
    head(maps)
    head.dropout.train()
    head.dropout.p = 0.5
    head(maps)
    whole, dropped = seen
    gone = (dropped == 0).all(dim=(2, 3))
    assert gone.any()
    assert not gone.all()
    torch.testing.assert_close(dropped, 2 * whole * ~gone[:, :, None, None])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UperNetHead(WIDTHS, 1), "num_classes"),
        (lambda: UperNetHead(WIDTHS, True), "num_classes"),
        (lambda: UperNetHead(WIDTHS, 5, channels=0), "channels"),
        (lambda: UperNetHead(WIDTHS, 5, channels=8.0), "channels"),
        (lambda: UperNetHead((), 5), "at least one level"),
        (lambda: UperNetHead(WIDTHS, 5, dropout=1.0), "dropout"),
        (lambda: FCNHead(4, 5, dropout=math.nan), "dropout"),
        (lambda: FCNHead(4, 5, convs=0), "convs"),
    ],
)
def test_what_cannot_be(make, message):
    with pytest.raises(InvalidConfig, match=message) as error:
        make()
    assert "\n" not in str(error.value)


@torch.no_grad()
def test_a_block_fuses_into_one_convolution_and_a_broken_fusion_is_noticed(monkeypatch):
    layer = randomise(ConvNormAct(3, 6, 3)).double().eval()
    x = torch.randn(2, 3, 7, 5).double()
    fused = reparameterize(layer)
    assert [type(module) for module in fused.children()] == [nn.Conv2d, nn.ReLU]
    torch.testing.assert_close(fused(x), layer(x), rtol=1e-12, atol=1e-12)
    monkeypatch.setattr("visionmlp.heads.conv.batchnorm_affine", lambda norm: (norm.weight, norm.bias))
    assert (reparameterize(layer)(x) - layer(x)).abs().max() > 0.1
