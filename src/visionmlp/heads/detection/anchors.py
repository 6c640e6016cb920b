"""Anchors: boxes of a few sizes and shapes around each position of each level."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from visionmlp.heads.detection.settings import DetectionSettings

_UNIT = 32
"""Pixels: what a batch of one image would be padded to a multiple of."""


class PyramidAnchors(AnchorGenerator):
    """torchvision's generator with each definition's sizes and strides; always in float32 or better.

    Args:
        strides: of the levels, in pixels.
        settings: those that begin with ``anchor``.
    """

    def __init__(self, strides: Sequence[int], settings: DetectionSettings) -> None:
        octaves = settings.anchor_octaves
        sizes = [[stride * settings.anchor_scale * 2 ** (i / octaves) for i in range(octaves)] for stride in strides]
        if settings.anchor_rounding:
            sizes = [[int(size) for size in level] for level in sizes]
        super().__init__(
            tuple(tuple(level) for level in sizes),  # type: ignore[arg-type] (floats work)
            (tuple(settings.anchor_ratios),) * len(strides),
        )
        self.strides, self.settings = tuple(strides), settings
        if not settings.anchor_rounding:
            self.cell_anchors = [self._cell(torch.tensor(level)) for level in sizes]

    def _cell(self, sizes: Tensor) -> Tensor:
        """(S,) to (ratios * S, 4), around the origin, in torchvision's order."""
        roots = torch.tensor(self.settings.anchor_ratios).sqrt()
        widths, heights = (sizes / roots[:, None]).flatten(), (sizes * roots[:, None]).flatten()
        return torch.stack([-widths, -heights, widths, heights], dim=1) / 2

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """For each image the anchors (N, 4) of all levels, positions row by row, all anchors of a position together."""
        like = feature_maps[0]
        self.set_cell_anchors(torch.promote_types(like.dtype, torch.float32), like.device)
        grids = [list(level.shape[-2:]) for level in feature_maps]
        steps = [(stride, stride) for stride in self.strides]
        if self.settings.anchor_strides == "divided":
            height, width = image_list.tensors.shape[-2:]
            steps = [(height // rows, width // columns) for rows, columns in grids]
        strides = [[torch.full((), step, device=like.device) for step in level] for level in steps]
        anchors = torch.cat(self.grid_anchors(grids, strides))
        return [anchors for _ in image_list.image_sizes]

    def outside(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """For each image which anchors (N,) stand in the padding and take no part."""
        ignored, flags = self.settings.anchor_padding == "ignored", []
        for height, width in image_list.image_sizes:
            levels = []
            for level, stride, count in zip(feature_maps, self.strides, self.num_anchors_per_location(), strict=True):
                outside = torch.full(level.shape[-2:], ignored, device=level.device)
                rows, columns = (-(-_padded(side) // stride) for side in (height, width))
                outside[:rows, :columns] = False
                levels.append(outside.flatten().repeat_interleave(count))
            flags.append(torch.cat(levels))
        return flags


def _padded(side: int) -> int:
    return -(-side // _UNIT) * _UNIT
