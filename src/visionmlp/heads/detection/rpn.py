"""The region proposal network: where something stands, whatever it is.

Source: Ren et al., Faster R-CNN (arXiv 1506.01497), section 3.1; over levels as in FPN (arXiv 1612.03144), section 4.1.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead, concat_box_prediction_layers

from visionmlp.heads.detection.anchors import PyramidAnchors
from visionmlp.heads.detection.boxes import at_least_float32, box_coder, encoded_loss
from visionmlp.heads.detection.matching import IGNORED, Matcher, Objects
from visionmlp.heads.detection.settings import DetectionSettings

_PRE_NMS = {"training": 2000, "testing": 1000}
"""Of each level."""


class ProposalNetwork(RegionProposalNetwork):
    """torchvision's, with each definition's matches and losses.

    Args:
        width: of the levels.
        strides: of the levels, P2 to P6.
        settings: see `DetectionSettings`.
    """

    def __init__(self, width: int, strides: Sequence[int], settings: DetectionSettings) -> None:
        anchors = PyramidAnchors(strides, settings)
        training, testing = settings.rpn_post_nms
        super().__init__(
            anchors,
            RPNHead(width, anchors.num_anchors_per_location()[0]),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=settings.rpn_batch,
            positive_fraction=0.5,
            pre_nms_top_n=_PRE_NMS,
            post_nms_top_n={"training": training, "testing": testing},
            nms_thresh=0.7,
        )
        self.settings, self.anchors = settings, anchors
        self.box_coder = box_coder(settings)
        self.matcher = Matcher(
            0.7,
            0.3,
            low_quality=settings.anchor_low_quality_iou,
            forced=settings.anchor_low_quality == "object",
            crowd_iof=settings.crowd_iof,
        )

    def forward(  # type: ignore[override] (levels and objects in place of dictionaries)
        self, images: ImageList, levels: Sequence[Tensor], objects: Sequence[Objects] | None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Levels to proposals (N, 4) of each image, best first, and losses, in training with objects."""
        logits, codes = self.head(list(levels))
        logits, codes = [at_least_float32(x) for x in logits], [at_least_float32(x) for x in codes]
        counts = [x[0].numel() for x in logits]
        anchors = self.anchors(images, list(levels))
        logits, codes = concat_box_prediction_layers(logits, codes)
        proposals = self.box_coder.decode(codes.detach(), anchors).view(len(anchors), -1, 4)
        boxes, _ = self.filter_proposals(proposals, logits, images.image_sizes, counts)
        if not self.training:
            return boxes, {}
        assert objects is not None
        matches = [self.matcher(known, one) for known, one in zip(objects, anchors, strict=True)]
        for one, outside in zip(matches, self.anchors.outside(images, list(levels)), strict=True):
            one[outside] = IGNORED
        return boxes, self._losses(logits.flatten(), codes, anchors, objects, matches)

    def _losses(
        self,
        logits: Tensor,
        codes: Tensor,
        anchors: Sequence[Tensor],
        objects: Sequence[Objects],
        matches: Sequence[Tensor],
    ) -> dict[str, Tensor]:
        """Of the anchors that are sampled, from (B * N,) and (B * N, 4)."""
        positives, negatives = self.fg_bg_sampler([_sampled_as(one) for one in matches])
        divisor = self._divisor(positives, negatives)
        # in the order in which torchvision sums them
        found, others = (torch.where(torch.cat(flags))[0] for flags in (positives, negatives))
        sampled = torch.cat([found, others])
        wanted = torch.cat([torch.ones_like(found), torch.zeros_like(others)]).to(logits)
        boxes = torch.cat(
            [
                known.boxes[one[one_found.bool()]]
                for known, one, one_found in zip(objects, matches, positives, strict=True)
            ]
        )
        loss = F.binary_cross_entropy_with_logits(logits[sampled], wanted, reduction="sum")
        beta = self.settings.anchor_box_beta
        box_loss = encoded_loss(self.box_coder, codes[found], torch.cat(list(anchors))[found], boxes, beta)
        return {"loss_objectness": loss / divisor, "loss_rpn_box_reg": box_loss / divisor}

    def _divisor(self, positives: Sequence[Tensor], negatives: Sequence[Tensor]) -> int:
        if self.settings.rpn_normaliser == "batch":
            return self.settings.rpn_batch * len(positives)
        least = 1 if self.settings.rpn_normaliser == "floored" else 0
        return max(1, sum(max(least, int(flags.sum())) for flags in [*positives, *negatives]))


def _sampled_as(matches: Tensor) -> Tensor:
    """What torchvision's sampler knows: 1 for positives, 0 for negatives, -1 for what it leaves out."""
    kinds = (matches >= 0).to(torch.int64)
    kinds[matches == IGNORED] = -1
    return kinds
