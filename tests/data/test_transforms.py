"""Every augmentation option reaches the image."""

import dataclasses
import pickle
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torchvision import transforms

from visionmlp.data import Augmentation, Preprocessing
from visionmlp.data.seeding import seeded
from visionmlp.errors import InvalidConfig
from visionmlp.recipes import RECIPES, ClassifyConfig
from visionmlp.recipes.register import defaults_of

PREPROCESSING = Preprocessing(input_size=(3, 16, 16), mean=(0.0,) * 3, std=(1.0,) * 3)
RECIPE_CONFIGS = [
    config for config in (defaults_of(name).config for name in RECIPES) if isinstance(config, ClassifyConfig)
]
PLAIN = Augmentation(crop="center", hflip=0.0)
IMAGE = Image.fromarray(np.random.default_rng(0).integers(1, 256, (20, 16, 3), dtype=np.uint8))


def augment(augmentation: Augmentation, seed: int = 0, image: Image.Image = IMAGE) -> torch.Tensor:
    with seeded(seed):
        return augmentation.transform(PREPROCESSING)(image)


def test_without_augmentation_training_sees_what_evaluation_sees() -> None:
    assert torch.equal(augment(PLAIN), PREPROCESSING.transform()(IMAGE))


@pytest.mark.parametrize(
    "change",
    [
        {"crop": "pad"},
        {"crop": "resized"},
        {"hflip": 1.0},
        {"rotation": 30.0},
        {"color_jitter": 0.4},
        {"auto_augment": "rand-m9-mstd0.5-inc1"},
        {"erasing": 1.0},
    ],
)
def test_each_option_changes_the_image(change: dict[str, object]) -> None:
    assert not torch.equal(augment(dataclasses.replace(PLAIN, **change)), augment(PLAIN))


@pytest.mark.parametrize(
    ("base", "change"),
    [
        ({"crop": "resized"}, {"crop_scale": (0.9, 1.0)}),
        ({"crop": "resized"}, {"crop_ratio": (2.0, 2.1)}),
        ({"crop": "pad"}, {"crop_padding": 1}),
        ({"erasing": 1.0}, {"erasing_mode": "const"}),
    ],
)
def test_each_option_of_an_option_has_an_effect(base: dict[str, object], change: dict[str, object]) -> None:
    before = dataclasses.replace(PLAIN, **base)
    assert not torch.equal(augment(before), augment(dataclasses.replace(before, **change)))


def test_color_jitter_has_an_effect_beside_auto_augment() -> None:
    before = dataclasses.replace(PLAIN, auto_augment="rand-m9-n0")
    assert torch.equal(augment(before), augment(PLAIN))
    assert not torch.equal(augment(dataclasses.replace(before, color_jitter=0.4)), augment(before))


@pytest.mark.parametrize(
    "policy",
    [
        *sorted({config.auto_augment for config in RECIPE_CONFIGS if config.auto_augment}),
        *("augmix-m10-mstd0", "v0-mstd3", "v0r-mstd5", "originalr-mstd5", "rand-m10-n3-p1-inc1-t3aw"),
    ],
)
def test_no_draw_of_a_policy_fails(policy: str) -> None:
    transform = dataclasses.replace(PLAIN, auto_augment=policy).transform(PREPROCESSING)
    for seed in range(300):
        with seeded(seed):
            transform(IMAGE)


def test_posterize_keeps_nothing_at_magnitude_10() -> None:
    transform: Any = dataclasses.replace(PLAIN, auto_augment="rand-m10-p1-inc1").transform(PREPROCESSING)
    policy = next(step for step in transform.transforms if hasattr(step, "transforms") and step.transforms)
    operations = [
        operation
        for step in policy.transforms
        for operation in getattr(step, "ops", [])
        if operation.name == "PosterizeIncreasing"
    ]
    assert len(operations) == 1
    assert operations[0](IMAGE).getextrema() == ((0, 0),) * 3
    operations[0].magnitude = 9
    assert operations[0](IMAGE).getextrema() != ((0, 0),) * 3


def test_a_pad_crop_is_a_shift_within_black() -> None:
    image = Image.new("RGB", (16, 16), (255, 255, 255))
    augmentation = Augmentation(crop="pad", crop_padding=4, hflip=0.0)
    crops = [augment(augmentation, seed, image) for seed in range(20)]
    assert all(set(crop.unique().tolist()) <= {0.0, 1.0} for crop in crops)
    assert min(crop.sum() for crop in crops) >= 3 * 12 * 12
    assert len({tuple(crop[0].sum(0).tolist()) for crop in crops}) > 3


THIN = [(2, 20000), (20000, 2), (1, 100), (3000, 90), (100, 5003)]


@pytest.mark.parametrize("crop", ["center", "pad", "resized"])
@pytest.mark.parametrize("size", THIN)
def test_thin_images_need_little_memory(
    size: tuple[int, int], crop: Literal["center", "pad", "resized"], monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels: list[int] = []
    resize = Image.Image.resize

    def measured(image: Image.Image, target: tuple[int, int], *arguments: Any) -> Image.Image:
        pixels.append(target[0] * target[1])
        return resize(image, target, *arguments)

    monkeypatch.setattr(Image.Image, "resize", measured)
    assert augment(Augmentation(crop=crop), image=Image.new("RGB", size)).shape == (3, 16, 16)
    assert PREPROCESSING.transform()(Image.new("RGB", size)).shape == (3, 16, 16)
    assert 0 < max(pixels) <= 34 * 16 * 16


@pytest.mark.parametrize("target", [(16, 16), (16, 48)])
@pytest.mark.parametrize("size", [(20, 30), (30, 20), (100, 3100), (3100, 100), (5, 160), *THIN[2:]])
def test_thin_images_show_what_timm_shows(size: tuple[int, int], target: tuple[int, int]) -> None:
    """Bit for bit up to 32 times as long as wide; beyond, to half a pixel of a smooth picture."""
    y, x = np.mgrid[: size[1], : size[0]] * (16 / min(size))
    image = Image.fromarray((127 + 45 * np.sin(x / 9) + 82 * np.sin(y / 7)).astype(np.uint8)).convert("RGB")
    preprocessing = dataclasses.replace(PREPROCESSING, input_size=(3, *target), crop_pct=0.9)
    reference: Any = create_transform(
        input_size=preprocessing.input_size,
        mean=preprocessing.mean,
        std=preprocessing.std,
        crop_pct=0.9,
        interpolation="bicubic",
    )
    difference = (preprocessing.transform()(image) - reference(image)).abs().max() * 255
    assert difference <= (0 if max(size) <= 32 * min(size) else 6)
    assert reference(image).std() > 0.05


def test_preprocessing_is_timms_resize_crop_normalise() -> None:
    preprocessing = Preprocessing(
        input_size=(1, 8, 8), mean=(0.25,), std=(0.5,), interpolation="bilinear", crop_pct=0.5
    )
    image = Image.new("L", (32, 32), 255)
    image.paste(0, (0, 0, 32, 8))  # the crop leaves the upper quarter out
    result = preprocessing.transform()(image)
    assert result.shape == (1, 8, 8)
    assert result.mean().item() == pytest.approx(1.5, abs=0.1)
    assert preprocessing.mode == "L"


@pytest.mark.parametrize(("size", "crop_pct"), [((3, 16, 16), 0.875), ((3, 12, 16), 0.6)])
def test_ten_crops_are_corners_and_centre_of_the_resized_image_and_mirrored(
    size: tuple[int, int, int], crop_pct: float
) -> None:
    preprocessing = Preprocessing(input_size=size, mean=(0.1, 0.2, 0.3), std=(0.5,) * 3, crop_pct=crop_pct)
    height, width = size[1:]
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (45, 33, 3), dtype=np.uint8))
    crops = preprocessing.ten_crop()(image)
    assert crops.shape == (10, *size)
    whole_steps: Any = create_transform(**{**preprocessing.to_saved(), "separate": False})
    resized = whole_steps.transforms[0](image)
    pixels = (np.asarray(resized).transpose(2, 0, 1) / 255 - np.array([0.1, 0.2, 0.3])[:, None, None]) / 0.5
    if height == width:
        assert min(resized.size) == int(16 / crop_pct)
    bottom, right = pixels.shape[1] - height, pixels.shape[2] - width
    centre = (round(bottom / 2), round(right / 2))
    for k, (top, left) in enumerate([(0, 0), (0, right), (bottom, 0), (bottom, right), centre]):
        view = pixels[:, top : top + height, left : left + width]
        np.testing.assert_allclose(crops[k], view, atol=1e-6)
        mirrored = pixels[:, :, ::-1][:, top : top + height, left : left + width]
        np.testing.assert_allclose(crops[5 + k], mirrored, atol=1e-6)
    theirs = transforms.Compose([*whole_steps.transforms[:1], transforms.TenCrop((height, width))])(image)
    last = transforms.Compose(whole_steps.transforms[2:])
    assert torch.equal(crops, torch.stack([last(crop) for crop in theirs]))
    assert torch.equal(crops[4], preprocessing.transform()(image))
    assert torch.equal(pickle.loads(pickle.dumps(preprocessing.ten_crop()))(image), crops)  # for spawned workers


def test_ten_crops_without_room_between_them_are_refused() -> None:
    for crop_pct in (1.0, 0.99):
        with pytest.raises(InvalidConfig, match="ten crops need an image that is larger than a crop"):
            dataclasses.replace(PREPROCESSING, crop_pct=crop_pct).ten_crop()
