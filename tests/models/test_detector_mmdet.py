"""mmdet's matches, losses and targets, written out here box by box."""

import math

import pytest
import torch
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.image_list import ImageList

from tests.heads.detectors import images, scored, seeded, small, target
from visionmlp.heads.detection.anchors import PyramidAnchors
from visionmlp.heads.detection.boxes import SymmetricBoxCoder, box_coder
from visionmlp.heads.detection.mask_stage import pasted
from visionmlp.heads.detection.matching import Matcher, Objects
from visionmlp.heads.detection.regions import Regions
from visionmlp.heads.detection.settings import settings_of

IGNORE = -2


def iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0.0) * max(height, 0.0)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def assigned(anchors, objects, positive, negative, least):
    """Max-IoU assignment: by threshold, then each object takes all of its best anchors."""
    table = [[iou(anchor, box) for anchor in anchors] for box in objects]
    result = []
    for column in range(len(anchors)):
        best = max(range(len(objects)), key=lambda row: table[row][column])
        value = table[best][column]
        result.append(best if value >= positive else -1 if value < negative else IGNORE)
    if least is not None:
        for row, values in enumerate(table):
            for column, value in enumerate(values):
                if value == max(values) and value >= least:
                    result[column] = row
    return result


def encoded(box, anchor, stds=(1, 1, 1, 1)):
    w, h = anchor[2] - anchor[0], anchor[3] - anchor[1]
    bw, bh = box[2] - box[0], box[3] - box[1]
    dx = ((box[0] + box[2]) / 2 - (anchor[0] + anchor[2]) / 2) / w
    dy = ((box[1] + box[3]) / 2 - (anchor[1] + anchor[3]) / 2) / h
    return [v / s for v, s in zip((dx, dy, math.log(bw / w), math.log(bh / h)), stds, strict=True)]


def random_boxes(count, seed, size=64.0):
    corner = torch.rand(count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * size * 0.7
    sides = torch.rand(count, 2, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64) * size * 0.4
    return torch.cat([corner, corner + sides + 1], dim=1)


def objects_at(boxes):
    return Objects(boxes, torch.ones(len(boxes), dtype=torch.int64), boxes[:0], None)


@pytest.mark.parametrize("least", [None, 0.0, 0.3, 0.5])
def test_matches(least):
    for seed in range(5):
        anchors, boxes = random_boxes(60, seed), random_boxes(6, 100 + seed)
        found = Matcher(0.5, 0.4, low_quality=least)(objects_at(boxes), anchors)
        assert found.tolist() == assigned(anchors.tolist(), boxes.tolist(), 0.5, 0.4, least)


def test_an_object_takes_its_best_anchor_from_another_only_if_forced():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 14]])
    anchors = torch.tensor([[0.0, 0, 10, 11], [50, 50, 60, 60]])
    assert Matcher(0.5, 0.4, low_quality=0.0)(objects_at(boxes), anchors).tolist() == [1, -1]
    assert Matcher(0.5, 0.4, low_quality=0.0, forced=False)(objects_at(boxes), anchors).tolist() == [0, -1]


def test_an_object_that_meets_no_anchor_takes_none():
    boxes = torch.tensor([[0.0, 0, 10, 10], [500.0, 500, 510, 510]])
    anchors = torch.tensor([[0.0, 0, 10, 10], [40.0, 40, 50, 50]])
    assert Matcher(0.5, 0.4, low_quality=0.0)(objects_at(boxes), anchors).tolist() == [0, -1]


def test_anchors_have_fixed_strides_and_whole_fractions():
    retina = PyramidAnchors((8, 16), settings_of("retinanet"))
    batch = ImageList(torch.zeros(1, 3, 32, 64), [(20, 60)])
    maps = [torch.zeros(1, 1, 4, 8), torch.zeros(1, 1, 2, 4)]
    (found,) = retina(batch, maps)
    wanted = [
        [x * stride - w / 2, y * stride - h / 2, x * stride + w / 2, y * stride + h / 2]
        for stride, rows, columns in ((8, 4, 8), (16, 2, 4))
        for y in range(rows)
        for x in range(columns)
        for ratio in (0.5, 1.0, 2.0)
        for octave in (0, 1 / 3, 2 / 3)
        for w, h in [(stride * 4 * 2**octave / ratio**0.5, stride * 4 * 2**octave * ratio**0.5)]
    ]
    torch.testing.assert_close(found, torch.tensor(wanted))
    other = PyramidAnchors((8, 16), settings_of("retinanet", "mmdet", {"anchor_strides": "divided"}))
    (divided,) = other(batch, [torch.zeros(1, 1, 4, 8), torch.zeros(1, 1, 1, 3)])
    assert (divided[-1] - divided[-10]).tolist() == [64 // 3, 0, 64 // 3, 0]
    # of maps in bfloat16 too
    (again,) = retina(batch, [level.bfloat16() for level in maps])
    assert torch.equal(found, again)


def test_anchors_in_the_padding_take_no_part():
    batch = ImageList(torch.zeros(2, 3, 64, 64), [(30, 64), (64, 33)])
    maps = [torch.zeros(1, 1, 8, 8)]
    first, second = PyramidAnchors((8,), settings_of("faster_rcnn")).outside(batch, maps)
    assert torch.equal(first.view(8, 8, 3)[..., 0], torch.arange(8)[:, None].expand(8, 8) >= 4)
    assert not second.any()
    ours = settings_of("faster_rcnn", "mmdet", {"anchor_padding": "negative"})
    assert not PyramidAnchors((8,), ours).outside(batch, maps)[0].any()


def test_decoded_sides_are_bounded_both_ways():
    coder = SymmetricBoxCoder((1.0, 1.0, 1.0, 1.0))
    boxes = torch.tensor([[0.0, 0.0, 16.0, 1000.0]])
    (decoded,) = coder.decode_single(torch.tensor([[0.0, 0.0, 100.0, -100.0]]), boxes)
    torch.testing.assert_close(decoded[2:] - decoded[:2], torch.tensor([1000.0, 16.0]))
    assert type(box_coder(settings_of("retinanet"))) is SymmetricBoxCoder
    assert type(box_coder(settings_of("retinanet", "mmdet", {"box_clamp": "above"}))) is BoxCoder
    two = torch.randn(3, 8)
    single = torch.cat([coder.decode_single(part, boxes.expand(3, 4)) for part in two.split(4, dim=1)], dim=1)
    torch.testing.assert_close(coder.decode_single(two, boxes.expand(3, 4)), single)


TARGETS = [
    target((5, 5, 40, 40), (20, 30, 60, 62), labels=[1, 3]),
    target((8, 6, 50, 30), labels=[2]),
    target(),
]


def head_outputs(net, module, batch):
    """What a part of the head gave, beside the losses."""
    kept = []
    handle = module.register_forward_hook(lambda _module, _args, output: kept.append(output))
    losses = seeded(net.train(), batch, TARGETS)
    handle.remove()
    return losses, kept


def all_anchors(levels):
    sizes = [(64 // stride, 64 // stride) if stride <= 64 else (1, 1) for stride in levels.strides]
    maps = [torch.zeros(1, 1, *size) for size in sizes]
    return levels(ImageList(torch.zeros(1, 3, 64, 64), [(64, 64)]), maps)[0].tolist()


def test_retinanet_losses():
    net = scored(small(head="retinanet"))
    losses, (output,) = head_outputs(net, net.head.head, images(*[(64, 64)] * 3))
    anchors = all_anchors(net.head.anchors)
    focal = box = positives = 0.0
    for index, known in enumerate(TARGETS):
        boxes = known["boxes"].tolist()
        matches = assigned(anchors, boxes, 0.5, 0.4, 0.0) if boxes else [-1] * len(anchors)
        positives += max(1, sum(match >= 0 for match in matches))
        for match, anchor, logits, codes in zip(
            matches,
            anchors,
            output["cls_logits"][index].tolist(),
            output["bbox_regression"][index].tolist(),
            strict=True,
        ):
            if match == IGNORE:
                continue
            label = int(known["labels"][match]) - 1 if match >= 0 else None
            for k, logit in enumerate(logits):
                p = 1 / (1 + math.exp(-logit))
                focal += -0.25 * (1 - p) ** 2 * math.log(p) if k == label else -0.75 * p**2 * math.log(1 - p)
            if match >= 0:
                box += sum(abs(a - b) for a, b in zip(codes, encoded(boxes[match], anchor), strict=True))
    assert float(losses["classification"].detach()) == pytest.approx(focal / positives, rel=1e-4)
    assert float(losses["bbox_regression"].detach()) == pytest.approx(box / positives, rel=1e-4)


def test_retinanet_moving_normaliser():
    net = scored(small(head="retinanet", definition="detectron2"))
    plain = scored(small(head="retinanet", definition="detectron2", settings={"dense_normaliser": "image"}))
    batch, wanted = images(), [TARGETS[0]]
    usual = 100.0
    image = {name: float(value.detach()) for name, value in seeded(plain.train(), batch, wanted).items()}
    count = sum(
        match >= 0 for match in assigned(all_anchors(net.head.anchors), wanted[0]["boxes"].tolist(), 0.5, 0.4, 0.0)
    )
    net.head.usual_positives.fill_(usual)
    for _ in range(2):
        losses = seeded(net.train(), batch, wanted)
        usual = 0.9 * usual + 0.1 * count
        for name, value in losses.items():
            assert float(value.detach()) == pytest.approx(image[name] * count / usual, rel=1e-3)


def test_rpn_losses():
    net = scored(small(head="faster_rcnn", settings={"rpn_batch": 10_000}))
    losses, (output,) = head_outputs(net, net.head.rpn.head, images(*[(64, 64)] * 3))
    anchors = all_anchors(net.head.rpn.anchors)
    bce = box = count = 0.0
    for index, known in enumerate(TARGETS):
        logits = torch.cat([level[index].permute(1, 2, 0).flatten() for level in output[0]]).tolist()
        codes = torch.cat([level[index].permute(1, 2, 0).reshape(-1, 4) for level in output[1]]).tolist()
        boxes = known["boxes"].tolist()
        matches = assigned(anchors, boxes, 0.7, 0.3, 0.3) if boxes else [-1] * len(anchors)
        count += max(1, sum(m >= 0 for m in matches)) + max(1, sum(m == -1 for m in matches))
        for match, anchor, logit, code in zip(matches, anchors, logits, codes, strict=True):
            if match == IGNORE:
                continue
            bce += math.log1p(math.exp(-logit if match >= 0 else logit))
            if match >= 0:
                box += sum(abs(a - b) for a, b in zip(code, encoded(boxes[match], anchor), strict=True))
    assert float(losses["loss_objectness"].detach()) == pytest.approx(bce / count, rel=1e-4)
    assert float(losses["loss_rpn_box_reg"].detach()) == pytest.approx(box / count, rel=1e-4)


@pytest.mark.parametrize("kind", ["smooth_l1", "giou"])
def test_box_losses_of_regions(kind):
    changes = {"roi_batch": 10_000, "roi_box_loss": kind, "roi_box_weight": 3.0}
    net = scored(small(head="faster_rcnn", settings=changes))
    regions = []
    original = net.head._regions
    net.head._regions = lambda *args: regions.append(original(*args)) or regions[-1]
    losses, ((logits, codes),) = head_outputs(net, net.head.box_stages[0], images(*[(64, 64)] * 3))
    ce = box = 0.0
    row = 0
    logits, codes = logits.tolist(), codes.tolist()
    for one, known in zip(regions, TARGETS, strict=True):
        boxes = known["boxes"].tolist()
        for region, label, match in zip(one.boxes.tolist(), one.labels.tolist(), one.matches.tolist(), strict=True):
            overlaps = [iou(region, other) for other in boxes]
            assert (max(overlaps, default=0) >= 0.5) == (label > 0)
            ce += math.log(sum(map(math.exp, logits[row]))) - logits[row][label]
            if label:
                assert label == known["labels"][match]
                code, stds = codes[row][label - 1], (0.1, 0.1, 0.2, 0.2)
                wanted = encoded(boxes[match], region, stds)
                if kind == "smooth_l1":
                    box += sum(abs(a - b) for a, b in zip(code, wanted, strict=True))
                else:
                    box += 1 - giou(decoded(code, region, stds), boxes[match])
            row += 1
    assert row == len(logits)
    assert float(losses["loss_classifier"].detach()) == pytest.approx(ce / row, rel=1e-4)
    assert float(losses["loss_box_reg"].detach()) == pytest.approx(3 * box / row, rel=1e-4)


def test_an_objects_best_region_is_its_own_in_mask_rcnn_only():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 14]])
    proposals = torch.tensor([[0.0, 0, 10, 11]])
    for head, wanted in (("mask_rcnn", 1), ("faster_rcnn", 0), ("cascade_mask_rcnn", 0)):
        matcher = small(head=head).head.box_stages[0].matcher
        assert matcher(objects_at(boxes), proposals).tolist() == [wanted]
        # below the threshold there is no best one
        assert matcher(objects_at(boxes), torch.tensor([[0.0, 0, 4, 11]])).tolist() == [-1]


@pytest.mark.parametrize(("kind", "wanted"), [("floored", 3 + 1 + 1 + 5), ("sampled", 3 + 5), ("batch", 128)])
def test_what_losses_of_anchors_are_divided_by(kind, wanted):
    rpn = small(head="faster_rcnn", settings={"rpn_normaliser": kind}).head.rpn
    flags = [torch.ones(3), torch.zeros(2)], [torch.zeros(3), torch.ones(5)]
    assert rpn._divisor(*flags) == wanted


def decoded(code, region, stds):
    w, h = region[2] - region[0], region[3] - region[1]
    dx, dy, dw, dh = (c * s for c, s in zip(code, stds, strict=True))
    x, y = (region[0] + region[2]) / 2 + dx * w, (region[1] + region[3]) / 2 + dy * h
    w, h = w * math.exp(dw), h * math.exp(dh)
    return [x - w / 2, y - h / 2, x + w / 2, y + h / 2]


def giou(a, b):
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    overlap = iou(a, b)
    union = areas / (1 + overlap)
    return overlap - (hull - union) / hull


def test_masks_of_regions_are_read_at_the_centres_of_bins():
    net = small(head="mask_rcnn")
    stage = net.head.mask_stages[0]
    masks = torch.zeros(1, 64, 64, dtype=torch.uint8)
    masks[0, 10:38, 10:24] = 1
    known = Objects(torch.tensor([[10.0, 10, 38, 38]]), torch.ones(1, dtype=torch.int64), torch.zeros(0, 4), masks)
    zero, one = torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.int64)
    regions = Regions(known.boxes, zero, one, one.bool())
    # the box has as many pixels as the target: what it reads is the mask
    assert torch.equal(stage.targets(regions, known)[0], masks[0, 10:38, 10:38].float())
    shifted = regions._replace(boxes=known.boxes + torch.tensor([0.4, 0.0, 0.4, 0.0]))
    hard = stage.targets(shifted, known)
    soft = small(head="mask_rcnn", settings={"mask_targets": "soft"}).head.mask_stages[0].targets(shifted, known)
    assert set(hard.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(soft.amin(), torch.tensor(0.0))
    assert ((soft > 0.1) & (soft < 0.9)).any()
    assert torch.equal(hard, (soft >= 0.5).float())


def test_masks_come_back_where_they_were():
    mmdet = settings_of("mask_rcnn")
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(4, 1, 28, 28, generator=generator)
    boxes = torch.tensor([[4.0, 6, 32, 34], [3.3, 5.1, 60.2, 20.7], [-8.0, -4, 20, 24], [63.5, 0.0, 70.0, 4.0]])
    found = pasted(masks, boxes, (40, 64), mmdet)
    # box and mask have equal pixels
    torch.testing.assert_close(found[0, 0, 6:34, 4:32], masks[0, 0])
    # the whole image at once, as the formula says
    y, x = torch.meshgrid(torch.arange(40) + 0.5, torch.arange(64) + 0.5, indexing="ij")
    for index, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        grid = torch.stack([(x - x1) / (x2 - x1) * 2 - 1, (y - y1) / (y2 - y1) * 2 - 1], dim=-1)
        whole = torch.nn.functional.grid_sample(masks[index : index + 1], grid[None], align_corners=False)
        torch.testing.assert_close(found[index], whole[0], rtol=1e-4, atol=1e-5)
    assert pasted(masks[:0], boxes[:0], (40, 64), mmdet).shape == (0, 1, 40, 64)
