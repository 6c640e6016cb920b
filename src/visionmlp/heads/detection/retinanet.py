"""RetinaNet: every position of every level says what stands there, at a loss that easy ones hardly count in.

Source: Lin et al., Focal Loss for Dense Object Detection (arXiv 1708.02002). Towers are torchvision's.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import clip_boxes_to_image, sigmoid_focal_loss

from visionmlp.heads.detection.anchors import PyramidAnchors
from visionmlp.heads.detection.boxes import at_least_float32, box_coder, encoded_loss, suppressed
from visionmlp.heads.detection.matching import IGNORED, Matcher, Objects
from visionmlp.heads.detection.settings import DetectionSettings

_CANDIDATES = 1000
_MOMENTUM, _START = 0.9, 100.0


class RetinaNet(nn.Module):
    """Classes and boxes of all anchors.

    Args:
        width: of the levels.
        strides: of the levels, P3 to P7.
        num_classes: without background.
        settings: see `DetectionSettings`.
    """

    usual_positives: Tensor

    def __init__(self, width: int, strides: Sequence[int], num_classes: int, settings: DetectionSettings) -> None:
        super().__init__()
        self.settings = settings
        self.anchors = PyramidAnchors(strides, settings)
        self.unused = 1 if settings.background == "first" else 0
        count = self.anchors.num_anchors_per_location()[0]
        self.head = RetinaNetHead(width, count, num_classes + self.unused)
        self.coder = box_coder(settings)
        self.matcher = Matcher(
            0.5,
            0.4,
            low_quality=settings.anchor_low_quality_iou,
            forced=settings.anchor_low_quality == "object",
            crowd_iof=settings.crowd_iof,
        )
        if settings.dense_normaliser == "moving":
            self.register_buffer("usual_positives", torch.tensor(_START))

    def forward(
        self, images: ImageList, levels: Sequence[Tensor], objects: Sequence[Objects] | None
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Levels to detections, in evaluation, and losses, in training with objects."""
        outputs = self.head(list(levels))
        logits, codes = (at_least_float32(outputs[name]) for name in ("cls_logits", "bbox_regression"))
        anchors = self.anchors(images, list(levels))[0]
        if self.training:
            assert objects is not None
            outside = self.anchors.outside(images, list(levels))
            return [], self._losses(logits, codes, anchors, objects, outside)
        count = self.anchors.num_anchors_per_location()[0]
        counts = [level.shape[-2] * level.shape[-1] * count for level in levels]
        logits = logits[..., self.unused :]
        return [
            self._detections(one_logits.split(counts), one_codes.split(counts), anchors.split(counts), size)
            for one_logits, one_codes, size in zip(logits, codes, images.image_sizes, strict=True)
        ], {}

    def _losses(
        self, logits: Tensor, codes: Tensor, anchors: Tensor, objects: Sequence[Objects], outside: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Both losses from (B, N, K) and (B, N, 4)."""
        classes, boxes, positives = [], [], []
        for one_logits, one_codes, known, beyond in zip(logits, codes, objects, outside, strict=True):
            matches = self.matcher(known, anchors)
            matches[beyond] = IGNORED
            found = torch.where(matches >= 0)[0]
            of = matches[found]
            wanted = torch.zeros_like(one_logits)
            wanted[found, known.labels[of] - 1 + self.unused] = 1.0
            counted = matches != IGNORED
            classes.append(sigmoid_focal_loss(one_logits[counted], wanted[counted], reduction="sum"))
            beta = self.settings.anchor_box_beta
            boxes.append(encoded_loss(self.coder, one_codes[found], anchors[found], known.boxes[of], beta))
            positives.append(len(found))
        divisors = self._divisors(positives, logits)
        return {
            "classification": (torch.stack(classes) / divisors).sum(),
            "bbox_regression": (torch.stack(boxes) / divisors).sum(),
        }

    def _divisors(self, positives: Sequence[int], like: Tensor) -> Tensor:
        """(B,): what each image's losses are divided by before they are summed."""
        counts = like.new_tensor([float(max(1, count)) for count in positives])
        if self.settings.dense_normaliser == "image":
            return counts * len(counts)
        if self.settings.dense_normaliser == "batch":
            return counts.sum().expand_as(counts)
        with torch.no_grad():
            self.usual_positives.lerp_(self.usual_positives.new_tensor(float(max(1, sum(positives)))), 1 - _MOMENTUM)
        return self.usual_positives.to(like).clone().expand_as(counts)

    def _detections(
        self, logits: Sequence[Tensor], codes: Sequence[Tensor], anchors: Sequence[Tensor], size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Of one image, from its levels' (N, K), (N, 4) and (N, 4)."""
        boxes, scores, labels = [], [], []
        for one_logits, one_codes, one_anchors in zip(logits, codes, anchors, strict=True):
            probabilities = one_logits.sigmoid()
            if self.settings.dense_candidates == "anchors":
                best = probabilities.amax(dim=1).topk(min(_CANDIDATES, len(probabilities))).indices
                probabilities, one_codes, one_anchors = probabilities[best], one_codes[best], one_anchors[best]
            of, label = torch.where(probabilities > self.settings.score_thresh)
            values = probabilities[of, label]
            if self.settings.dense_candidates == "scores":
                values, best = values.topk(min(_CANDIDATES, len(values)))
                of, label = of[best], label[best]
            boxes.append(clip_boxes_to_image(self.coder.decode_single(one_codes[of], one_anchors[of]), size))
            scores.append(values)
            labels.append(label + 1)
        return suppressed(torch.cat(boxes), torch.cat(scores), torch.cat(labels), self.settings)
