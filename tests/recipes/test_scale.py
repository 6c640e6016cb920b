"""Recipes made small: what shrinks, what stays, and that each of them then runs."""

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.tasks.segment.trees import camvid_tree
from visionmlp.cli import main
from visionmlp.errors import InvalidConfig
from visionmlp.recipes import RECIPES, ClassifyConfig, scaled
from visionmlp.recipes.register import config_class, defaults_of
from visionmlp.tasks.building import build_backbone, build_dense_backbone
from visionmlp.tasks.segment.config import SegmentConfig

DETECTORS = [name for name in RECIPES if config_class(name).task == "detect"]
FROM_WEIGHTS = [
    "resmlp_transfer",
    "mlpmixer_transfer",
    "vip_transfer",
    "dynamixer_transfer",
    "resmlp_resolution",
    *DETECTORS,
]
SEGMENTATION = [name for name in RECIPES if config_class(name).task == "segment"]
TRANSLATION = [name for name in RECIPES if config_class(name).task == "translate"]
# what a scale may change; everything else is the recipe's
SCALED = {
    "model",
    "model_args",
    "checkpoint",
    "pretrained",
    "img_size",
    "max_images",
    "epochs",
    "batch_size",
    "accumulate",
    "lr",
    "warmup_lr",
    "min_lr",
    "warmup_epochs",
    "decay_epochs",
    "ema_warmup",
    "crop_padding",
    "num_workers",
    "threads",
    "log_every",
    "knn_k",
    "local_crops",
    "local_size",
    "out_dim",
    "hidden_dim",
    "bottleneck_dim",
    "projector_dim",
    "projector_hidden",
    "settings",
    "max_detections",
    "min_size",
    "max_size",
    "crop_resize",
    "crop_range",
    "decay_milestones",
    "fpn_channels",
    "pictures",
    "max_steps",
    "warmup_steps",
    "eval_steps",
    "crop_size",
    "resize",
    "out_indices",
    "head_channels",
    "auxiliary_channels",
    "neck_channels",
    "vocab_size",
    "max_pairs",
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes: 24 images to train, 18 held out; a scale takes 16 of each."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 6)):
        for level in range(3):
            (root / split / f"level{level}").mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(60 * level, 60 * level + 100, (40, 36, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / f"level{level}" / f"{number}.png")
        annotate(root, split)
    camvid_tree(root / "masked", train=18, val=18)
    (root / "text").mkdir()
    for language, word in (("en", "a b c d"), ("de", "e f g"), ("fr", "h i")):
        for split, count in (("train", 20), ("newstest2013", 16)):
            (root / "text" / f"{split}.{language}").write_text(f"{word}\n" * count)
    return root


def annotate(root: Path, split: str) -> None:
    """A triangle of one of two classes on each image."""
    names = sorted(str(path.relative_to(root)) for path in (root / split).rglob("*.png"))
    triangles = [
        {"id": place, "image_id": place, "category_id": place % 2, "bbox": [4, 6, 20, 20], "area": 200,
         "segmentation": [[4, 6, 24, 6, 4, 26]]}
        for place in range(len(names))
    ]  # fmt: skip
    listed = [{"id": place, "file_name": name, "width": 36, "height": 40} for place, name in enumerate(names)]
    categories = [{"id": 0, "name": "even"}, {"id": 1, "name": "odd"}]
    content = {"images": listed, "annotations": triangles, "categories": categories}
    (root / f"{split}.json").write_text(json.dumps(content))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_runs_end_to_end(name: str, images: Path, tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    words = ["train", "--recipe", name, "--scale", "smoke", "--output", str(run)]
    if name != "digits":
        folders = {"segment": images / "masked", "translate": images / "text"}
        words += ["--data", str(folders.get(config_class(name).task, images))]
    assert main(words) == 0, capsys.readouterr().err
    assert {"model.safetensors", "metrics.csv", "report.html"} <= {path.name for path in run.iterdir()}
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"].endswith("_test")
    data = json.loads((run / "data.json").read_text())
    unit = "pairs" if name in TRANSLATION else "images"
    assert (data["training"][unit], data["evaluation"][unit]) == (16, 16)
    if name in DETECTORS:
        assert data["training"]["objects_per_class"] == [8, 8]
    elif name not in ("digits", *SEGMENTATION, *TRANSLATION):
        assert data["training"]["images_per_class"] == [6, 5, 5]


@pytest.mark.parametrize("scale", ["smoke", "small"])
@pytest.mark.parametrize("name", RECIPES)
def test_only_sizes_change(name: str, scale: Any) -> None:
    full, part = defaults_of(name).config.to_plain(), defaults_of(name, scale=scale).config.to_plain()
    changed = {field for field, value in full.items() if value != part[field]}
    assert changed <= SCALED
    if name in TRANSLATION:
        assert scale == "small" or part["max_pairs"] == 16
    else:
        assert part["max_images"] is not None or (name in SEGMENTATION and scale == "small")
    factor = part["batch_size"] / full["batch_size"]
    for rate in ("lr", "warmup_lr", "min_lr"):
        assert part[rate] == pytest.approx(full[rate] * factor)
    assert part["warmup_epochs"] / part["epochs"] == pytest.approx(full["warmup_epochs"] / full["epochs"])
    assert part["epochs"] <= full["epochs"]


@pytest.mark.parametrize("name", RECIPES)
def test_full_is_the_recipe(name: str) -> None:
    config = defaults_of(name).config
    assert scaled(config, "full") is config


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in (*FROM_WEIGHTS, *SEGMENTATION, *TRANSLATION)])
def test_small_models_are_small(name: str) -> None:
    config = defaults_of(name, scale="small").config
    assert config.img_size is not None
    assert config.img_size <= 32
    model = build_backbone(config, 100)
    assert 1e5 < sum(weight.numel() for weight in model.parameters()) < 2e6


@pytest.mark.parametrize("name", FROM_WEIGHTS)
def test_small_keeps_what_the_weights_are_for(name: str) -> None:
    full, small = defaults_of(name).config, defaults_of(name, scale="small").config
    assert (small.model, small.model_args, small.checkpoint) == (full.model, full.model_args, full.checkpoint)
    assert small.pretrained == full.pretrained
    assert small.img_size == full.img_size or (full.img_size is None and small.img_size == 224)
    smoke = defaults_of(name, scale="smoke").config
    assert (smoke.pretrained, smoke.checkpoint) == (False, None)


@pytest.mark.parametrize("name", SEGMENTATION)
def test_small_segmentation_is_a_part_of_the_full_run(name: str) -> None:
    full, small = defaults_of(name).config, defaults_of(name, scale="small").config
    assert isinstance(full, SegmentConfig)
    assert isinstance(small, SegmentConfig)
    assert (small.pretrained, small.checkpoint) == (False, None)
    assert 1e5 < sum(weight.numel() for weight in build_dense_backbone(small).parameters()) < 3e6
    assert full.max_steps is not None
    assert small.max_steps == full.max_steps / 40
    if full.crop_size is not None:
        assert full.resize is not None
        assert small.crop_size is not None
        assert small.resize is not None
        assert min(small.crop_size) == 128
        assert small.resize[1] / small.crop_size[0] == full.resize[1] / full.crop_size[0]
    assert small.model_args.get("embed_kernel") == full.model_args.get("embed_kernel")


def test_what_makes_a_recipe_stays_in_its_model() -> None:
    for name, kept in (
        ("resmlp_layernorm", {"norm": "layernorm"}),
        ("resmlp_class_mlp", {"global_pool": "class_mlp"}),
        ("resmlp_cifar100", {"kernel_sizes": (1, 3)}),
    ):
        assert defaults_of(name, scale="smoke").config.model_args == kept
        assert kept.items() <= defaults_of(name, scale="small").config.model_args.items()
    # another resolution than the model's own 32
    assert defaults_of("resmlp_resolution", scale="smoke").config.img_size == 56


def test_crops_shrink_with_the_image() -> None:
    transfer = cast("ClassifyConfig", defaults_of("vip_transfer", scale="smoke").config)
    assert transfer.crop_padding == 4
    dino: Any = defaults_of("resmlp_dino", scale="small").config
    assert (dino.local_size, dino.out_dim, dino.local_crops) == (round(96 * 32 / 224), 4096, 8)


def test_the_moving_average_of_a_short_run_is_not_its_beginning() -> None:
    assert defaults_of("dynamixer_imagenet", scale="small").config.ema_warmup
    assert not defaults_of("dynamixer_imagenet").config.ema_warmup
    assert not defaults_of("vip_imagenet", scale="small").config.ema_warmup


def test_a_step_limit_and_the_teachers_warm_up_shrink_too() -> None:
    config = ClassifyConfig(model="resmlp_s12", data="d", output=Path("o"), epochs=100, max_steps=5000)
    assert (scaled(config, "smoke").max_steps, scaled(config, "small").max_steps) == (100, 500)
    dino = RECIPES["resmlp_dino"](data="d", output=Path("o"))
    longer = type(dino).from_plain({**dino.to_plain(), "warmup_teacher_temperature_epochs": 30})
    assert getattr(scaled(longer, "small"), "warmup_teacher_temperature_epochs") == 3  # noqa: B009 (DINO's own field)


def test_what_cannot_be_scaled_is_named() -> None:
    config = ClassifyConfig(model="runs/x", data="d", output=Path("o"))
    with pytest.raises(InvalidConfig, match="scale small needs the name of a model, not 'runs/x'"):
        scaled(config, "small")
    with pytest.raises(InvalidConfig, match="scale must be one of smoke, small, full, got 'tiny'"):
        scaled(config, "tiny")  # type: ignore[arg-type]
