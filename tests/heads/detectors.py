"""Tiny detectors and targets, which the tests of detection share."""

import torch

import visionmlp
from tests.randomise import randomise

HEADS = ("retinanet", "faster_rcnn", "mask_rcnn", "cascade_mask_rcnn")
RCNN = {"fc_channels": 16, "rpn_batch": 64, "roi_batch": 32, "rpn_post_nms": [60, 30]}


def small(name="cyclemlp_test", head="retinanet", *, settings=None, num_classes=3, **options):
    """64-pixel images, width 8."""
    model = visionmlp.create_model(name, num_classes=0)
    if model.input_sizes == "fixed":
        options.setdefault("tile_overlap", 0)
    chosen = {**({} if head == "retinanet" else RCNN), **(settings or {})}
    sizes = {"min_size": 64, "max_size": 96}
    return visionmlp.create_detector(
        model, head=head, num_classes=num_classes, settings=chosen, **{"fpn_channels": 8, **sizes, **options}
    )


def scored(net, seed=0):
    """Random parameters, with scores that differ and boxes that move a little."""
    randomise(net, seed)
    with torch.no_grad():
        for name, value in net.named_parameters():
            if "bbox_pred" in name or "bbox_reg" in name:
                value.mul_(0.3)
        for name, value in net.named_buffers():
            if name.endswith("usual_positives"):
                value.fill_(100.0)
    return net


def images(*sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(3, *size, generator=generator) for size in sizes or ((64, 64),)]


def target(*boxes, labels=None, size=(64, 64), **more):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    masks = torch.zeros(len(boxes), *size, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1 : (x1 + x2) // 2] = 1
    labels = torch.ones(len(boxes), dtype=torch.int64) if labels is None else torch.tensor(labels)
    return {"boxes": boxes, "labels": labels, "masks": masks, **more}


def seeded(net, *args, seed=1):
    torch.manual_seed(seed)
    return net(*args)
