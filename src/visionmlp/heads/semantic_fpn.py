"""Semantic FPN's head: each level brought to the finest stride by convolutions and upsampling, then their sum.

Source: Kirillov et al., Panoptic Feature Pyramid Networks (arXiv 1901.02446), section 3.1 and Figure 3. Definitions and
names of parameters are mmseg 0.11's (FPNHead), with BatchNorm and dropout where the paper has GroupNorm and none. It
stands behind `visionmlp.heads.fpn.FPN`. Maps are (B, C, H, W).
"""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from visionmlp.errors import InvalidConfig
from visionmlp.heads.conv import ConvNormAct
from visionmlp.heads.pixels import PixelHead, resize


class SemanticFPNHead(PixelHead):
    """Levels of one neck to logits at the stride of the first.

    Args:
        in_channels: width of the levels.
        strides: of the levels, fine to coarse, each a power of two times the first.
        num_classes: K.
        channels: width of the convolutions.
        dropout: see `PixelHead`.

    Raises:
        InvalidConfig: for strides that no doubling brings together, or see `PixelHead`.
    """

    def __init__(
        self, in_channels: int, strides: Sequence[int], num_classes: int, *, channels: int = 128, dropout: float = 0.1
    ) -> None:
        super().__init__(channels, num_classes, dropout=dropout)
        doublings = [math.log2(stride / strides[0]) for stride in strides]
        if not doublings or not all(count.is_integer() and count >= 0 for count in doublings):
            raise InvalidConfig(f"strides must be the first one times powers of two, got {list(strides)}")
        self.scale_heads = nn.ModuleList(self._branch(in_channels, channels, int(count)) for count in doublings)

    @staticmethod
    def _branch(in_channels: int, channels: int, doublings: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for index in range(max(1, doublings)):
            layers.append(ConvNormAct(channels if index else in_channels, channels, 3))
            if doublings:
                layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
        return nn.Sequential(*layers)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Levels (B, C, H_i, W_i) to logits (B, K, H_0, W_0)."""
        outputs = [branch(level) for branch, level in zip(self.scale_heads, levels, strict=True)]
        total, size = outputs[0], outputs[0].shape[2:]
        for output in outputs[1:]:
            # levels of sides that the strides do not divide end beyond the image
            total = total + resize(output, size)
        return self.classify(total)
