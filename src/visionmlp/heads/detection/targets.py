"""What a detector is trained on, checked before it computes: wrong targets give wrong networks, not errors."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from visionmlp.errors import DataError


def checked_targets(
    targets: Sequence[Mapping[str, Tensor]], images: Sequence[Tensor], *, num_classes: int, masks: bool
) -> list[dict[str, Tensor]]:
    """The parts of targets that a head reads.

    Args:
        targets: for each image ``boxes`` (N, 4), ``labels`` (N,) from 1, for masks ``masks`` (N, H, W) of 0 and 1, and
            where there are any ``iscrowd`` (N,).
        images: (C, H, W) each.
        num_classes: without background.
        masks: whether masks are read.

    Raises:
        DataError: naming the image by its place in the batch, and the box.
    """
    if len(targets) != len(images):
        raise DataError(f"there are {len(images)} images and {len(targets)} targets; give each image one")
    return [
        _checked(target, image, f"target {index}", num_classes, masks)
        for index, (target, image) in enumerate(zip(targets, images, strict=True))
    ]


def _checked(
    target: Mapping[str, Tensor], image: Tensor, where: str, num_classes: int, masks: bool
) -> dict[str, Tensor]:
    wanted = ["boxes", "labels", *(["masks"] if masks else [])]
    for name in wanted:
        if not isinstance(target.get(name), Tensor):
            raise DataError(f"{where} needs {name} as a tensor; an image without objects has empty ones")
    boxes, labels = target["boxes"], target["labels"]
    if boxes.dim() != 2 or boxes.shape[1] != 4 or not boxes.is_floating_point():
        raise DataError(
            f"{where}: boxes must be floating-point (N, 4), got {boxes.dtype} {tuple(boxes.shape)}; "
            "an image without objects has torch.zeros(0, 4)"
        )
    count = len(boxes)
    if labels.dtype != torch.int64 or tuple(labels.shape) != (count,):
        raise DataError(f"{where}: labels must be int64 ({count},), got {labels.dtype} {tuple(labels.shape)}")
    bad = torch.where((boxes[:, 2:] <= boxes[:, :2]).any(dim=1) | ~boxes.isfinite().all(dim=1))[0]
    if len(bad):
        box = [round(value, 3) for value in boxes[bad[0]].tolist()]
        raise DataError(f"{where}: box {int(bad[0])} {box} has no width or height; boxes are x1, y1, x2, y2 in pixels")
    bad = torch.where((labels < 1) | (labels > num_classes))[0]
    if len(bad):
        raise DataError(
            f"{where}: label {int(labels[bad[0]])} of box {int(bad[0])} is not from 1 to {num_classes}; 0 is background"
        )
    kept = {"boxes": boxes, "labels": labels}
    if masks:
        size = (count, *image.shape[-2:])
        if tuple(target["masks"].shape) != size:
            raise DataError(f"{where}: masks must be {size}, as the image is, got {tuple(target['masks'].shape)}")
        kept["masks"] = target["masks"]
    if "iscrowd" in target:
        crowd = target["iscrowd"]
        if tuple(crowd.shape) != (count,):
            raise DataError(f"{where}: iscrowd must be ({count},), got {tuple(crowd.shape)}")
        kept["iscrowd"] = crowd
    return kept
