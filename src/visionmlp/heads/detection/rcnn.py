"""Faster, Mask and Cascade R-CNN: one class, by the number of stages and whether there are masks.

Sources: Faster R-CNN (arXiv 1506.01497), Mask R-CNN (arXiv 1703.06870), Cascade R-CNN (arXiv 1712.00726).

With several stages, boxes that one stage has refined are what the next begins with, without gradient; in training they
are matched anew at a higher IoU, and sampled anew together with the objects' own boxes, which are not passed on.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.models.detection.image_list import ImageList

from visionmlp.heads.detection.box_stage import BOX_BINS, BoxStage
from visionmlp.heads.detection.boxes import suppressed
from visionmlp.heads.detection.mask_stage import MASK_BINS, MASK_SIDE, MaskStage
from visionmlp.heads.detection.matching import Objects
from visionmlp.heads.detection.regions import ROI_LEVELS, Regions, RoIFeatures, matched, sampled
from visionmlp.heads.detection.rpn import ProposalNetwork
from visionmlp.heads.detection.settings import DetectionSettings

_POSITIVES = 0.25


class RCNN(nn.Module):
    """Proposals, and stages that say what they are.

    Args:
        width: of the levels.
        strides: of the levels, P2 to P6.
        num_classes: without background.
        masks: whether objects get masks.
        settings: see `DetectionSettings`; it says how many stages there are.
    """

    def __init__(
        self, width: int, strides: Sequence[int], num_classes: int, *, masks: bool, settings: DetectionSettings
    ) -> None:
        super().__init__()
        self.settings = settings
        self.rpn = ProposalNetwork(width, strides, settings)
        stages = len(settings.stage_ious)
        self.box_stages = nn.ModuleList(BoxStage(width, num_classes, i, settings) for i in range(stages))
        heads = (1 if settings.cascade_masks == "first" else stages) if masks else 0
        self.mask_stages = nn.ModuleList(MaskStage(width, num_classes, settings) for _ in range(heads))
        self.box_features, self.mask_features = (
            RoIFeatures(strides[:ROI_LEVELS], bins, aligned=settings.roi_aligned, sampling=settings.roi_sampling)
            for bins in (BOX_BINS, MASK_BINS)
        )
        self.sampler = BalancedPositiveNegativeSampler(settings.roi_batch, _POSITIVES)

    def forward(
        self, images: ImageList, levels: Sequence[Tensor], objects: Sequence[Objects] | None
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Levels to detections, in evaluation, and losses, in training with objects.

        Detections have ``masks`` (N, 1, 28, 28) where there are masks, in the frame of their boxes. Losses are weighted
        already; those of several stages have the stage's number, from 1, at their end.
        """
        proposals, losses = self.rpn(images, levels, objects)
        if self.training:
            assert objects is not None
            return [], {**losses, **self._losses(images, levels, proposals, objects)}
        found = self._detections(images, levels, proposals)
        if len(self.mask_stages):
            self._add_masks(levels, found)
        return found, {}

    def _losses(
        self, images: ImageList, levels: Sequence[Tensor], proposals: list[Tensor], objects: Sequence[Objects]
    ) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        stages = len(self.box_stages)
        for index, (stage, weight) in enumerate(zip(self.box_stages, self.settings.stage_weights, strict=True)):
            assert isinstance(stage, BoxStage)
            regions = [self._regions(stage, index, *pair) for pair in zip(proposals, objects, strict=True)]
            logits, codes = stage(self._shared(self.box_features(levels, [one.boxes for one in regions])))
            wanted = [_boxes_of(known, one) for known, one in zip(objects, regions, strict=True)]
            parts = stage.losses(logits, codes, regions, torch.cat(wanted))
            if index < len(self.mask_stages):
                positives = [one.at(one.positives) for one in regions]
                head = self.mask_stages[index]
                assert isinstance(head, MaskStage)
                features = self.mask_features(levels, [one.boxes for one in positives])
                parts |= head.loss(head(features), positives, objects)
            suffix = f"_{index + 1}" if stages > 1 else ""
            losses |= {name + suffix: weight * value for name, value in parts.items()}
            if index + 1 < stages:
                proposals = self._refined(stage, images, regions, logits, codes)
        return losses

    def _regions(self, stage: BoxStage, index: int, proposals: Tensor, objects: Objects) -> Regions:
        """What a stage's losses see of an image."""
        fresh = index == 0 or self.settings.cascade_resample
        regions = matched(proposals, objects, stage.matcher, with_objects=fresh)
        if fresh:
            return sampled(regions, self.sampler)
        return regions.at(torch.where(regions.labels >= 0)[0])

    def _refined(
        self, stage: BoxStage, images: ImageList, regions: Sequence[Regions], logits: Tensor, codes: Tensor
    ) -> list[Tensor]:
        """Proposals of the next stage in training."""
        counts = [len(one.boxes) for one in regions]
        proposals = []
        for one, own_logits, own_codes, size in zip(
            regions, logits.split(counts), codes.split(counts), images.image_sizes, strict=True
        ):
            boxes = stage.refined(own_logits, own_codes, one.boxes, size, one.labels)
            dropped = one.are_objects if self.settings.cascade_resample else (boxes[:, 2:] <= boxes[:, :2]).any(dim=1)
            proposals.append(boxes[~dropped])
        return proposals

    def _shared(self, features: Tensor) -> Tensor:
        """The features, and less of their gradient if the stages share it."""
        if self.settings.cascade_gradient == "whole" or len(self.box_stages) == 1:
            return features
        kept = features.detach()
        return kept + (features - kept) / len(self.box_stages)

    def _detections(self, images: ImageList, levels: Sequence[Tensor], boxes: list[Tensor]) -> list[dict[str, Tensor]]:
        softmax = self.settings.cascade_scores == "softmax"
        counts = [len(one) for one in boxes]
        # packed layers take no empty batch
        if sum(counts) == 0:
            empty = [(one.new_zeros(0), one.new_zeros(0, dtype=torch.int64)) for one in boxes]
            return [{"boxes": one, "scores": s, "labels": n} for one, (s, n) in zip(boxes, empty, strict=True)]
        scores, decoded = [], []
        for index, stage in enumerate(self.box_stages):
            assert isinstance(stage, BoxStage)
            logits, codes = stage(self.box_features(levels, boxes))
            scores.append(logits.softmax(dim=1) if softmax else logits)
            parts = list(zip(logits.split(counts), codes.split(counts), boxes, images.image_sizes, strict=True))
            if index + 1 < len(self.box_stages):
                boxes = [stage.refined(*part) for part in parts]
            else:
                decoded = [stage.decoded(*part[1:]) for part in parts]
        mean = torch.stack(scores).mean(dim=0)
        probabilities = (mean if softmax else mean.softmax(dim=1)).split(counts)
        return [self._best(*pair) for pair in zip(probabilities, decoded, strict=True)]

    def _best(self, probabilities: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        """Detections of an image from (N, 1 + K) and (N, K or 1, 4)."""
        foreground = probabilities[:, 1:]
        of, label = torch.where(foreground > self.settings.score_thresh)
        chosen = boxes[of, torch.zeros_like(label) if self.settings.class_agnostic else label]
        return suppressed(chosen, foreground[of, label], label + 1, self.settings)

    def _add_masks(self, levels: Sequence[Tensor], found: Sequence[dict[str, Tensor]]) -> None:
        """Mean probabilities over mask heads, of each detection's class."""
        counts = [len(one["boxes"]) for one in found]
        # packed convolutions take no empty batch
        if sum(counts) == 0:
            for one in found:
                one["masks"] = one["boxes"].new_zeros((0, 1, MASK_SIDE, MASK_SIDE))
            return
        features = self.mask_features(levels, [one["boxes"] for one in found])
        labels = torch.cat([one["labels"] for one in found])
        every = torch.stack([head(features).sigmoid() for head in self.mask_stages]).mean(dim=0)
        own = every[torch.arange(len(labels), device=labels.device), labels - 1][:, None]
        for one, masks in zip(found, own.split(counts), strict=True):
            one["masks"] = masks


def _boxes_of(objects: Objects, regions: Regions) -> Tensor:
    """(N, 4): the objects' boxes; regions' own where an image has no objects, which nothing reads."""
    return objects.boxes[regions.matches] if len(objects.boxes) else regions.boxes
