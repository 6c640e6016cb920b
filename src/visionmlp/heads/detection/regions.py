"""Regions of interest: proposals with their objects, and their features.

RoIAlign: He et al., Mask R-CNN (arXiv 1703.06870), section 3. Levels: FPN (arXiv 1612.03144), equation 1.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.ops import roi_align
from torchvision.ops.poolers import LevelMapper

from visionmlp.heads.detection.boxes import at_least_float32
from visionmlp.heads.detection.matching import IGNORED, Matcher, Objects

ROI_LEVELS = 4
"""P2 to P5."""


class Regions(NamedTuple):
    """Of one image, that the losses of a stage see."""

    boxes: Tensor
    """(N, 4)."""
    matches: Tensor
    """(N,): numbers of objects; 0 for background."""
    labels: Tensor
    """(N,): classes from 1; 0 is background."""
    are_objects: Tensor
    """(N,): which of the boxes are objects' own."""

    @property
    def positives(self) -> Tensor:
        """Indices."""
        return torch.where(self.labels > 0)[0]

    def at(self, indices: Tensor) -> "Regions":
        """Some of them."""
        return Regions(*(value[indices] for value in self))


def matched(proposals: Tensor, objects: Objects, matcher: Matcher, *, with_objects: bool) -> Regions:
    """Proposals (N, 4) with their objects, and if asked for the objects' own boxes, each matched to itself.

    Those that take no part have the label -1.
    """
    matches = matcher(objects, proposals)
    if with_objects:
        numbers = torch.arange(len(objects.boxes), device=matches.device)
        proposals, matches = torch.cat([proposals, objects.boxes]), torch.cat([matches, numbers])
    labels = torch.zeros_like(matches)
    labels[matches >= 0] = objects.labels[matches[matches >= 0]]
    labels[matches == IGNORED] = -1
    own = torch.zeros_like(labels, dtype=torch.bool)
    if with_objects:
        own[len(own) - len(objects.boxes) :] = True
    return Regions(proposals, matches.clamp(min=0), labels, own)


def sampled(regions: Regions, sampler: BalancedPositiveNegativeSampler) -> Regions:
    """A random part of them, in order."""
    (positives,), (negatives,) = sampler([regions.labels])
    return regions.at(torch.where(positives | negatives)[0])


class RoIFeatures(nn.Module):
    """RoIAlign on the level that fits a region's size.

    Args:
        strides: of P2 to P5.
        size: bins along each side.
        aligned: see `DetectionSettings`, as ``sampling``.
        sampling: samples per bin and direction; 0 as many as the bin has positions.
    """

    def __init__(self, strides: Sequence[int], size: int, *, aligned: bool, sampling: int) -> None:
        super().__init__()
        self.strides, self.size, self.aligned, self.sampling = tuple(strides), size, aligned, sampling
        self.mapper = LevelMapper(2, 1 + len(self.strides))

    def forward(self, levels: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Maps (B, C, H_i, W_i) and boxes (N_b, 4) of each image to (sum of N_b, C, size, size)."""
        images = [torch.full_like(one[:, :1], index) for index, one in enumerate(boxes)]
        regions = torch.cat([torch.cat(images), torch.cat(list(boxes))], dim=1)
        of = self.mapper(list(boxes))
        parts, places = [], []
        for index, (level, stride) in enumerate(zip(levels, self.strides, strict=False)):
            here = torch.where(of == index)[0]
            places.append(here)
            # coordinates in bfloat16 would be off by pixels
            pooled = roi_align(
                at_least_float32(level), regions[here], self.size, 1 / stride, self.sampling, self.aligned
            )
            parts.append(pooled.to(level.dtype))
        return torch.cat(parts)[torch.cat(places).argsort()]
