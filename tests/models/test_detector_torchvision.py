"""torchvision's own detectors, with equal weights and ``definition="torchvision"``: equal losses, equal detections."""

from collections import OrderedDict

import pytest
import torch
from torch import nn
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

from tests.heads.detectors import images, scored, seeded, small, target

WIDTH, CLASSES = 8, 3
NAMES = (
    ("head.rpn.", "rpn."),
    ("head.box_stages.0.fcs.0", "roi_heads.box_head.fc6"),
    ("head.box_stages.0.fcs.1", "roi_heads.box_head.fc7"),
    ("head.box_stages.0.", "roi_heads.box_predictor."),
    ("head.mask_stages.0.head.", "roi_heads.mask_head."),
    ("head.mask_stages.0.predictor.", "roi_heads.mask_predictor."),
    ("head.head.", "head."),
)


class Levels(nn.Module):
    """Ours, as torchvision takes them."""

    out_channels = WIDTH

    def __init__(self, net):
        super().__init__()
        self.net = [net]

    def forward(self, x):
        levels = self.net[0].neck(self.net[0].levels(x))
        return OrderedDict((str(index), level) for index, level in enumerate(levels))


def theirs(net, head):
    common = {
        "min_size": 64,
        "max_size": 96,
        "image_mean": net.options["image_mean"],
        "image_std": net.options["image_std"],
    }
    if head == "retinanet":
        other = RetinaNet(Levels(net), CLASSES + 1, detections_per_img=10_000, **common)
    else:
        levels = ["0", "1", "2", "3"]
        sizes = tuple((size,) for size in (32, 64, 128, 256, 512))
        rcnn = {
            "rpn_anchor_generator": AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5),
            "rpn_post_nms_top_n_train": 60,
            "rpn_post_nms_top_n_test": 30,
            "rpn_batch_size_per_image": 64,
            "box_roi_pool": MultiScaleRoIAlign(levels, 7, 2),
            "box_head": TwoMLPHead(WIDTH * 49, 16),
            "box_predictor": FastRCNNPredictor(16, CLASSES + 1),
            "box_batch_size_per_image": 32,
        }
        if head == "faster_rcnn":
            other = FasterRCNN(Levels(net), **common, **rcnn)
        else:
            other = MaskRCNN(
                Levels(net),
                mask_roi_pool=MultiScaleRoIAlign(levels, 14, 2),
                mask_head=MaskRCNNHeads(WIDTH, [WIDTH] * 4, 1),
                mask_predictor=MaskRCNNPredictor(WIDTH, WIDTH, CLASSES + 1),
                **common,
                **rcnn,
            )
    state = {}
    for name, value in net.state_dict().items():
        for ours, other_name in NAMES:
            if name.startswith(ours):
                state[other_name + name.removeprefix(ours)] = value
                break
    other.load_state_dict(state)
    return other


def pair(head):
    # they keep boxes that lie beyond the image, as lines on its edge, which may take the last places
    settings = {"detections_per_img": 10_000} if head == "retinanet" else {}
    net = scored(small(head=head, definition="torchvision", num_classes=CLASSES, settings=settings))
    if head == "retinanet":
        # their slot of the background learns nothing, but is scored
        with torch.no_grad():
            net.head.head.classification_head.cls_logits.bias.view(-1, CLASSES + 1)[:, 0] = -1e4
    return net, theirs(net, head)


@pytest.mark.parametrize("head", ["retinanet", "faster_rcnn", "mask_rcnn"])
def test_losses_and_detections_are_torchvisions(head):
    net, other = pair(head)
    batch = images((64, 64), (40, 70))
    wanted = [
        target((5, 5, 40, 40), (20, 30, 60, 62), labels=[1, 3]),
        target((8, 6, 50, 30), labels=[2], size=(40, 70)),
    ]
    for targets in (wanted, [wanted[0], target(size=(40, 70))]):
        a, b = seeded(net.train(), batch, targets), seeded(other.train(), batch, targets)
        assert a.keys() == b.keys()
        for name, value in a.items():
            torch.testing.assert_close(value, b[name], rtol=1e-5, atol=1e-6, msg=name)
    with torch.no_grad():
        for a, b in zip(net.eval()(batch), other.eval()(batch), strict=True):
            assert len(a["scores"]) > 5
            assert a.keys() == b.keys()
            wide = (b["boxes"][:, 2:] - b["boxes"][:, :2] > 1e-2).all(dim=1)
            for name, value in a.items():
                torch.testing.assert_close(value, b[name][wide], rtol=1e-4, atol=1e-4, msg=name)


def test_one_stage_of_cascade_is_mask_rcnn_and_so_torchvisions():
    single = {
        "stage_ious": [0.5],
        "stage_stds": [[0.1, 0.1, 0.2, 0.2]],
        "stage_weights": [1.0],
        "class_agnostic": False,
        "anchor_box_beta": 1 / 9,
    }
    net, other = pair("mask_rcnn")
    cascade = small(head="cascade_mask_rcnn", definition="torchvision", num_classes=CLASSES, settings=single)
    cascade.load_state_dict(net.state_dict())
    batch, wanted = images(), [target((5, 5, 40, 40), labels=[2])]
    a, b = seeded(cascade.train(), batch, wanted), seeded(other.train(), batch, wanted)
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], rtol=1e-5, atol=1e-6, msg=name)
    with torch.no_grad():
        (a,), (b,), (c,) = cascade.eval()(batch), other.eval()(batch), net.eval()(batch)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-4, msg=name)
        assert torch.equal(a[name], c[name])
