"""Boxes as four numbers relative to others, losses of them, and what is left of overlapping ones."""

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import batched_nms, generalized_box_iou_loss, remove_small_boxes

from visionmlp.heads.detection.settings import DetectionSettings, Stds

UNIT_STDS: Stds = (1.0, 1.0, 1.0, 1.0)
_LEAST_SIDE = 1e-2
"""Pixels; smaller detections are dropped, as in torchvision."""


class SymmetricBoxCoder(BoxCoder):
    """torchvision's, and boxes shrink to no less than 16 / 1000."""

    def decode_single(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
        """(N, 4 * K) and (N, 4) to (N, 4 * K)."""
        codes = rel_codes.unflatten(-1, (-1, 4))
        least = -self.bbox_xform_clip * codes.new_tensor(self.weights[2:])
        codes = torch.cat([codes[..., :2], torch.maximum(codes[..., 2:], least)], dim=-1)
        return super().decode_single(codes.flatten(-2), boxes)


def box_coder(settings: DetectionSettings, stds: Stds = UNIT_STDS) -> BoxCoder:
    """The coder of a definition; ``stds`` are what encoded (x, y, w, h) are divided by."""
    kind = SymmetricBoxCoder if settings.box_clamp == "both" else BoxCoder
    x, y, width, height = (1 / std for std in stds)
    return kind((x, y, width, height))


def encoded_loss(coder: BoxCoder, codes: Tensor, boxes: Tensor, wanted: Tensor, beta: float) -> Tensor:
    """Smooth L1 of encoded boxes, summed.

    Args:
        coder: of the codes.
        codes: (N, 4), predicted.
        boxes: (N, 4), that they are relative to.
        wanted: (N, 4).
        beta: 0 for L1.
    """
    return F.smooth_l1_loss(codes, coder.encode_single(wanted, boxes), reduction="sum", beta=beta)


def giou_loss(coder: BoxCoder, codes: Tensor, boxes: Tensor, wanted: Tensor) -> Tensor:
    """One minus generalised IoU of decoded boxes, summed; arguments as in `encoded_loss`."""
    return generalized_box_iou_loss(coder.decode_single(codes, boxes), wanted, reduction="sum")


def at_least_float32(x: Tensor) -> Tensor:
    """Logits and codes of reduced precision would move boxes by pixels."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def suppressed(boxes: Tensor, scores: Tensor, labels: Tensor, settings: DetectionSettings) -> dict[str, Tensor]:
    """The best of an image, class by class.

    Args:
        boxes: (N, 4), within the image.
        scores: (N,).
        labels: (N,), from 1.
        settings: ``nms_thresh`` and ``detections_per_img``.
    """
    keep = remove_small_boxes(boxes, _LEAST_SIDE)
    boxes, scores, labels = boxes[keep], scores[keep], labels[keep]
    keep = batched_nms(boxes, scores, labels, settings.nms_thresh)[: settings.detections_per_img]
    return {"boxes": boxes[keep], "scores": scores[keep], "labels": labels[keep]}
