"""Options of classification runs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from visionmlp.errors import CheckpointError, InvalidConfig, UnknownModel, VisionMLPError
from visionmlp.layers.fusible import reparameterize
from visionmlp.models.checkpoint import load_model, save_checkpoint
from visionmlp.models.registry import create_model
from visionmlp.recipes import ClassifyConfig
from visionmlp.tasks.classify.run import build_model


def config_for(**options: Any) -> ClassifyConfig:
    defaults: dict[str, Any] = {"model": "repmlpnet_test", "data": "data", "output": Path("run"), "accelerator": "cpu"}
    return ClassifyConfig(**{**defaults, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hflip": 1.5}, r"hflip is a probability, in \[0, 1\], got 1.5"),
        ({"erasing": -0.1}, "erasing is a probability"),
        ({"num_workers": -1}, "num_workers must not be negative"),
        ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\)"),
        ({"repeated_augmentation": 0}, "repeated_augmentation must be at least 1"),
        ({"crop_scale": (0.5, 0.1)}, "crop_scale must be two areas"),
        ({"crop_ratio": (0.0, 1.0)}, "crop_ratio must be two positive ratios"),
        ({"crop_pct": 0.0}, r"crop_pct must be in \(0, 1\]"),
        ({"interpolation": "cubic"}, "interpolation must be one of bilinear"),
        ({"crop": "random"}, "crop must be one of resized, pad, center"),
        ({"mixup": 0.2, "batch_size": 9}, "mixup and cutmix pair images"),
        ({"auto_augment": "rand-x5"}, "auto_augment 'rand-x5' is not in timm's notation"),
        ({"auto_augment": "rand-m9-zzz"}, "auto_augment 'rand-m9-zzz' is not in timm's notation"),
        ({"auto_augment": "rand-m9-tweigths"}, "is not in timm's notation"),
        ({"auto_augment": "augmix-m"}, "is not in timm's notation"),
        ({"auto_augment": "v0-m9"}, "is not in timm's notation"),
        ({"std": (1.0, 0.0, 1.0)}, "std must be positive numbers, got"),
        ({"on_bad_image": "ignore"}, "on_bad_image must be one of stop, skip"),
    ],
)
def test_each_rule_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        config_for(**options)


@pytest.mark.parametrize(
    "policy",
    ["rand-m9-n3-p0.5-mstd0.5-mmax20-inc1-tweights", "augmix-m5-w4-d2-a1.5-b1-mstd0.5", "originalr-mstd0.5", "3a"],
)
def test_timms_notation_is_accepted(policy: str) -> None:
    assert config_for(auto_augment=policy).auto_augment == policy


def test_lists_of_another_length_are_named() -> None:
    plain = config_for().to_plain()
    assert ClassifyConfig.from_plain({**plain, "std": [1, "2e-1", 1]}).std == (1.0, 0.2, 1.0)
    for name, value in (("crop_scale", [0.1]), ("std", ["x"])):
        with pytest.raises(InvalidConfig, match=f"{name} cannot be "):
            ClassifyConfig.from_plain({**plain, name: value})


def test_a_models_name_wins_over_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_checkpoint("model.safetensors", build_model(config_for(model="resmlp_test"), 3))
    before = build_model(config_for(), 4)
    (tmp_path / "repmlpnet_test").mkdir()
    (tmp_path / "model.safetensors").rename("repmlpnet_test/model.safetensors")
    after = build_model(config_for(), 4)
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))
    assert build_model(config_for(model="./repmlpnet_test"), 4).name == "resmlp_test"


def test_model_options_arrive() -> None:
    model = build_model(
        config_for(model_args={"kernel_sizes": [1, 7]}, img_size=64, drop_path_rate=0.3, head_bias=-6.9), 4
    )
    assert model.config.img_size == (64, 64)
    assert model.config.drop_path_rate == 0.3
    assert getattr(model.config, "kernel_sizes") == (1, 7)  # noqa: B009 (a field of the family)
    assert model.num_classes == 4
    assert model.get_classifier().bias.unique().item() == pytest.approx(-6.9)  # type: ignore[union-attr,operator]


def test_initial_weights_follow_the_seed_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a, b, c = (build_model(config_for(seed=seed), 4).get_classifier().weight for seed in (1, 1, 2))  # type: ignore[union-attr]
    assert torch.equal(a, b)  # type: ignore[arg-type]
    assert not torch.equal(a, c)  # type: ignore[arg-type]
    assert torch.equal(before, torch.get_rng_state())


def test_fine_tuning_from_a_checkpoint_resets_the_classifier(tmp_path: Path) -> None:
    source = build_model(config_for(seed=3), 7).eval()
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, source, class_names=list("abcdefg"))
    for options in ({"model": str(path)}, {"checkpoint": path}):
        model = build_model(config_for(**options), 4)
        assert model.num_classes == 4
        assert torch.equal(model.stem.proj.weight, source.stem.proj.weight)  # type: ignore[union-attr,arg-type]
    save_checkpoint(tmp_path / "deploy.safetensors", reparameterize(source))  # type: ignore[arg-type]
    with pytest.raises(InvalidConfig, match="is a deploy form, which cannot be trained"):
        build_model(config_for(model=str(tmp_path / "deploy.safetensors")), 7)


def test_bad_models_are_named() -> None:
    with pytest.raises(UnknownModel, match="repmlpnet_t224"):
        build_model(config_for(model="repmlpnet_t225"), 4)
    with pytest.raises(InvalidConfig, match="num_classes follows from the data"):
        build_model(config_for(model_args={"num_classes": 3}), 4)


def test_preprocessing_is_the_models_own_unless_given() -> None:
    model = build_model(config_for(), 4)
    own = config_for().preprocessing(model)
    assert own.input_size == (3, 32, 32)
    assert own.mean == model.pretrained_cfg["mean"]
    given = {"mean": (0.1, 0.2, 0.3), "std": (1.0, 1.0, 1.0), "interpolation": "bilinear", "crop_pct": 0.8}
    result = config_for(**given).preprocessing(model)
    assert {name: getattr(result, name) for name in given} == given
    with pytest.raises(InvalidConfig, match="mean needs one number for each of 3 channels, got 1"):
        config_for(mean=(0.5,)).preprocessing(model)


def test_fine_tuning_keeps_the_colours_that_the_weights_have_learnt(tmp_path: Path) -> None:
    model = create_model("resmlp_test")
    own = {"mean": [0.1, 0.2, 0.3], "std": [0.7, 0.8, 0.9]}
    for name, preprocessing in (("own", own), ("none", {})):
        save_checkpoint(tmp_path / f"{name}.safetensors", model, preprocessing=preprocessing)
    by = {}
    for name, options in (("own", {}), ("none", {}), ("own", {"mean": (0.5, 0.5, 0.5)})):
        config = config_for(model=str(tmp_path / f"{name}.safetensors"), **options)
        by[name, len(options)] = config.preprocessing(build_model(config, 3))
    assert (by["own", 0].mean, by["own", 0].std) == ((0.1, 0.2, 0.3), (0.7, 0.8, 0.9))
    assert (by["own", 1].mean, by["own", 1].std) == ((0.5, 0.5, 0.5), (0.7, 0.8, 0.9))
    assert by["none", 0].mean == tuple(model.pretrained_cfg["mean"]) != by["own", 0].mean


def test_a_classifier_refuses_norms_that_it_would_not_use(tmp_path):
    config = ClassifyConfig(
        model="cyclemlp_test", model_args={"feature_norms": True}, data="sklearn/digits", output=tmp_path
    )
    with pytest.raises(InvalidConfig, match="does not use feature_norms"):
        build_model(config, 10)


@pytest.mark.parametrize(
    "arguments",
    [
        {"pretrained": True},
        {"checkpoint": "x.pth"},
        {"name": "resmlp_s12"},
        {"reference": "x"},
        {"prefix": "x"},
        {"features_only": True},
        {"out_indices": [0]},
        {"pretrained_cfg_overlay": {}},
        {"checkpoint_path": "x"},
        {"cache_dir": "x"},
        {"form": "deploy"},
        {"device": "cuda"},
        {"num_classes": 3},
        {"deph": 3},
        {"depth": "many"},
        {"depth": {"a": 1}},
        {"depth": 1.5},
        {"kernel_sizes": 3},
        {"kernel_sizes": [[3]]},
        {"drop_rate": "nan"},
        {"": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("start", ["name", "file"])
def test_model_args_that_cannot_be_are_one_line(arguments, start, tmp_path):
    save_checkpoint(tmp_path / "m.safetensors", create_model("resmlp_test"))
    model = "resmlp_test" if start == "name" else str(tmp_path / "m.safetensors")
    with pytest.raises(VisionMLPError) as error:
        build_model(config_for(model=model, model_args=arguments), 4)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["resmlp_test", "mlpmixer_test"])
def test_no_run_starts_from_a_deploy_form(name, tmp_path):
    """Whatever names it, and whatever else would be changed."""
    deployed = reparameterize(create_model(name).eval())
    (tmp_path / "old").mkdir()
    file = tmp_path / "old" / "model.safetensors"
    save_checkpoint(file, deployed)
    save_file(deployed.state_dict(), tmp_path / "raw.safetensors")
    for options in (
        {"model": str(file)},
        {"model": str(file.parent)},
        {"model": str(file), "drop_path_rate": 0.1},
        {"model": name, "checkpoint": file},
        {"model": name, "checkpoint": file, "img_size": 64},
        {"model": name, "checkpoint": file.parent},
        {"model": name, "checkpoint": tmp_path / "raw.safetensors"},
    ):
        for classes in (10, 3):
            with pytest.raises(VisionMLPError, match=r"is a deploy form.*training form") as error:
                build_model(config_for(**options), classes)
            assert "\n" not in str(error.value)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"old is no run folder"):
        build_model(config_for(model=name, checkpoint=file.parent), 10)
    with pytest.raises(CheckpointError, match=r"old is a folder; give its model\.safetensors"):
        load_model(name, checkpoint=file.parent)
