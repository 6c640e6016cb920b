"""What a detector finds on images, whichever others are looked at beside them."""

from collections import defaultdict
from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn


def found_on(model: nn.Module, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
    """Detections of each image as if it came alone, as in mmdet's tests.

    Images of different sizes in one batch would be padded to the largest, which an MLP's means over the map see.

    Args:
        model: a `visionmlp.models.detector.Detector` in evaluation mode.
        images: (C, H, W) each.
    """
    alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, image in enumerate(images):
        alike[tuple(image.shape)].append(index)
    found: dict[int, dict[str, Tensor]] = {}
    for indices in alike.values():
        results = cast("list[dict[str, Tensor]]", model([images[index] for index in indices]))
        found |= dict(zip(indices, results, strict=True))
    return [found[index] for index in range(len(images))]
