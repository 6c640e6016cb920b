"""The numbers of each recipe are those of the papers and the authors' code, written down here a second time."""

from pathlib import Path
from typing import Any

import pytest

from visionmlp.errors import InvalidConfig
from visionmlp.measure.catalog import read_catalog
from visionmlp.recipes import RECIPES
from visionmlp.recipes.register import Header, config_class, defaults_of, header_of
from visionmlp.tasks.building import build_backbone
from visionmlp.tasks.translate.names import TRANSLATORS

DEIT = {
    "optimizer": "adamw",
    "weight_decay": 0.05,
    "schedule": "cosine",
    "label_smoothing": 0.1,
    "auto_augment": "rand-m9-mstd0.5-inc1",
    "erasing": 0.25,
    "erasing_mode": "pixel",
    "mixup": 0.8,
    "cutmix": 1.0,
    "mix_probability": 1.0,
    "mix_switch": 0.5,
    "color_jitter": 0.0,
}
PERMUTATOR = {**DEIT, "lr": 2e-3, "epochs": 300, "warmup_epochs": 20, "warmup_lr": 1e-6, "min_lr": 1e-5}
RESMLP = {
    **DEIT,
    "optimizer": "lamb",
    "lr": 5e-3,
    "weight_decay": 0.2,
    "batch_size": 2048,
    "epochs": 400,
    "warmup_epochs": 5,
    "drop_path_rate": 0.05,
    "repeated_augmentation": 3,
    "crop_pct": 0.9,
}
CIFAR = {
    "batch_size": 128,
    "epochs": 100,
    "warmup_epochs": 10,
    "lr": 2e-3 * 128 / 256,
    "weight_decay": 0.1,
    "crop": "pad",
    "crop_padding": (40 - 32) // 2,
    "hflip": 0.5,
    "img_size": 32,
    "mixup": 0.0,
    "auto_augment": None,
}
ADE20K = {
    "head": "upernet",
    "optimizer": "adamw",
    "schedule": "poly",
    "resize": (2048, 512),
    "crop_size": (512, 512),
    "scale_range": (0.5, 2.0),
    "max_class_share": 0.75,
    "hflip": 0.5,
    "brightness": 32.0,
    "contrast": 0.5,
    "saturation": 0.5,
    "hue": 18.0,
    "loss_normaliser": "all_pixels",
    "auxiliary_weight": 0.4,
    "head_dropout": 0.1,
    "sync_batch_norm": True,
}
WARM = {"max_steps": 160_000, "batch_size": 16, "warmup_steps": 1500, "warmup_ratio": 1e-6, "power": 1.0}
PERMUTATOR_TRANSFER = {
    "optimizer": "sgd",
    "lr": 0.01,
    "weight_decay": 5e-4,
    "epochs": 60,
    "schedule": "cosine",
    "momentum": 0.9,
    "pretrained": False,
    "img_size": None,
}
# recipe, model: fields
DETECTOR = {
    "epochs": 12,
    "batch_size": 16,
    "optimizer": "adamw",
    "schedule": "step",
    "decay_milestones": (8, 11),
    "decay_rate": 0.1,
    "warmup_ratio": 1e-3,
    "hflip": 0.5,
    "max_size": 1333,
    "photometric": False,
    "empty_images": "leave_out",
}
ASMLP_DETECTOR = {
    **DETECTOR,
    "lr": 1e-4,
    "weight_decay": 0.05,
    "min_size": (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800),
    "crop": 0.5,
    "crop_resize": (400, 500, 600),
    "crop_range": (384, 600),
}
THREE = {"epochs": 36, "decay_milestones": (27, 33)}
CASCADE = {"head": "cascade_mask_rcnn", "definition": "asmlp"}
CYCLEMLP_DETECTOR = {
    **DETECTOR,
    "definition": "mmdet",
    "weight_decay": 1e-4,
    "min_size": (800,),
    "crop": 0.0,
    "drop_path_rate": 0.0,
    "pretrained": True,
}
RESMLP_WMT14 = {
    "optimizer": "adagrad",
    "lr": 0.2,
    "schedule": "constant",
    "warmup_steps": 32_000,
    "weight_decay": 0.0,
    "label_smoothing": 0.1,
    "source": "en",
    "valid": "newstest2013",
    "max_tokens": 250,
    "max_ratio": 1.5,
    "batch_size": 3584 * 8,
}
REFERENCE: dict[tuple[str, str], dict[str, Any]] = {
    ("repmlpnet_imagenet", "repmlpnet_t224"): {
        "epochs": 100,
        "batch_size": 32 * 8,
        "optimizer": "adamw",
        "lr": 0.002,
        "weight_decay": 0.1,
        "schedule": "cosine",
        "warmup_epochs": 10,
        "warmup_lr": 5e-7,
        "min_lr": 0.0,
        "label_smoothing": 0.1,
        "mixup": 0.4,
        "cutmix": 1.0,
        "mix_switch": 0.5,
        "clip_grad": 5.0,
        "auto_augment": "rand-m15-mstd0.5-inc1",
        "interpolation": "bilinear",
        "ema_decay": None,
    },
    ("resmlp_imagenet", "resmlp_s12"): {**RESMLP, "model_args": {}},
    ("resmlp_layernorm", "resmlp_s12"): {**RESMLP, "model_args": {"norm": "layernorm"}},
    ("resmlp_class_mlp", "resmlp_s12"): {**RESMLP, "model_args": {"global_pool": "class_mlp"}},
    ("resmlp_sgd", "resmlp_s12"): {
        "optimizer": "sgd",
        "optimizer_args": {"nesterov": False},
        "epochs": 90,
        "schedule": "step",
        "decay_epochs": 30,
        "decay_rate": 0.1,
        "batch_size": 256,
        "lr": 0.1,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "mixup": 0.0,
        "cutmix": 0.0,
        "erasing": 0.0,
        "auto_augment": None,
        "label_smoothing": 0.0,
        "repeated_augmentation": 1,
        "drop_path_rate": None,
    },
    ("mlpmixer_imagenet", "mlpmixer_b16"): {
        "lr": 1e-3,
        "weight_decay": 1e-4 / 1e-3,
        "batch_size": 4096,
        "epochs": 300,
        "schedule": "linear",
        "min_lr": 1e-5,
        "clip_grad": 1.0,
        "auto_augment": "rand-m15-n2",
        "mixup": 0.5,
        "drop_path_rate": 0.1,
        "loss": "bce_sum",
        "head_bias": -6.9,
    },
    ("asmlp_imagenet", "asmlp_t"): {
        **DEIT,
        "epochs": 300,
        "warmup_epochs": 20,
        "batch_size": 8 * 128,
        "lr": 5e-4 * 2,
        "warmup_lr": 5e-7 * 2,
        "min_lr": 5e-6 * 2,
        "clip_grad": 5.0,
        "drop_path_rate": 0.2,
        "repeated_augmentation": 1,
        "ema_decay": None,
        "crop_pct": 224 / 256,
        "interpolation": "bicubic",
    },
    ("asmlp_imagenet", "asmlp_s"): {"drop_path_rate": 0.3, "batch_size": 1024},
    ("asmlp_imagenet", "asmlp_b"): {"drop_path_rate": 0.5, "batch_size": 1024},
    ("hiremlp_imagenet", "hiremlp_t"): {
        **DEIT,
        "epochs": 300,
        "warmup_epochs": 20,
        "warmup_lr": 1e-6,
        "min_lr": 1e-5,
        "batch_size": 8 * 256,
        "lr": 2e-3,
        "drop_path_rate": 0.0,
        "repeated_augmentation": 3,
        "ema_decay": None,
        "clip_grad": None,
        "seed": 3407,
        "crop_pct": 224 / 256,
    },
    ("hiremlp_imagenet", "hiremlp_b"): {"batch_size": 8 * 128, "lr": 1e-3, "drop_path_rate": 0.2},
    ("vip_imagenet", "vip_s7"): {
        **PERMUTATOR,
        "batch_size": 8 * 256,
        "drop_path_rate": 0.1,
        "ema_decay": None,
        "repeated_augmentation": 1,
        "crop_pct": 0.9,
    },
    ("vip_imagenet", "vip_m7"): {"crop_pct": 0.9},
    ("vip_imagenet", "vip_l7"): {"crop_pct": 0.875},
    ("cyclemlp_imagenet", "cyclemlp_b1"): {
        **DEIT,
        "batch_size": 8 * 128,
        "lr": 5e-4 * 1024 / 512,
        "epochs": 300,
        "warmup_epochs": 5,
        "warmup_lr": 1e-6,
        "min_lr": 1e-5,
        "drop_path_rate": 0.1,
        "repeated_augmentation": 3,
        "crop_pct": 224 / 256,
    },
    ("dynamixer_imagenet", "dynamixer_s"): {
        **PERMUTATOR,
        "batch_size": 8 * 256,
        "drop_path_rate": 0.1,
        "ema_decay": 0.99996,
        "crop_pct": 0.9,
    },
    ("dynamixer_imagenet", "dynamixer_m"): {"batch_size": 8 * 128, "lr": 2e-3, "drop_path_rate": 0.1, "crop_pct": 0.9},
    ("dynamixer_imagenet", "dynamixer_l"): {"batch_size": 8 * 64, "lr": 2e-3, "drop_path_rate": 0.3, "crop_pct": 0.875},
    ("repmlpnet_cifar100", "repmlpnet_cifar"): {**CIFAR, "model_args": {"kernel_sizes": (1, 3)}},
    ("resmlp_cifar100", "resmlp_s12"): {
        **CIFAR,
        "model_args": {"patch_size": 2, "dim": 256, "kernel_sizes": (1, 3)},
    },
    ("resmlp_transfer", "resmlp_s12"): {
        **DEIT,
        "lr": 5e-6,
        "batch_size": 768,
        "epochs": 1000,
        "warmup_epochs": 5,
        "drop_path_rate": 0.05,
        "repeated_augmentation": 3,
        "pretrained": True,
        "img_size": None,
    },
    ("resmlp_transfer", "resmlp_s12.dist"): {"drop_path_rate": 0.05},
    ("resmlp_transfer", "resmlp_s24"): {"drop_path_rate": 0.1},
    ("mlpmixer_transfer", "mlpmixer_b16"): {
        "optimizer": "sgd",
        "lr": 0.03,
        "momentum": 0.9,
        "schedule": "cosine",
        "clip_grad": 1.0,
        "batch_size": 512,
        "accumulate": 8,
        "loss": "cross_entropy",
        "pretrained": True,
    },
    ("vip_transfer", "vip_s7"): PERMUTATOR_TRANSFER,
    ("dynamixer_transfer", "dynamixer_s"): PERMUTATOR_TRANSFER,
    ("resmlp_resolution", "resmlp_s12"): {"img_size": 384, "pretrained": True},
    ("resmlp_dino", "resmlp_s12"): {
        "epochs": 300,
        "optimizer": "adamw",
        "lr": 5e-4 * 1024 / 256,
        "batch_size": 1024,
        "warmup_epochs": 10,
        "min_lr": 1e-6,
        "weight_decay": 0.04,
        "weight_decay_end": 0.4,
        "teacher_momentum": 0.996,
        "teacher_temperature": 0.04,
        "student_temperature": 0.1,
        "center_momentum": 0.9,
        "global_scale": (0.4, 1.0),
        "local_scale": (0.05, 0.4),
        "local_crops": 8,
        "local_size": 96,
        "out_dim": 65536,
        "hidden_dim": 2048,
        "bottleneck_dim": 256,
        "norm_last_layer": True,
        "freeze_last_layer": 1,
        "clip_grad": 3.0,
        "clip_grad_each": True,
        "drop_path_rate": 0.1,
        "interpolation": "bicubic",
    },
    ("asmlp_mask_rcnn_1x", "asmlp_t"): {**ASMLP_DETECTOR, "head": "mask_rcnn", "drop_path_rate": 0.2},
    ("asmlp_mask_rcnn_3x", "asmlp_s"): {**ASMLP_DETECTOR, **THREE, "head": "mask_rcnn", "drop_path_rate": 0.2},
    ("asmlp_cascade_1x", "asmlp_t"): {**ASMLP_DETECTOR, **CASCADE, "drop_path_rate": 0.1},
    ("asmlp_cascade_1x", "asmlp_b"): {**ASMLP_DETECTOR, **CASCADE, "drop_path_rate": 0.2},
    ("asmlp_cascade_3x", "asmlp_s"): {**ASMLP_DETECTOR, **CASCADE, **THREE, "drop_path_rate": 0.2},
    ("asmlp_cascade_3x", "asmlp_b"): {**ASMLP_DETECTOR, **CASCADE, **THREE, "drop_path_rate": 0.3},
    ("cyclemlp_retinanet", "cyclemlp_b1"): {**CYCLEMLP_DETECTOR, "head": "retinanet", "lr": 1e-4},
    ("cyclemlp_mask_rcnn", "cyclemlp_b1"): {**CYCLEMLP_DETECTOR, "head": "mask_rcnn", "lr": 2e-4},
    ("sparsemlp_moco", "sparsemlp_moe_b"): {
        "epochs": 300,
        "batch_size": 4096,
        "lr": 1.5e-4 * 4096 / 256,
        "weight_decay": 0.1,
        "warmup_epochs": 40,
        "warmup_lr": 0.0,
        "min_lr": 0.0,
        "temperature": 0.2,
        "momentum_encoder": 0.99,
        "momentum_rises": True,
        "projector_dim": 256,
        "projector_hidden": 4096,
        "projector_layers": 3,
        "predictor_norm": True,
        "freeze_stem": True,
        "crop_scale": (0.08, 1.0),
        "clip_grad": None,
        "interpolation": "bilinear",
    },
    ("asmlp_upernet", "asmlp_s"): {**ADE20K, **WARM, "lr": 6e-5, "weight_decay": 0.01, "drop_path_rate": 0.3},
    ("asmlp_upernet", "asmlp_b"): {"drop_path_rate": 0.5, "batch_size": 16, "max_steps": 160_000},
    ("hiremlp_upernet", "hiremlp_s"): {
        **ADE20K,
        "lr": 1.2e-4,
        "weight_decay": 0.01,
        "max_steps": 80_000,
        "batch_size": 8 * 4,
        "warmup_steps": 800,
        "power": 1.0,
        "drop_path_rate": 0.2,
    },
    ("hiremlp_semantic_fpn", "hiremlp_s"): {
        **ADE20K,
        "head": "semantic_fpn",
        "lr": 2e-4,
        "weight_decay": 0.05,
        "max_steps": 40_000,
        "batch_size": 8 * 4,
        "warmup_steps": None,
        "power": 0.9,
        "drop_path_rate": 0.1,
    },
    ("cyclemlp_semantic_fpn", "cyclemlp_b2"): {
        **ADE20K,
        "head": "semantic_fpn",
        "lr": 2e-4,
        "weight_decay": 1e-4,
        "max_steps": 40_000,
        "batch_size": 32,
        "power": 0.9,
        "min_lr": 0.0,
        "size_divisor": 32,
    },
    ("repmlpnet_cityscapes", "repmlpnet_d256"): {
        "head": "upernet",
        "max_steps": 80_000,
        "crop_size": (512, 1024),
        "resize": (2048, 1024),
        "optimizer": "sgd",
        "lr": 0.01,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "min_lr": 1e-4,
        "power": 0.9,
        "model_args": {"embed_kernel": 3},
    },
    ("resmlp_upernet", "resmlp_s12"): {
        **WARM,
        "head": "upernet",
        "resize": (896, 224),
        "crop_size": None,
        "inference": "slide",
        "lr": 6e-5,
        "weight_decay": 0.01,
        "out_indices": (3, 5, 7, 11),
    },
    ("resmlp_wmt14_ende", "resmlp_seq2seq_12"): {
        **RESMLP_WMT14,
        "target": "de",
        "model_args": {"dropout": 0.15},
        "vocab_size": 32_000,
    },
    ("resmlp_wmt14_ende", "resmlp_seq2seq_6"): RESMLP_WMT14,
    ("resmlp_wmt14_enfr", "resmlp_seq2seq_12"): {
        **RESMLP_WMT14,
        "target": "fr",
        "model_args": {"dropout": 0.1},
        "vocab_size": 40_000,
    },
    ("transformer_wmt14_ende", "transformer_seq2seq_6"): {
        "optimizer_args": {"betas": (0.9, 0.98)},
        "lr": 5e-4,
        "schedule": "inverse_sqrt",
        "warmup_steps": 4000,
        "warmup_lr": 1e-7,
        "weight_decay": 0.0,
        "label_smoothing": 0.1,
        "max_steps": 100_000,
        "target": "de",
    },
}
# recipe, family's models that it is for, and the name that its docstring gives them
RESULTS = {
    "repmlpnet_imagenet": "repmlpnet_",
    "resmlp_imagenet": "resmlp_",
    "asmlp_imagenet": "asmlp_",
    "hiremlp_imagenet": "hiremlp_",
    "vip_imagenet": "vip_",
    "cyclemlp_imagenet": "cyclemlp_",
    "dynamixer_imagenet": "dynamixer_",
}


@pytest.mark.parametrize(("name", "model"), REFERENCE)
def test_the_values_are_the_sources(name: str, model: str) -> None:
    config = defaults_of(name, model=model).config
    assert config.to_plain()["model"] == model
    for field, value in REFERENCE[name, model].items():
        assert getattr(config, field) == (pytest.approx(value) if isinstance(value, float) else value), field


def test_every_published_recipe_has_its_values_here() -> None:
    assert {name for name, _ in REFERENCE} == RECIPES.keys() - {"digits"}


def test_warm_ups_in_steps() -> None:
    """Some sources give their warm-up in steps, without the last, incomplete batch of an epoch."""
    mixer: Any = defaults_of("mlpmixer_imagenet").config
    assert mixer.warmup_epochs * (1_281_167 // 4096) == pytest.approx(10_000)
    transfer = defaults_of("mlpmixer_transfer").config
    steps = 50_000 // transfer.batch_size
    assert transfer.warmup_epochs * steps == pytest.approx(500)
    assert transfer.epochs * steps == pytest.approx(10_000, abs=steps / 2)
    for name in ("asmlp_cascade_3x", "cyclemlp_retinanet"):
        assert round(defaults_of(name).config.warmup_epochs * (117_266 // 16)) == 500


@pytest.mark.parametrize("name", RESULTS)
def test_expected_results_are_those_of_the_table_of_models(name: str) -> None:
    expected = header_of(RECIPES[name]).expected
    models = [entry for entry in read_catalog().values() if entry.name.startswith(RESULTS[name]) and entry.paper_top1]
    assert models
    for entry in models:
        assert f"{entry.paper_top1} ({entry.name.removeprefix(RESULTS[name])})" in expected


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_documented_and_survive_yaml(name: str) -> None:
    config = defaults_of(name).config
    assert type(config) is config_class(name)
    assert type(config).from_plain(config.to_plain()).to_plain() == config.to_plain()
    assert config.to_plain()["model"] in (*read_catalog(), *TRANSLATORS)
    header = header_of(RECIPES[name])
    assert f"--recipe {name} " in header.command
    for field in defaults_of(name).to_give:
        assert f"--{field} " in header.command


def test_a_docstring_without_its_parts_is_an_error() -> None:
    def recipe() -> Any:
        """Title.

        Command: run
            it
        Expected: a lot.
        """

    with pytest.raises(ValueError, match="recipe does not say Cost, Source"):
        header_of(recipe)
    recipe.__doc__ = f"{recipe.__doc__}\n        Cost: 1: 2.\n        Source: here.\n"
    assert header_of(recipe) == Header(
        title="Title.", command="run it", expected="a lot.", cost="1: 2.", source="here."
    )


def test_what_is_left_to_the_caller() -> None:
    assert defaults_of("resmlp_imagenet").to_give == ("data", "output")
    assert defaults_of("vip_transfer").to_give == ("data", "output", "checkpoint")
    assert defaults_of("vip_transfer", scale="smoke").to_give == ("data", "output")
    assert defaults_of("digits").to_give == ("output",)
    with pytest.raises(InvalidConfig, match="no recipe 'vip_transfe'; did you mean vip_transfer"):
        defaults_of("vip_transfe")


@pytest.mark.parametrize(("name", "params"), [("repmlpnet_cifar100", 8.3e6), ("resmlp_cifar100", 7.1e6)])
def test_cifar_models_have_the_size_of_table_5(name: str, params: float) -> None:
    config = RECIPES[name](data="data", output=Path("run"), kernel_sizes=())
    assert round(sum(weight.numel() for weight in build_backbone(config, 100).parameters()), -5) == params
