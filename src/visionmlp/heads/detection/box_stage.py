"""One stage of an R-CNN: what regions are, and their boxes.

Sources: Fast R-CNN (arXiv 1504.08083); Cascade R-CNN (arXiv 1712.00726), whose stages differ in the IoU that makes a
positive and in the scale of encoded boxes.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import clip_boxes_to_image

from visionmlp.heads.conv import ConvNormAct
from visionmlp.heads.detection.boxes import at_least_float32, box_coder, encoded_loss, giou_loss
from visionmlp.heads.detection.matching import Matcher
from visionmlp.heads.detection.regions import Regions
from visionmlp.heads.detection.settings import DetectionSettings
from visionmlp.layers.linear import Linear

BOX_BINS = 7
"""Of RoIAlign, along each side."""
_CONVS = 4


class BoxStage(nn.Module):
    """Classes and boxes of regions.

    Args:
        width: of the levels.
        num_classes: without background.
        index: of the stage.
        settings: see `DetectionSettings`.
    """

    def __init__(self, width: int, num_classes: int, index: int, settings: DetectionSettings) -> None:
        super().__init__()
        self.settings = settings
        first = settings.background == "first"
        self.skipped = 1 if first and not settings.class_agnostic else 0
        self.convs = nn.Sequential()
        if settings.box_head == "4conv1fc":
            self.convs.extend(ConvNormAct(width, width, 3) for _ in range(_CONVS))
        depth = 1 if settings.box_head == "4conv1fc" else 2
        widths = [width * BOX_BINS**2] + [settings.fc_channels] * depth
        layers = [Linear(a, b) for a, b in itertools.pairwise(widths)]
        self.fcs = nn.ModuleList(layers)
        self.cls_score = Linear(widths[-1], num_classes + 1)
        self.bbox_pred = Linear(widths[-1], 4 * (1 if settings.class_agnostic else num_classes + self.skipped))
        for layer in layers:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
        self.coder = box_coder(settings, settings.stage_stds[index])
        iou = settings.stage_ious[index]
        self.matcher = Matcher(
            iou, iou, low_quality=iou if settings.roi_low_quality else None, crowd_iof=settings.crowd_iof
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, 7, 7) to logits (N, 1 + K), background first, and encoded boxes (N, K or 1, 4)."""
        x = self.convs(x).flatten(1)
        for layer in self.fcs:
            x = F.relu(layer(x))
        logits, codes = at_least_float32(self.cls_score(x)), at_least_float32(self.bbox_pred(x))
        if self.settings.background == "last":
            logits = logits.roll(1, dims=1)
        return logits, codes.unflatten(1, (-1, 4))[:, self.skipped :]

    def losses(self, logits: Tensor, codes: Tensor, regions: Sequence[Regions], wanted: Tensor) -> dict[str, Tensor]:
        """Of the regions of all images.

        Args:
            logits: (N, 1 + K).
            codes: (N, K or 1, 4).
            regions: of each image.
            wanted: (N, 4), the boxes of their objects; read for positives only.
        """
        labels, boxes = torch.cat([one.labels for one in regions]), torch.cat([one.boxes for one in regions])
        found = torch.where(labels > 0)[0]
        codes = codes[found, torch.zeros_like(found) if self.settings.class_agnostic else labels[found] - 1]
        if self.settings.roi_box_loss == "giou":
            box_loss = giou_loss(self.coder, codes, boxes[found], wanted[found])
        else:
            beta = self.settings.roi_box_beta
            box_loss = encoded_loss(self.coder, codes, boxes[found], wanted[found], beta)
        count = max(1, len(labels))
        return {
            "loss_classifier": F.cross_entropy(logits, labels, reduction="sum") / count,
            "loss_box_reg": self.settings.roi_box_weight * box_loss / count,
        }

    def decoded(self, codes: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """Codes (N, K or 1, 4) of boxes (N, 4) in an image (H, W) to boxes (N, K or 1, 4) within it."""
        decoded = self.coder.decode_single(codes.flatten(1), boxes).unflatten(1, (-1, 4))
        return clip_boxes_to_image(decoded, size)

    @torch.no_grad()
    def refined(
        self, logits: Tensor, codes: Tensor, boxes: Tensor, size: tuple[int, int], labels: Tensor | None = None
    ) -> Tensor:
        """What the next stage begins with: boxes (N, 4) of the likeliest class that is no background.

        Args:
            logits: (N, 1 + K).
            codes: (N, K or 1, 4).
            boxes: (N, 4).
            size: height and width of the image.
            labels: (N,), classes that are known, 0 for those that are not.
        """
        chosen = logits[:, 1:].argmax(dim=1)
        if labels is not None:
            chosen = torch.where(labels > 0, labels - 1, chosen)
        if self.settings.class_agnostic:
            chosen = torch.zeros_like(chosen)
        return self.decoded(codes[torch.arange(len(codes), device=codes.device), chosen][:, None], boxes, size)[:, 0]
