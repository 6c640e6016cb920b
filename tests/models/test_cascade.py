"""Cascade Mask R-CNN, stage by stage: what is passed on, weighted, averaged."""

import pytest
import torch

from tests.heads.detectors import images, scored, seeded, small, target
from visionmlp.heads.detection.box_stage import BoxStage
from visionmlp.heads.detection.settings import settings_of

WANTED = [target((5, 5, 40, 40), (20, 30, 60, 62), labels=[1, 3]), target((8, 6, 50, 30), labels=[2])]
BATCH = images((64, 64), (64, 64))


def cascade(**changes):
    return scored(small(head="cascade_mask_rcnn", settings=changes))


def spied(net, name):
    """Arguments and results of every call of a method of the head."""
    calls, original = [], getattr(net.head, name)

    def call(*args):
        calls.append((args, original(*args)))
        return calls[-1][1]

    setattr(net.head, name, call)
    return calls


def test_stages_have_their_thresholds_and_scales():
    stages = list(cascade().head.box_stages)
    assert [stage.matcher.foreground for stage in stages] == [0.5, 0.6, 0.7]
    assert [stage.coder.weights[0] for stage in stages] == pytest.approx([10, 20, 1 / 0.033])
    assert [stage.coder.weights[2] for stage in stages] == pytest.approx([5, 10, 1 / 0.067])
    theirs = settings_of("cascade_mask_rcnn", "detectron2")
    weights = [[1 / std for std in stds] for stds in theirs.stage_stds]
    assert weights == [pytest.approx(w) for w in ([10, 10, 5, 5], [20, 20, 10, 10], [30, 30, 15, 15])]


def test_losses_have_the_stages_weights():
    net, equal = cascade(), cascade(stage_weights=[1.0, 1.0, 1.0])
    a, b = seeded(net.train(), BATCH, WANTED), seeded(equal.train(), BATCH, WANTED)
    assert len(a) == 2 + 3 * 3
    for name, value in a.items():
        factor = {"_2": 0.5, "_3": 0.25}.get(name[-2:], 1.0)
        assert float(value.detach()) == pytest.approx(factor * float(b[name].detach()), rel=1e-6), name


def test_no_gradient_passes_from_stage_to_stage():
    net = cascade().train()
    losses = seeded(net, BATCH, WANTED)
    for stage, part in enumerate(net.head.box_stages, start=1):
        for number in (1, 2, 3):
            loss = losses[f"loss_box_reg_{number}"] + losses[f"loss_classifier_{number}"]
            gradients = torch.autograd.grad(loss, list(part.parameters()), retain_graph=True, allow_unused=True)
            if number == stage:
                assert all(gradient is not None and gradient.any() for gradient in gradients)
            else:
                assert all(gradient is None for gradient in gradients)
        anchors = torch.autograd.grad(
            losses[f"loss_box_reg_{stage}"], list(net.head.rpn.parameters()), retain_graph=True, allow_unused=True
        )
        assert all(gradient is None for gradient in anchors)


def test_stages_assign_and_sample_anew_with_the_objects_own_boxes():
    net = cascade().train()
    regions, refined = spied(net, "_regions"), spied(net, "_refined")
    seeded(net, BATCH, WANTED)
    assert len(regions) == 3 * len(BATCH)
    for index, ((stage, number, proposals, objects), one) in enumerate(regions):
        assert number == index // len(BATCH)
        assert len(one.boxes) <= 32
        assert one.are_objects.sum() >= min(1, len(objects.boxes))
        assert (one.labels >= 0).all()
        overlaps = torch.stack([_iou(one.boxes, box) for box in objects.boxes]).amax(dim=0)
        assert torch.equal(overlaps >= stage.matcher.foreground, one.labels > 0)
        if number:
            # what the stage before made of its regions, without the objects' own
            before = regions[index - len(BATCH)][1]
            assert len(proposals) == len(before.boxes) - int(before.are_objects.sum())
    assert all(not boxes.requires_grad for _, result in refined for boxes in result)


def _iou(boxes, box):
    low, high = torch.maximum(boxes[:, :2], box[:2]), torch.minimum(boxes[:, 2:], box[2:])
    common = (high - low).clamp(min=0).prod(dim=1)
    return common / ((boxes[:, 2:] - boxes[:, :2]).prod(dim=1) + (box[2:] - box[:2]).prod() - common)


def test_without_resampling_all_boxes_pass_on():
    net = cascade(cascade_resample=False).train()
    regions = spied(net, "_regions")
    seeded(net, BATCH, WANTED)
    for (_, number, proposals, _), one in regions[len(BATCH) :]:
        assert number > 0
        assert not one.are_objects.any()
        assert torch.equal(one.boxes, proposals)


@pytest.mark.parametrize("agnostic", [True, False])
def test_refined_boxes_are_of_a_class_that_is_no_background(agnostic):
    stage = BoxStage(4, 3, 1, settings_of("cascade_mask_rcnn", "mmdet", {"class_agnostic": agnostic, "fc_channels": 4}))
    boxes = torch.tensor([[10.0, 10, 30, 50], [10.0, 10, 30, 50], [10.0, 10, 30, 50]])
    logits = torch.tensor([[9.0, 0, 1, 2], [9.0, 3, 1, 2], [0.0, 3, 1, 2]])
    codes = torch.zeros(3, 1 if agnostic else 3, 4)
    codes[..., 0] = torch.tensor([2.0]) if agnostic else torch.tensor([2.0, 4.0, 6.0])
    labels = torch.tensor([0, 0, 2])
    moved = stage.refined(logits, codes, boxes, (64, 33), labels)[:, 0] - 10
    # a code of 1 is the standard deviation, of the box's width
    wanted = [2, 2, 2] if agnostic else [6, 2, 4]
    torch.testing.assert_close(moved, torch.tensor(wanted) * 0.05 * 20)
    right = stage.refined(logits, codes, boxes, (64, 33), labels)[:, 2]
    assert torch.equal(right, torch.minimum(30 + torch.tensor(wanted) * 1.0, torch.tensor(33.0)))


@pytest.mark.parametrize("scores", ["logits", "softmax"])
@torch.no_grad()
def test_scores_and_masks_are_averaged_on_the_last_boxes(scores):
    net = cascade(cascade_scores=scores, score_thresh=0.0, nms_thresh=1.0, detections_per_img=10_000).eval()
    best, added = spied(net, "_best"), []
    for head in net.head.mask_stages:
        head.register_forward_hook(lambda _m, _a, output: added.append(output.sigmoid()))
    inputs = {}
    net.head.rpn.register_forward_hook(
        lambda _m, args, output: inputs.update(levels=args[1], boxes=output[0], args=args)
    )
    (found,) = net(images((64, 64)))
    boxes, every = inputs["boxes"][0], []
    for index, stage in enumerate(net.head.box_stages):
        logits, codes = stage(net.head.box_features(inputs["levels"], [boxes]))
        every.append(logits)
        decoded = stage.coder.decode_single(codes[:, 0], boxes).clamp(0, 64)
        if index < 2:
            boxes = decoded
    if scores == "logits":
        wanted = (sum(every) / 3).softmax(dim=1)
    else:
        wanted = sum(logits.softmax(dim=1) for logits in every) / 3
    ((probabilities, last), _) = best[0]
    torch.testing.assert_close(probabilities, wanted)
    torch.testing.assert_close(last[:, 0], decoded)
    assert not torch.allclose(every[0], every[2])
    assert len(added) == 3
    own = sum(added) / 3
    own = own[torch.arange(len(own)), found["labels"] - 1]
    assert found["masks"].shape == (len(own), 1, 64, 64)
    assert float(found["masks"].amax()) <= float(own.amax()) + 1e-5


def test_the_stages_can_share_the_features_gradient():
    def gradient(**changes):
        net = cascade(**changes).train()
        levels = []
        net.neck.register_forward_hook(lambda _m, _a, output: levels.extend(output))
        losses = seeded(net, BATCH, WANTED)
        boxes = sum(value for name, value in losses.items() if "classifier" in name or "box_reg_" in name)
        return losses, torch.autograd.grad(boxes, levels[0])[0]

    (whole, first), (shared, second) = gradient(), gradient(cascade_gradient="shared")
    assert {name: float(value.detach()) for name, value in whole.items()} == pytest.approx(
        {name: float(value.detach()) for name, value in shared.items()}, rel=1e-5
    )
    assert first.any()
    torch.testing.assert_close(first, 3 * second, rtol=1e-3, atol=1e-6)


def test_one_mask_head_of_detectron2_sees_the_first_stage():
    net = cascade(cascade_masks="first")
    assert len(net.head.mask_stages) == 1
    losses = seeded(net.train(), BATCH, WANTED)
    assert [name for name in losses if "mask" in name] == ["loss_mask_1"]


def test_asmlps_head():
    """Swin's: four convolutions with norm, one linear layer, boxes by class, GIoU of weight 10."""
    net = scored(small(head="cascade_mask_rcnn", definition="asmlp"))
    stage = net.head.box_stages[0]
    assert (len(stage.convs), len(stage.fcs)) == (4, 1)
    assert isinstance(stage.convs[0].bn, torch.nn.BatchNorm2d)
    assert stage.bbox_pred.out_features == 12
    assert (net.settings.roi_box_loss, net.settings.roi_box_weight) == ("giou", 10.0)
    assert not net.settings.class_agnostic
    assert all(torch.isfinite(value) for value in seeded(net.train(), BATCH, WANTED).values())
