"""UperNet's head: pooling pyramid on the coarsest level, top-down pathway, all levels fused at the finest stride.

Source: Xiao et al., Unified Perceptual Parsing (arXiv 1807.10221), section 3; the pooling pyramid is PSPNet's (arXiv
1612.01105, section 3.2). Definitions and names of parameters are mmseg 0.11's (UPerHead, PPM). Maps are (B, C, H, W).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from visionmlp.errors import InvalidConfig
from visionmlp.heads.conv import ConvNormAct
from visionmlp.heads.pixels import PixelHead, resize
from visionmlp.layers.part_means import PartMeans

POOL_SCALES = (1, 2, 3, 6)
"""Positions along a side of the pooled maps."""


class UperNetHead(PixelHead):
    """Levels of any widths to logits at the stride of the first.

    Its BatchNorm behind the pooling to 1x1 has no variance of a single image, which training refuses by name.

    Args:
        in_channels: widths of the levels, fine to coarse.
        num_classes: K.
        channels: width of everything behind the levels.
        dropout: see `PixelHead`.

    Raises:
        InvalidConfig: for no levels, or see `PixelHead`.
    """

    def __init__(
        self, in_channels: Sequence[int], num_classes: int, *, channels: int = 512, dropout: float = 0.1
    ) -> None:
        if not in_channels:
            raise InvalidConfig("UperNet needs at least one level")
        super().__init__(channels, num_classes, dropout=dropout)
        *finer, coarsest = in_channels
        self.psp_modules = nn.ModuleList(
            nn.Sequential(PartMeans(scale), ConvNormAct(coarsest, channels, 1)) for scale in POOL_SCALES
        )
        self.bottleneck = ConvNormAct(coarsest + len(POOL_SCALES) * channels, channels, 3)
        self.lateral_convs = nn.ModuleList(ConvNormAct(width, channels, 1) for width in finer)
        self.fpn_convs = nn.ModuleList(ConvNormAct(channels, channels, 3) for _ in finer)
        self.fpn_bottleneck = ConvNormAct(len(in_channels) * channels, channels, 3)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Levels (B, C_i, H_i, W_i) to logits (B, K, H_0, W_0)."""
        *finer, coarsest = levels
        laterals = [conv(level) for conv, level in zip(self.lateral_convs, finer, strict=True)]
        laterals.append(self._pooled(coarsest))
        for index in range(len(laterals) - 1, 0, -1):
            laterals[index - 1] = laterals[index - 1] + resize(laterals[index], laterals[index - 1].shape[2:])
        outputs = [conv(lateral) for conv, lateral in zip(self.fpn_convs, laterals[:-1], strict=True)]
        outputs.append(laterals[-1])
        size = outputs[0].shape[2:]
        fused = torch.cat([outputs[0], *(resize(output, size) for output in outputs[1:])], dim=1)
        return self.classify(self.fpn_bottleneck(fused))

    def _pooled(self, x: Tensor) -> Tensor:
        """The coarsest level with means over its parts: (B, C, H, W) to (B, channels, H, W)."""
        parts = [resize(pool(x), x.shape[2:]) for pool in self.psp_modules]
        return self.bottleneck(torch.cat([x, *parts], dim=1))
