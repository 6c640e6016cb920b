"""timm saves our models and builds them again: what comes back computes the same, or the answer is a refusal."""

import json

import pytest
import timm
import torch
from timm.models import save_for_hf

import visionmlp
from tests.randomise import randomise
from visionmlp.errors import CheckpointMismatch, InvalidConfig, Note
from visionmlp.models.official import resize_tokens

OTHERS = {
    "asmlp_test": {"dilation": 2, "img_size": (64, 32)},
    "cyclemlp_test": {"reweight": False, "in_chans": 4},
    "dynamixer_test": {"mixing": "random", "img_size": (64, 32)},
    "hiremlp_test": {"step_padding": "zero", "region_padding": "replicate"},
    "mlpmixer_test": {"kernel_sizes": (3,), "img_size": (32, 48)},
    "repmlpnet_test": {"window_order": "authors", "img_size": (64, 32), "kernel_sizes": ()},
    "resmlp_test": {"global_pool": "class_mlp", "norm": "layernorm", "img_size": (48, 64)},
    "sparsemlp_moe_test": {"capacity_factor": 0.5, "num_classes": 3},
    "vip_test": {"num_classes": 0, "global_pool": "", "drop_path_rate": 0.5},
}
"""Options that change results, some without a change of any tensor's shape."""


def images(model):
    return torch.randn(2, model.in_chans, *model.config.img_size, generator=torch.Generator().manual_seed(1))


def restored(model, folder, **options):
    """Saved as timm saves it, and built again."""
    arguments = json.loads(json.dumps(model.factory_args()))
    save_for_hf(model, str(folder), model_args=arguments, safe_serialization="both")
    return timm.create_model(f"local-dir:{folder}", pretrained=True, **options).eval()


@pytest.mark.parametrize("form", ["training", "deploy"])
@pytest.mark.parametrize("other", [False, True])
def test_models_come_back(name, form, other, tmp_path):
    model = randomise(timm.create_model(name, **(OTHERS[name] if other else {}))).eval()
    if form == "deploy":
        model = visionmlp.reparameterize(model)
    x = images(model)
    back = restored(model, tmp_path)
    assert back.form == form
    assert back.config.img_size == model.config.img_size
    levels = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, features_only=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(back(x), model(x))
        expected = model.forward_intermediates(x, indices=list(levels.out_indices), intermediates_only=True)
        for got, level in zip(levels(x), expected, strict=True):
            torch.testing.assert_close(got, level)


@pytest.mark.parametrize(("saved", "wanted"), [(3, 1), (4, 1), (2, 4)])
def test_other_input_channels_answer_the_same_to_grey(saved, wanted, tmp_path):
    model = randomise(timm.create_model("cyclemlp_test", in_chans=saved)).eval()
    with pytest.warns(Note, match=f"takes {saved} input channels; its first kernels were adapted to {wanted}"):
        back = restored(model, tmp_path, in_chans=wanted)
    assert back.pretrained_cfg["first_conv"] == "stem.proj"
    assert back.pretrained_cfg["input_size"][0] == wanted
    grey = images(model)[:, :1]
    with torch.no_grad():
        answer, expected = (net(grey.expand(-1, net.in_chans, -1, -1)) for net in (back, model))
    torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not hasattr(timm.models, "get_model_args"), reason="this timm saves no model_args by itself")
@pytest.mark.parametrize("form", ["training", "deploy"])
def test_changes_after_the_factory_are_saved_unasked(form, tmp_path):
    """timm notes the arguments of its factory; branches, another classifier and the form came later."""
    model = visionmlp.add_locality(timm.create_model("mlpmixer_test", img_size=(32, 48)), (1, 5))
    model.reset_classifier(4)
    model = randomise(model).eval()
    if form == "deploy":
        model = visionmlp.reparameterize(model)
    save_for_hf(model, str(tmp_path))
    back = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert back.config == model.config
    with torch.no_grad():
        torch.testing.assert_close(back(images(model)), model(images(model)))


@pytest.mark.parametrize("features_only", [False, True])
def test_a_saved_model_is_resized_like_published_weights(features_only, tmp_path):
    model = randomise(timm.create_model("resmlp_test", img_size=(32, 64))).eval()
    larger = restored(model, tmp_path, img_size=(48, 32), features_only=features_only, num_classes=5)
    expected = visionmlp.create_model("resmlp_test", img_size=(48, 32)).eval()
    expected.load_state_dict(resize_tokens(expected, model.state_dict(), (32, 64)))
    x = images(expected)
    with torch.no_grad():
        got = larger(x) if features_only else [larger.forward_features(x)]
        want = expected.forward_intermediates(x, intermediates_only=True) if features_only else [expected(x)]
        if not features_only:
            want = [expected.forward_features(x)]
            assert larger(x).shape == (2, 5)
        for level, other in zip(got, want, strict=True):
            torch.testing.assert_close(level, other)


def test_what_does_not_fit_is_refused(tmp_path):
    """timm loads loosely where the number of classes differs, as it does for features: nothing may stay random."""
    model = randomise(timm.create_model("resmlp_test", kernel_sizes=(3,))).eval()
    for options in ({}, {"features_only": True}):
        with pytest.raises(CheckpointMismatch, match="does not fit resmlp_test in deploy form"):
            restored(model, tmp_path, form="deploy", **options)
    for options in ({}, {"features_only": True}, {"num_classes": 3}):
        with pytest.raises(CheckpointMismatch, match="does not fit resmlp_test in training form"):
            restored(model, tmp_path, kernel_sizes=(3, 5), **options)
    deployed = visionmlp.reparameterize(model)
    for options in ({"features_only": True}, {"num_classes": 3}, {}):
        with pytest.raises(CheckpointMismatch, match="in training form"):
            restored(deployed, tmp_path, form="training", **options)
    with pytest.raises(InvalidConfig, match=r"has 10 classes, which cannot change to 3"):
        restored(deployed, tmp_path, num_classes=3)


def test_a_classifier_starts_a_dense_model(tmp_path):
    model = randomise(timm.create_model("hiremlp_test")).eval()
    net = restored(model, tmp_path, features_only=True, feature_norms=True)
    assert torch.equal(net.model.stem.proj.weight, model.stem.proj.weight)


def test_what_is_left_of_a_model_is_not_saved(tmp_path):
    net = timm.create_model("resmlp_test", features_only=True, out_indices=(0,))
    with pytest.raises(InvalidConfig, match="no arguments build what is left of resmlp_test"):
        restored(net.model, tmp_path)


@pytest.mark.parametrize("name", ["resmlp_test", "hiremlp_test"])
def test_the_factory_builds_deploy_forms(name):
    torch.manual_seed(0)
    deployed = timm.create_model(name, form="deploy")
    torch.manual_seed(0)
    model = visionmlp.create_model(name).eval()
    with torch.no_grad():
        torch.testing.assert_close(deployed(images(model)), model(images(model)), rtol=1e-4, atol=1e-5)
    assert deployed.form == "deploy"
