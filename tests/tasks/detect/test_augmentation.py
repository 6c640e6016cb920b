"""Image, boxes and masks go together through every draw."""

import numpy as np
import pytest
import torch
from PIL import Image

from visionmlp.tasks.detect.augmentation import DetectionAugmentation
from visionmlp.tasks.detect.samples import Annotated, ForTraining, clipped, to_tensor


def item() -> Annotated:
    """Three rectangles that are painted as their masks say."""
    boxes = [(5, 4, 30, 20), (40, 10, 60, 44), (0, 30, 22, 48)]
    pixels, masks = np.zeros((48, 64, 3), np.uint8), np.zeros((3, 48, 64), np.uint8)
    for number, (left, top, right, bottom) in enumerate(boxes):
        masks[number, top:bottom, left:right] = 1
        pixels[top:bottom, left:right, number] = 200
    target = {
        "boxes": torch.tensor(boxes, dtype=torch.float32),
        "labels": torch.tensor([1, 2, 3]),
        "iscrowd": torch.tensor([0, 0, 1]),
        "masks": torch.from_numpy(masks),
    }
    return Annotated(Image.fromarray(pixels), target)


@pytest.mark.parametrize(
    "augmentation",
    [
        DetectionAugmentation(hflip=1.0),
        DetectionAugmentation(hflip=0.5, crop=1.0, crop_resize=(40, 72, 96), crop_range=(30, 70)),
        DetectionAugmentation(hflip=0.5, crop=1.0, crop_resize=(96,), crop_range=(1, 30)),
    ],
)
def test_masks_and_boxes_stay_on_what_they_are_of(augmentation: DetectionAugmentation) -> None:
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        image, target = augmentation(item())
        seen.add((image.size, len(target["labels"])))
        pixels = np.asarray(image)
        assert target["masks"].shape == (len(target["boxes"]), image.height, image.width)
        for box, label, crowd, mask in zip(
            *(target[name] for name in ("boxes", "labels", "iscrowd", "masks")), strict=True
        ):
            assert crowd == (label == 3)
            painted = pixels[..., int(label) - 1] > 100
            edge = painted ^ mask.numpy().astype(bool)  # one is resized smoothly, the other not
            assert edge.sum() <= 2 * (image.width + image.height)
            rows, columns = np.nonzero(painted)
            if len(rows):
                extent = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
                assert np.abs(box.numpy() - extent).max() <= 1.5
    assert len(seen) > 1 or augmentation.hflip == 1.0


def test_a_flip_is_exact_and_drawn_once() -> None:
    image, target = DetectionAugmentation(hflip=1.0)(item())
    assert np.array_equal(np.asarray(image), np.asarray(item().image)[:, ::-1])
    assert target["boxes"].tolist() == [[34, 4, 59, 20], [4, 10, 24, 44], [42, 30, 64, 48]]
    assert torch.equal(target["masks"], item().target["masks"].flip(-1))
    torch.manual_seed(0)
    flips = [DetectionAugmentation(hflip=0.3)(item()).target["boxes"][0, 0] == 34 for _ in range(200)]
    assert 40 < sum(map(int, flips)) < 80


def test_a_crop_may_lose_everything() -> None:
    augmentation = DetectionAugmentation(hflip=0.0, crop=1.0, crop_resize=(48,), crop_range=(2, 3))
    counts = set()
    for seed in range(40):
        torch.manual_seed(seed)
        image, target = augmentation(item())
        assert image.width <= 3
        assert target["boxes"].shape == (len(target["labels"]), 4)
        counts.add(len(target["labels"]))
    assert 0 in counts


def test_colours_change_alone() -> None:
    torch.manual_seed(3)
    image, target = DetectionAugmentation(hflip=0.0, photometric=True)(item())
    assert image.size == (64, 48)
    assert not np.array_equal(np.asarray(image), np.asarray(item().image))
    assert torch.equal(target["boxes"], item().target["boxes"])


def test_sides_under_a_pixel_go() -> None:
    boxes = torch.tensor([[0.0, 0.0, 0.9, 5.0], [3.0, 3.0, 4.0, 4.0], [-5.0, -5.0, 0.5, 9.0]])
    target = clipped({"boxes": boxes, "labels": torch.tensor([1, 2, 3])}, 10, 10)
    assert target["boxes"].tolist() == [[3, 3, 4, 4]]
    assert target["labels"].tolist() == [2]


def test_tensors() -> None:
    image = ForTraining(DetectionAugmentation(hflip=0.0))(item()).image
    assert (image.shape, image.dtype) == ((3, 48, 64), torch.float32)
    assert image.max() == pytest.approx(200 / 255)
    assert to_tensor(Image.new("L", (4, 3), 255)).tolist() == [[[1.0] * 4] * 3]
