"""Image and mask go through one draw; labels never mix; every option does something."""

import dataclasses
import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from visionmlp.data.seeding import seeded
from visionmlp.tasks.segment.classes import IGNORE
from visionmlp.tasks.segment.data import Masked
from visionmlp.tasks.segment.transforms import EvaluationTransform, Normalise, TrainingTransform, resized_size

from .trees import squares

IDENTITY = Normalise(mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))
PLAIN: dict[str, Any] = {
    "normalise": IDENTITY,
    "scale_range": (1.0, 1.0),
    "max_class_share": 1.0,
    "hflip": 0.0,
    "brightness": 0.0,
    "contrast": 0.0,
    "saturation": 0.0,
    "hue": 0.0,
}


def own_picture(labels: np.ndarray) -> Masked:
    """An image whose every pixel is its label, times 50."""
    return Masked(Image.fromarray(np.repeat(labels[..., None] * 50, 3, 2).astype(np.uint8)), labels)


@pytest.mark.parametrize("crop", [(24, 20), (200, 190)])
@pytest.mark.parametrize(("scale", "least"), [((1.0, 1.0), 1.0), ((0.5, 2.0), 0.8)])
def test_image_and_mask_move_together(crop: tuple[int, int], scale: tuple[float, float], least: float) -> None:
    transform = TrainingTransform(**{**PLAIN, "scale_range": scale, "hflip": 0.5}, crop_size=crop)
    labels = squares(0, 80, 96, ignored=4)
    labels[labels == 4] = IGNORE
    item = own_picture(np.where(labels == IGNORE, 4, labels).astype(np.uint8))._replace(labels=labels)
    for seed in range(12):
        with seeded(seed):
            image, mask = transform(item)
        assert image.shape == (3, *crop)
        assert mask.shape == crop
        assert set(mask.unique().tolist()) <= {0, 1, 2, IGNORE}
        # the picture says which label it is; resizing mixes borders only
        values = torch.where(mask == IGNORE, 4, mask).float() * 50
        padded = (image == 0).all(0) & (mask == IGNORE)
        agree = (image[0] - values).abs() < 8
        assert (agree | padded).float().mean() >= least


def test_padding_is_zero_behind_the_normalisation_and_ignored() -> None:
    normalise = Normalise(mean=(0.5, 0.5, 0.5), std=(0.1, 0.2, 0.3))
    transform = TrainingTransform(**{**PLAIN, "normalise": normalise}, crop_size=(50, 60))
    image, mask = transform(own_picture(np.zeros((40, 48), np.uint8)))
    assert image[:, 40:].abs().sum() == image[:, :, 48:].abs().sum() == 0
    assert (mask[40:] == IGNORE).all()
    assert (mask[:, 48:] == IGNORE).all()
    assert (mask[:40, :48] == 0).all()
    torch.testing.assert_close(image[:, 0, 0], torch.tensor([-5.0, -2.5, -0.5 / 0.3]))


@pytest.mark.parametrize(
    ("size", "resize", "ratio", "divisor", "expected"),
    [
        ((512, 683), (2048, 512), 1.0, 1, (512, 683)),  # the short side decides
        ((256, 2048), (2048, 512), 1.0, 1, (256, 2048)),  # the long side does
        ((2048, 256), (2048, 512), 1.0, 1, (2048, 256)),
        ((1024, 2048), (2048, 1024), 0.5, 1, (512, 1024)),
        ((180, 240), None, 1.5, 1, (270, 360)),
        ((180, 240), None, 1.0, 32, (192, 256)),
        ((1, 1000), None, 0.1, 1, (1, 100)),
    ],
)
def test_sizes_keep_the_ratio(
    size: tuple[int, int], resize: Any, ratio: float, divisor: int, expected: tuple[int, int]
) -> None:
    assert resized_size(size, resize, ratio, divisor) == expected


def test_crops_show_more_than_one_class() -> None:
    labels = np.zeros((64, 64), np.uint8)
    labels[:16, :16] = 1
    shares = {}
    for limit in (1.0, 0.75):
        transform = TrainingTransform(**{**PLAIN, "max_class_share": limit}, crop_size=(16, 16))
        with seeded(1):
            shares[limit] = np.mean([(transform(own_picture(labels)).labels == 1).any().item() for _ in range(60)])
    assert shares[0.75] > 1.5 * shares[1.0] > 0
    # ten tries and no more, and ignored pixels are of no class
    alone = np.where(labels == 1, IGNORE, 0).astype(np.uint8)
    TrainingTransform(**{**PLAIN, "max_class_share": 0.75}, crop_size=(16, 16))(own_picture(alone))


def test_flips_as_often_as_said() -> None:
    labels = np.zeros((8, 8), np.uint8)
    labels[:, :4] = 1
    for chance, expected in ((0.0, 0.0), (1.0, 1.0), (0.5, 0.5)):
        transform = TrainingTransform(**{**PLAIN, "hflip": chance}, crop_size=(8, 8))
        with seeded(0):
            flipped = np.mean([transform(own_picture(labels)).labels[0, 7].item() == 1 for _ in range(80)])
        assert flipped == pytest.approx(expected, abs=0.15)


@pytest.mark.parametrize(
    ("name", "value"), [("brightness", 32.0), ("contrast", 0.5), ("saturation", 0.5), ("hue", 18.0)]
)
def test_each_change_of_colour_has_its_limits(name: str, value: float) -> None:
    pixels = np.random.default_rng(0).integers(60, 190, (12, 12, 3), dtype=np.uint8)
    item = Masked(Image.fromarray(pixels), np.zeros((12, 12), np.uint8))
    transform = TrainingTransform(**{**PLAIN, name: value}, crop_size=(12, 12))
    before = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)
    with seeded(0):
        after = [transform(item).image for _ in range(60)]
    changed = [image for image in after if not torch.allclose(image, before, atol=1e-3)]
    assert len(changed) / len(after) == pytest.approx(0.5, abs=0.2)
    if name == "brightness":
        shifts = torch.stack([(image - before).mean() for image in changed])
        assert shifts.abs().max() <= 32.5
        assert shifts.min() < -20 < 20 < shifts.max()
    if name == "contrast":
        factors = torch.stack([image.mean() / before.mean() for image in changed])
        assert 0.49 <= factors.min() < 0.7
        assert 1.3 < factors.max() <= 1.51
    if name in ("saturation", "hue"):  # the lightest channel stays as light
        torch.testing.assert_close(changed[0].amax(0), before.amax(0), atol=4, rtol=0)


def test_a_sample_is_a_function_of_its_seed() -> None:
    transform = TrainingTransform(normalise=IDENTITY, crop_size=(24, 24))
    item = own_picture(squares(3))
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002 (what it must not depend on)
    with seeded(1, 2, 3):
        one = transform(item)
    random.random()
    with seeded(1, 2, 3):
        other = transform(item)
    assert torch.equal(one.image, other.image)
    assert torch.equal(one.labels, other.labels)
    with seeded(1, 2, 4):
        assert not torch.equal(transform(item).image, one.image)


def test_evaluation_leaves_labels_alone() -> None:
    transform = EvaluationTransform(normalise=IDENTITY, resize=(96, 20), size_divisor=8, scales=(1.0, 0.5))
    labels = squares(0)
    viewed = transform(own_picture(labels))
    assert [tuple(view.shape) for view in viewed.views] == [(1, 3, 24, 24), (1, 3, 16, 16)]
    np.testing.assert_array_equal(viewed.labels.numpy(), labels)
    same = dataclasses.replace(transform, resize=None, size_divisor=1, scales=(1.0,))(own_picture(labels))
    torch.testing.assert_close(same.views[0][0, 0], torch.from_numpy(labels * 50.0).float(), atol=1e-3, rtol=0)
