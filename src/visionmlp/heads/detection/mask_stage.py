"""Masks of regions, what they are compared with, and how they come back to the image.

Source: He et al., Mask R-CNN (arXiv 1703.06870), section 3. Layers are torchvision's.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import roi_align

from visionmlp.heads.detection.boxes import at_least_float32
from visionmlp.heads.detection.matching import Objects
from visionmlp.heads.detection.regions import Regions
from visionmlp.heads.detection.settings import DetectionSettings

MASK_BINS = 14
"""Of RoIAlign, along each side."""
MASK_SIDE = 2 * MASK_BINS
"""Pixels of a mask, along each side."""


class MaskStage(nn.Module):
    """A mask for each class of a region.

    Args:
        width: of the levels.
        num_classes: without background.
        settings: see `DetectionSettings`.
    """

    def __init__(self, width: int, num_classes: int, settings: DetectionSettings) -> None:
        super().__init__()
        self.settings = settings
        self.skipped = 1 if settings.background == "first" else 0
        self.head = MaskRCNNHeads(width, [width] * 4, dilation=1)
        self.predictor = MaskRCNNPredictor(width, width, num_classes + self.skipped)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, 14, 14) to logits (N, K, 28, 28)."""
        return at_least_float32(self.predictor(self.head(x)))[:, self.skipped :]

    def loss(self, logits: Tensor, regions: Sequence[Regions], objects: Sequence[Objects]) -> dict[str, Tensor]:
        """Of the positives (N, K, 28, 28) of all images, averaged over them."""
        labels = torch.cat([one.labels for one in regions])
        if not len(labels):
            return {"loss_mask": logits.sum() * 0}
        targets = torch.cat([self.targets(one, known) for one, known in zip(regions, objects, strict=True)])
        own = logits[torch.arange(len(labels), device=labels.device), labels - 1]
        return {"loss_mask": F.binary_cross_entropy_with_logits(own, targets.to(own))}

    def targets(self, regions: Regions, objects: Objects) -> Tensor:
        """(N, 28, 28): objects' masks within regions."""
        assert objects.masks is not None
        boxes = torch.cat([regions.matches[:, None].to(regions.boxes), regions.boxes], dim=1)
        masks = objects.masks[:, None].to(boxes)
        cut = roi_align(masks, boxes, MASK_SIDE, 1.0, aligned=self.settings.roi_aligned)[:, 0]
        return (cut >= 0.5).to(cut) if self.settings.mask_targets == "thresholded" else cut


def pasted(masks: Tensor, boxes: Tensor, size: tuple[int, int], settings: DetectionSettings) -> Tensor:
    """Masks (N, 1, 28, 28) of boxes (N, 4) to masks (N, 1, H, W) of an image; values remain probabilities."""
    if settings.mask_paste == "resized":
        return paste_masks_in_image(masks, boxes, size)
    result = masks.new_zeros((len(masks), 1, *size))
    for index, (mask, box) in enumerate(zip(masks, boxes, strict=True)):
        x1, y1, x2, y2 = box.tolist()
        columns, rows = _window(x1, x2, size[1]), _window(y1, y2, size[0])
        if not (len(rows) and len(columns)):
            continue
        x = _places(columns, x1, x2, masks)
        y = _places(rows, y1, y2, masks)
        grid = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], dim=-1)
        window = F.grid_sample(mask[None], grid[None], align_corners=False)
        result[index, :, rows.start : rows.stop, columns.start : columns.stop] = window[0]
    return result


def _window(low: float, high: float, side: int) -> range:
    """Pixels that a mask reaches: half a bin beyond its box, as interpolation goes."""
    margin = (high - low) / (2 * MASK_SIDE)
    start = min(max(math.floor(low - margin), 0), side)
    return range(start, min(max(math.ceil(high + margin), start), side))


def _places(pixels: range, low: float, high: float, like: Tensor) -> Tensor:
    """Centres of pixels in a box from -1 to 1."""
    centres = torch.arange(pixels.start, pixels.stop, device=like.device, dtype=like.dtype) + 0.5
    return (centres - low) / max(high - low, 1e-6) * 2 - 1
