"""Which anchor or proposal is which object's, and what objects are."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_iou

BACKGROUND, IGNORED = -1, -2


class Objects(NamedTuple):
    """What is known of an image."""

    boxes: Tensor
    """(N, 4), x1, y1, x2, y2 in pixels."""
    labels: Tensor
    """(N,), from 1."""
    crowds: Tensor
    """(M, 4): areas with more objects than could be told apart."""
    masks: Tensor | None
    """(N, H, W), 0 and 1."""


def objects_of(target: Mapping[str, Tensor], dtype: torch.dtype) -> Objects:
    """A target as torchvision has them, with crowds apart."""
    boxes, labels, masks = target["boxes"].to(dtype), target["labels"], target.get("masks")
    if "iscrowd" not in target:
        return Objects(boxes, labels, boxes[:0], masks)
    crowd = target["iscrowd"].to(boxes.device, torch.bool)
    return Objects(boxes[~crowd], labels[~crowd], boxes[crowd], None if masks is None else masks[~crowd])


class Matcher:
    """Objects for boxes, by intersection over union.

    Args:
        foreground: IoU from which a box is its best object's.
        background: IoU below which it is none's; between the two it takes no part.
        low_quality: the least IoU at which an object's best boxes are positives whatever their IoU is; None for never.
        forced: such a box is that object's; otherwise its own best object's.
        crowd_iof: share of a box's area in a crowd from which it is no background; None for never.
    """

    def __init__(
        self,
        foreground: float,
        background: float,
        *,
        low_quality: float | None = None,
        forced: bool = True,
        crowd_iof: float | None = None,
    ) -> None:
        self.foreground, self.background = foreground, background
        self.low_quality, self.forced, self.crowd_iof = low_quality, forced, crowd_iof

    def __call__(self, objects: Objects, boxes: Tensor) -> Tensor:
        """(N, 4) to the objects' numbers (N,), `BACKGROUND` or `IGNORED`."""
        matches = torch.full((len(boxes),), BACKGROUND, dtype=torch.int64, device=boxes.device)
        if len(objects.boxes) and len(boxes):
            overlaps = box_iou(objects.boxes, boxes)
            best, of = overlaps.max(dim=0)
            matches[best >= self.background] = IGNORED
            matches = torch.where(best >= self.foreground, of, matches)
            if self.low_quality is not None:
                most = overlaps.max(dim=1).values[:, None]
                # an object that meets no box has no best one
                chosen = (overlaps == most) & (most >= self.low_quality) & (most > 0)
                # of several objects with the same best box the last one has it, as in mmdet
                last = len(chosen) - 1 - chosen.flip(0).int().argmax(dim=0)
                matches = torch.where(chosen.any(dim=0), last if self.forced else of, matches)
        if self.crowd_iof is not None and len(objects.crowds):
            inside = shares_inside(boxes, objects.crowds) >= self.crowd_iof
            matches[inside & (matches == BACKGROUND)] = IGNORED
        return matches


def shares_inside(boxes: Tensor, regions: Tensor) -> Tensor:
    """(N, 4) and at least one region (M, 4) to the largest share (N,) of each box's area in a region."""
    low = torch.maximum(boxes[:, None, :2], regions[:, :2])
    high = torch.minimum(boxes[:, None, 2:], regions[:, 2:])
    areas = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1)
    common = (high - low).clamp(min=0).prod(dim=2).amax(dim=1)
    return common / areas.clamp(min=torch.finfo(boxes.dtype).tiny)
