"""Detectors: images without objects, crowds, wrong targets, sizes, forms, files."""

import dataclasses
import math

import pytest
import torch

import visionmlp
from tests.heads.detectors import HEADS, images, scored, seeded, small, target
from visionmlp.errors import CheckpointMismatch, DataError, InvalidConfig, UnknownOption
from visionmlp.heads.detection.settings import DetectionSettings, settings_of

WANTED = [target((5, 5, 40, 40), (20, 30, 60, 62), labels=[1, 3])]


def total(losses):
    return sum(losses.values())


def same(a, b, tolerance=1e-4):
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            torch.testing.assert_close(value, other[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("head", "definition"),
    [
        *((head, "mmdet") for head in HEADS),
        ("retinanet", "torchvision"),
        ("retinanet", "detectron2"),
        ("mask_rcnn", "torchvision"),
        ("cascade_mask_rcnn", "asmlp"),
        ("cascade_mask_rcnn", "detectron2"),
    ],
)
def test_images_without_objects(head, definition):
    """Their loss is finite, reaches every parameter, and pushes scores down."""
    net = scored(small(head=head, definition=definition)).train()
    batch, empty = images((64, 64), (64, 64)), [target(), target()]
    losses = seeded(net, batch, empty)
    assert all(torch.isfinite(value) for value in losses.values())
    assert {name for name, value in losses.items() if value.detach() == 0} == {
        name for name in losses if "box" in name or "mask" in name
    }
    total(losses).backward()
    assert not [name for name, value in net.named_parameters() if value.grad is None]
    part = net.head.head.classification_head.cls_logits if head == "retinanet" else net.head.box_stages[0].cls_score
    with torch.no_grad():
        for value in net.parameters():
            value -= 1e-2 * value.grad
        if head == "retinanet" and definition == "detectron2":
            # it has moved, and another divisor is another loss
            net.head.usual_positives.fill_(100.0)
    assert float(total(seeded(net, batch, empty)).detach()) < float(total(losses).detach())
    bias = part.bias.grad
    if head == "retinanet":
        assert (bias >= 0).all()
    else:
        background = 0 if definition == "torchvision" else -1
        assert bias[background] < 0


@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_no_detections(head):
    net = scored(small(head=head, settings={"score_thresh": 1.0})).eval()
    for found, size in zip(net(images((64, 64), (40, 70))), [(64, 64), (40, 70)], strict=True):
        assert found["boxes"].shape == (0, 4)
        assert found["scores"].shape == found["labels"].shape == (0,)
        assert found["labels"].dtype == torch.int64
        if net.has_masks:
            assert found["masks"].shape == (0, 1, *size)


@pytest.mark.parametrize("head", ["retinanet", "mask_rcnn"])
def test_crowds_are_no_positives_and_nothing_in_them_is_a_negative(head):
    everywhere = (-2000.0, -2000.0, 3000.0, 3000.0)
    crowd = [target(everywhere, labels=[2], iscrowd=torch.tensor([1]))]
    losses = seeded(scored(small(head=head)).train(), images(), crowd)
    assert all(float(value.detach()) == 0 for value in losses.values())
    # without the rule they are background
    off = scored(small(head=head, settings={"crowd_iof": None}))
    a, b = seeded(off.train(), images(), crowd), seeded(off.train(), images(), [target()])
    assert a.keys() == b.keys()
    assert all(torch.equal(value, b[name]) for name, value in a.items())
    assert float(total(a).detach()) > 0
    # 0 means what its absence means
    net = scored(small(head=head))
    plain = seeded(net.train(), images(), WANTED)
    marked = seeded(net.train(), images(), [{**WANTED[0], "iscrowd": torch.zeros(2, dtype=torch.int64)}])
    assert all(torch.equal(value, marked[name]) for name, value in plain.items())


def test_an_object_in_a_crowd_stays_one():
    net = scored(small(head="faster_rcnn"))
    crowd = target((0, 0, 64, 64), (5, 5, 40, 40), labels=[1, 2], iscrowd=torch.tensor([1, 0]))
    assert float(seeded(net.train(), images(), [crowd])["loss_box_reg"].detach()) > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": torch.tensor([[5.0, 5, 5, 9]]), "labels": torch.tensor([1])}, r"box 0 \[5.0, 5.0, 5.0, 9.0\]"),
        ({"boxes": torch.tensor([[5.0, 5, 9, 2]]), "labels": torch.tensor([1])}, "no width or height"),
        ({"boxes": torch.tensor([[5.0, 5, math.nan, 9]]), "labels": torch.tensor([1])}, "no width or height"),
        ({"boxes": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)}, r"torch.zeros\(0, 4\)"),
        ({"labels": torch.tensor([0, 1])}, "label 0 of box 0 is not from 1 to 3"),
        ({"labels": torch.tensor([1, 4])}, "label 4 of box 1"),
        ({"labels": torch.tensor([1])}, "labels must be int64"),
        ({"masks": torch.zeros(2, 32, 64)}, "masks must be"),
        ({"masks": None}, "needs masks"),
        ({"iscrowd": torch.tensor([1])}, "iscrowd must be"),
    ],
)
def test_wrong_targets_are_named(change, message):
    net = small(head="mask_rcnn").train()
    with pytest.raises(DataError, match=f"target 1.*{message}"):
        net(images((64, 64), (64, 64)), [WANTED[0], {**WANTED[0], **change}])


def test_wrong_calls_are_named():
    net = small(head="retinanet").train()
    with pytest.raises(InvalidConfig, match="needs targets"):
        net(images())
    with pytest.raises(DataError, match="2 images and 1 targets"):
        net(images((64, 64), (64, 64)), WANTED)
    with pytest.raises(DataError, match="image 0 must be floating-point"):
        net.eval()([torch.zeros(3, 64, 64, dtype=torch.uint8)])
    with pytest.raises(DataError, match="at least one image"):
        net([])
    with pytest.raises(DataError, match="image 1 of 2x400 is too thin"):
        net(images((64, 64), (2, 400)))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"head": "ssd"}, InvalidConfig, "head must be one of retinanet, "),
        ({"definition": "paper"}, InvalidConfig, "definition must be one of mmdet, "),
        ({"num_classes": 0}, InvalidConfig, "num_classes"),
        ({"fpn_channels": 0}, InvalidConfig, "fpn_channels"),
        ({"min_size": []}, InvalidConfig, "min_size"),
        ({"max_size": [64]}, InvalidConfig, "max_size"),
        ({"tile_overlap": 0.0}, InvalidConfig, "tile_overlap"),
        ({"image_std": [1.0, 0.0, 1.0]}, InvalidConfig, "image_std"),
        ({"settings": {"roi_batches": 3}}, UnknownOption, "did you mean roi_batch"),
        ({"settings": {"roi_batch": 3}}, InvalidConfig, "retinanet does not use roi_batch"),
        ({"settings": {"nms_thresh": 2.0}}, InvalidConfig, "nms_thresh must be from 0 to 1"),
        ({"settings": {"background": "middle"}}, InvalidConfig, "last or first"),
        ({"settings": {"anchor_octaves": True}}, InvalidConfig, "a whole number"),
        ({"settings": {"crowd_iof": "x"}}, InvalidConfig, "a number or null"),
    ],
)
def test_wrong_options_are_named(options, error, message):
    with pytest.raises(error, match=message):
        visionmlp.create_detector("cyclemlp_test", **{"head": "retinanet", "num_classes": 3, **options})


def test_stages_must_agree():
    with pytest.raises(InvalidConfig, match="must have equal lengths, 2 here"):
        settings_of("cascade_mask_rcnn", "mmdet", {"stage_ious": [0.5, 0.6]})


def test_a_family_of_one_size():
    """Whole images within its own size, or windows."""
    with pytest.raises(InvalidConfig, match="tile_overlap=0"):
        visionmlp.create_detector("resmlp_test", head="retinanet", num_classes=2, img_size=64, max_size=65)
    net = visionmlp.create_detector("resmlp_test", head="retinanet", num_classes=2, fpn_channels=8, img_size=64).eval()
    assert (net.options["min_size"], net.options["max_size"]) == ([64], 64)
    with torch.no_grad():
        (found,) = scored(net)(images((40, 50)))
    assert found["boxes"].amax() <= 50
    tiled = visionmlp.create_detector("resmlp_test", head="retinanet", num_classes=2, fpn_channels=8, tile_overlap=0)
    assert (tiled.options["min_size"], tiled.options["max_size"]) == ([800], 1333)


@torch.no_grad()
def test_images_are_resized_and_boxes_come_back():
    net = scored(small(head="mask_rcnn", min_size=64, max_size=96)).eval()
    (image,) = images((128, 160))
    (found,) = net([image])
    assert found["masks"].shape[-2:] == (128, 160)
    assert len(found["boxes"]) > 5
    (half,) = net([torch.nn.functional.interpolate(image[None], size=(64, 80), mode="bilinear")[0]])
    torch.testing.assert_close(found["boxes"], 2 * half["boxes"], rtol=1e-4, atol=1e-3)
    assert torch.equal(found["labels"], half["labels"])


def fingerprint(settings, head):
    net = small(head=head, settings={**BASE, **({} if head == "retinanet" else {"rpn_batch": 5000}), **settings})
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    scored(net.double())  # a large level of few anchors moves a loss by less than float32 shows
    boxes = [(5, 5, 40, 40), (6, 8, 44, 44), (20, 30, 60, 62), (50, 2, 56, 6), (0, 0, 30, 30)]
    crowd = torch.tensor([0, 0, 0, 0, 1])
    wanted = [
        target(*boxes, labels=[1, 2, 3, 2, 2], size=(60, 64), iscrowd=crowd),
        target((8, 2, 30, 14), labels=[2], size=(16, 64)),
    ]
    batch = [image.double() for image in images((60, 64), (16, 64))]
    parts = seeded(net.train(), batch, wanted)
    losses = {name: float(value.detach()) for name, value in parts.items()}
    leaf = next(value for name, value in net.named_parameters() if "lateral" in name)
    gradient = float(torch.autograd.grad(total(parts), leaf)[0].abs().sum())
    with torch.no_grad():
        found = [{k: v.double().sum().item() for k, v in one.items()} for one in net.eval()(batch)]
    return shapes, losses, gradient, found


BASE = {"detections_per_img": 800}
ELSEWHERE = {
    "anchor_strides": "test_detector_mmdet.py: anchors",
    "box_clamp": "test_detector_mmdet.py: decoded sides",
    "roi_low_quality": "test_detector_mmdet.py: regions",
}
OTHERS = {
    "anchor_scale": 3.0,
    "anchor_octaves": 2,
    "anchor_ratios": [1.0],
    "anchor_rounding": True,
    "anchor_padding": "negative",
    "anchor_low_quality": "anchor",
    "anchor_low_quality_iou": 0.45,
    "anchor_box_beta": 0.7,
    "background": "first",
    "crowd_iof": None,
    "score_thresh": 0.6,
    "nms_thresh": 0.2,
    "detections_per_img": 3,
    "pyramid_from": "output",
    "pyramid_relu": True,
    "dense_normaliser": "image",
    "dense_candidates": "scores",
    "rpn_post_nms": [20, 10],
    "rpn_batch": 16,
    "rpn_normaliser": "batch",
    "roi_batch": 8,
    "roi_aligned": False,
    "roi_sampling": 1,
    "roi_box_loss": "giou",
    "roi_box_beta": 0.7,
    "roi_box_weight": 2.0,
    "box_head": "4conv1fc",
    "fc_channels": 8,
    "class_agnostic": True,
    "stage_ious": [0.6],
    "stage_stds": [[0.1, 0.1, 0.2, 0.1]],
    "stage_weights": [0.5],
    "mask_targets": "soft",
    "mask_paste": "resized",
    "cascade_resample": False,
    "cascade_scores": "softmax",
    "cascade_gradient": "shared",
    "cascade_masks": "first",
}
KNOWN = {}


@pytest.mark.parametrize("name", OTHERS)
def test_every_setting_has_an_effect(name):
    heads = {field.name: field.metadata.get("heads") for field in dataclasses.fields(DetectionSettings)}[name]
    head = (heads or ["retinanet"])[0]
    if head not in KNOWN:
        KNOWN[head] = fingerprint({}, head)
    assert fingerprint({name: OTHERS[name]}, head) != KNOWN[head]


def test_every_setting_is_tested():
    assert OTHERS.keys() | ELSEWHERE.keys() == {field.name for field in dataclasses.fields(DetectionSettings)}


@pytest.mark.parametrize("head", ["retinanet", "cascade_mask_rcnn"])
@torch.no_grad()
def test_deploy_and_packed_forms_find_the_same(head):
    definition = "asmlp" if head == "cascade_mask_rcnn" else "mmdet"
    net = scored(small("repmlpnet_test", head, definition=definition)).eval()
    batch = images((64, 64), (40, 70))
    wanted = net(batch)
    assert sum(len(one["scores"]) for one in wanted) > 5
    deployed = visionmlp.reparameterize(net)
    same(deployed(batch), wanted)
    same(visionmlp.prepack(deployed)(batch), wanted)
    assert not [name for name in deployed.state_dict() if "running_mean" in name]


@torch.no_grad()
def test_packed_forms_take_images_without_detections():
    net = scored(small(head="mask_rcnn", settings={"score_thresh": 1.0})).eval()
    packed = visionmlp.prepack(visionmlp.reparameterize(net))
    assert packed(images())[0]["masks"].shape == (0, 1, 64, 64)


@pytest.mark.parametrize("head", ["retinanet", "cascade_mask_rcnn"])
@torch.no_grad()
def test_saved_and_loaded(head, tmp_path):
    settings = {"nms_thresh": 0.4, "anchor_ratios": [0.5, 1.0]}
    net = scored(small("resmlp_test", head, definition="detectron2", settings=settings, min_size=[48, 64])).eval()
    visionmlp.save_dense(tmp_path / "a.safetensors", net, class_names=["a", "b", "c"])
    again, info = visionmlp.load_dense(tmp_path / "a.safetensors")
    assert (info.task, info.class_names) == ("detect", ["a", "b", "c"])
    assert again.options == net.options
    batch = images((64, 64), (40, 70))
    wanted = net(batch)
    same(again(batch), wanted)
    visionmlp.save_dense(tmp_path / "b.safetensors", visionmlp.reparameterize(net))
    again, info = visionmlp.load_dense(tmp_path / "b.safetensors")
    assert info.form == "deploy"
    same(again(batch), wanted)


FILES = {
    "mask_rcnn": [
        "roi_head.bbox_head.shared_fcs.0.weight",
        "roi_head.bbox_head.shared_fcs.1.bias",
        "roi_head.bbox_head.fc_cls.weight",
        "roi_head.bbox_head.fc_reg.weight",
        "roi_head.mask_head.convs.3.conv.weight",
        "roi_head.mask_head.upsample.weight",
        "roi_head.mask_head.conv_logits.weight",
    ],
    "cascade_mask_rcnn": [
        "roi_head.bbox_head.2.shared_convs.3.conv.weight",
        "roi_head.bbox_head.0.shared_convs.0.bn.running_var",
        "roi_head.bbox_head.1.shared_fcs.0.weight",
        "roi_head.bbox_head.1.fc_cls.bias",
        "roi_head.mask_head.2.conv_logits.bias",
    ],
    "retinanet": [
        "bbox_head.cls_convs.3.conv.weight",
        "bbox_head.reg_convs.0.conv.bias",
        "bbox_head.retina_cls.weight",
        "bbox_head.retina_reg.bias",
        "neck.fpn_convs.4.conv.weight",
    ],
}
RPN = ["rpn_head.rpn_conv.weight", "rpn_head.rpn_cls.bias", "rpn_head.rpn_reg.weight"]
NECK = ["neck.lateral_convs.0.conv.weight", "neck.fpn_convs.2.conv.bias"]


@pytest.mark.parametrize("head", FILES)
@torch.no_grad()
def test_files_in_mmdets_layout(head, tmp_path):
    def fresh(seed, definition="asmlp"):
        model = visionmlp.create_model("asmlp_test", num_classes=0, feature_norms=True, blocks=(1, 1, 2, 1), dim=6)
        options = {"settings": {"fc_channels": 16}} if head != "retinanet" else {}
        net = visionmlp.create_detector(
            model, head=head, num_classes=3, definition=definition, min_size=64, max_size=64, fpn_channels=8, **options
        )
        return scored(net, seed).eval()

    source, net = fresh(0), fresh(1)
    state = {f"backbone.{k}": v for k, v in source.backbone.to_official(source.backbone.state_dict()).items()}
    inner = "levels.net.model."
    for name, value in source.state_dict().items():
        if not name.startswith(inner):
            theirs = source.official_name(name)
            assert theirs is not None, name
            state[theirs] = value
    for name in [*FILES[head], *NECK, *([] if head == "retinanet" else RPN)]:
        assert name in state
    torch.save({"meta": {"CLASSES": ["a"]}, "state_dict": state, "optimizer": {}}, tmp_path / "epoch_12.pth")
    visionmlp.load_official_dense(net, tmp_path / "epoch_12.pth")
    same(net(images()), source(images()), 0)
    # another order of classes takes backbone and neck alone
    other = fresh(2, "torchvision")
    if head == "retinanet":
        return
    with pytest.raises(CheckpointMismatch):
        visionmlp.load_official_dense(other, tmp_path / "epoch_12.pth")
    visionmlp.load_official_dense(other, tmp_path / "epoch_12.pth", only={"backbone", "neck"})
    for name, value in other.neck.state_dict().items():
        assert torch.equal(value, source.neck.state_dict()[name])


def test_bfloat16_keeps_boxes_in_float32():
    net = scored(small(head="mask_rcnn"))
    with torch.autocast("cpu", torch.bfloat16):
        losses = seeded(net.train(), images(), WANTED)
        with torch.no_grad():
            (found,) = net.eval()(images())
    assert all(value.dtype == torch.float32 and torch.isfinite(value) for value in losses.values())
    assert found["boxes"].dtype == found["scores"].dtype == torch.float32
