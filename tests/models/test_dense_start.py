"""What a network for dense prediction takes from another one, and what it leaves."""

import pytest
import torch

import visionmlp
from tests.heads.detectors import images, small
from tests.randomise import randomise
from visionmlp.errors import CheckpointMismatch, InvalidConfig
from visionmlp.models.dense_start import class_entries, take_over


def segmenter(name="hiremlp_test", head="upernet", num_classes=3, **options):
    model = visionmlp.create_model(name, num_classes=0, **options.pop("fields", {}))
    widths = {"channels": 8, "auxiliary_channels": 4 if head == "upernet" else 0}
    return visionmlp.create_segmenter(model, head=head, num_classes=num_classes, **widths, **options)


def differing(network, before):
    return {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}


@torch.no_grad()
def test_the_same_classes_take_everything():
    given = randomise(segmenter()).eval()
    network = segmenter()
    assert take_over(network, given, "run", same_classes=True) == []
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(network.eval()(x), given(x))


@pytest.mark.parametrize("count", [3, 5])
def test_other_classes_leave_what_knows_them_fresh(count):
    given, network = randomise(segmenter()), segmenter(num_classes=count)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    fresh = take_over(network, given, "run", same_classes=False)
    assert fresh == ["decode_head.conv_seg", "auxiliary_head.conv_seg"]
    kept = {name for name in before if "conv_seg" in name}
    assert class_entries(network) == kept
    changed = differing(network, before)
    assert changed.isdisjoint(kept)
    assert {name for name in before if name.endswith("weight")} - kept <= changed
    theirs = given.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in network.state_dict().items() if name not in kept)


def test_detectors_of_other_classes():
    given, network = randomise(small(head="mask_rcnn")), small(head="mask_rcnn", num_classes=5)
    fresh = take_over(network, given, "run", same_classes=False)
    assert fresh == [
        "head.box_stages.0.cls_score",
        "head.box_stages.0.bbox_pred",
        "head.mask_stages.0.predictor.mask_fcn_logits",
    ]
    theirs = given.state_dict()
    for name, value in network.state_dict().items():
        assert torch.equal(value, theirs[name]) == (name.rpartition(".")[0] not in fresh), name


@pytest.mark.parametrize(
    ("given", "wanted", "fresh"),
    [
        ({"head": "mask_rcnn"}, {"head": "faster_rcnn"}, ["head"]),
        (
            {"head": "mask_rcnn"},
            {"head": "retinanet"},
            ["levels", "neck", "head"],
        ),  # strides 4 to 32 are not strides 8 to 32
        # the first class is the background in one, the last in the other, and all shapes are equal
        (
            {"head": "faster_rcnn", "settings": {"class_agnostic": True}},
            {"head": "faster_rcnn", "settings": {"class_agnostic": True}, "definition": "torchvision"},
            ["head"],
        ),
        ({"fpn_channels": 8}, {"fpn_channels": 16}, ["neck", "head"]),
    ],
)
def test_parts_are_taken_whole_or_not_at_all(given, wanted, fresh):
    network, source = small(**wanted), randomise(small(**given))
    assert take_over(network, source, "run", same_classes=True) == fresh
    theirs = source.state_dict()
    prefix = f"{network.backbone_name}."
    for name, value in network.state_dict().items():
        if name.startswith(prefix) or name.partition(".")[0] not in ("levels", *fresh):
            assert torch.equal(value, theirs[name]), name


def test_levels_of_a_model_of_one_width_are_not_shifted():
    network, source = small("resmlp_test"), randomise(small("resmlp_test", head="mask_rcnn"))
    assert take_over(network, source, "run", same_classes=True) == ["levels", "neck", "head"]
    assert torch.equal(network.backbone.stem.proj.weight, source.backbone.stem.proj.weight)


@torch.no_grad()
def test_other_tasks_sizes_and_windows():
    source = randomise(segmenter("resmlp_test", fields={"img_size": 32}))
    detector = small("resmlp_test")
    take_over(detector, source, "run", same_classes=True)
    assert torch.equal(detector.backbone.stem.proj.weight, source.backbone.stem.proj.weight)
    assert detector.eval()(images())
    larger = segmenter("resmlp_test", fields={"img_size": 64})
    assert take_over(larger, source, "run", same_classes=True) == []
    assert larger.eval()(torch.rand(1, 3, 64, 64)).shape == (1, 3, 64, 64)


@torch.no_grad()
def test_wider_embeddings_compute_the_same():
    source = randomise(segmenter("repmlpnet_test")).eval()
    wider = segmenter("repmlpnet_test", fields={"embed_kernel": 3, "embed_depthwise": 3}).eval()
    assert take_over(wider, source, "run", same_classes=True) == []
    x = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(wider(x), source(x))


def test_another_model_is_refused():
    with pytest.raises(InvalidConfig, match="is a network on hiremlp_test, not on cyclemlp_test"):
        take_over(segmenter("cyclemlp_test"), segmenter(), "run", same_classes=True)
    with pytest.raises(CheckpointMismatch, match="as it is built now"):
        take_over(segmenter(fields={"mlp_ratio": 3.0}), segmenter(), "run", same_classes=True)
