"""Heads that classify every position of a map: what they have in common, and the plain one.

Source: Long et al., Fully Convolutional Networks (arXiv 1411.4038); definitions and names of parameters are mmseg
0.11's (BaseDecodeHead, FCNHead). Maps are (B, C, H, W).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from visionmlp.errors import InvalidConfig
from visionmlp.heads.conv import ConvNormAct


class PixelHead(nn.Module, ABC):
    """Feature levels to logits at one of their strides.

    Args:
        channels: width of what is classified.
        num_classes: K, two or more; background is one of them.
        dropout: rate at which whole channels are dropped before the classifier, in training.

    Raises:
        InvalidConfig: for widths, classes or a rate that cannot be.
    """

    def __init__(self, channels: int, num_classes: int, *, dropout: float) -> None:
        super().__init__()
        # of a single class every position is, whatever the network says
        for name, value, least in (("channels", channels, 1), ("num_classes", num_classes, 2)):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise InvalidConfig(f"{name} must be an integer of at least {least}, got {value!r}")
        if not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
            raise InvalidConfig(f"dropout must be a rate from 0 to below 1, got {dropout!r}")
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = nn.Conv2d(channels, num_classes, 1)
        nn.init.normal_(self.conv_seg.weight, std=0.01)
        assert self.conv_seg.bias is not None
        nn.init.zeros_(self.conv_seg.bias)

    @abstractmethod
    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Levels (B, C_i, H_i, W_i), fine to coarse, to logits (B, K, H, W)."""

    def classify(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to logits (B, K, H, W)."""
        return self.conv_seg(self.dropout(x))


class FCNHead(PixelHead):
    """3x3 convolutions on one level, then the classifier: the auxiliary head of UperNet, with one convolution.

    Args:
        in_channels: width of the level.
        num_classes: K.
        level: which of the levels it reads; 2 is stride 16.
        channels: width of the convolutions.
        convs: how many.
        dropout: see `PixelHead`.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        level: int = 2,
        channels: int = 256,
        convs: int = 1,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(channels, num_classes, dropout=dropout)
        if convs < 1:
            raise InvalidConfig(f"convs must be at least 1, got {convs}")
        self.level = level
        self.convs = nn.Sequential(
            *(ConvNormAct(channels if index else in_channels, channels, 3) for index in range(convs))
        )

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Levels (B, C_i, H_i, W_i) to logits (B, K, H_level, W_level)."""
        return self.classify(self.convs(levels[self.level]))


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear to (H, W), corners not aligned: (B, C, h, w) to (B, C, H, W)."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)
