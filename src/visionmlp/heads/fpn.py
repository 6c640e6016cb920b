"""The neck of RetinaNet, Faster R-CNN and their like, and of Semantic FPN: a feature pyramid network.

Source: Lin et al., Feature Pyramid Networks (arXiv 1612.03144), section 3. Defaults are mmdet 2.11's and mmseg 0.11's:
convolutions with bias and without norm, nearest upsampling from coarse to fine. Maps are (B, C, H, W), fine to coarse.
"""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from visionmlp.errors import InvalidConfig
from visionmlp.heads.conv import Conv

ExtraFrom = Literal["pool", "input", "lateral", "output"]
"""What extra levels are made of: the last output, by a 1x1 max pooling of stride 2 (Faster R-CNN: P6), or by 3x3
convolutions of stride 2 the last input map (RetinaNet: P6 of C5), its lateral map, or the last output (torchvision's
RetinaNet)."""


class FPN(nn.Module):
    """Levels of one width from levels of any widths, and coarser ones beyond them.

    Args:
        in_channels: widths of the levels, fine to coarse.
        out_channels: width of all results.
        extra_levels: results beyond the last level, each of half the resolution.
        extra_from: see `ExtraFrom`.
        relu_between: a ReLU before each extra convolution but the first; detectron2's and torchvision's RetinaNet has
            it, mmdet's does not.

    Raises:
        InvalidConfig: for no levels, widths or counts that cannot be, or an unknown ``extra_from``.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int = 256,
        *,
        extra_levels: int = 0,
        extra_from: ExtraFrom = "pool",
        relu_between: bool = False,
    ) -> None:
        super().__init__()
        if not in_channels or min(*in_channels, out_channels) < 1:
            raise InvalidConfig(
                f"an FPN needs levels and widths of at least 1, got {list(in_channels)} to {out_channels}"
            )
        if extra_levels < 0:
            raise InvalidConfig(f"extra_levels must be at least 0, got {extra_levels}")
        if extra_from not in ("pool", "input", "lateral", "output"):
            raise InvalidConfig(f"extra_from must be pool, input, lateral or output, got {extra_from!r}")
        self.in_channels, self.out_channels = tuple(in_channels), out_channels
        self.extra_levels, self.extra_from, self.relu_between = extra_levels, extra_from, relu_between
        self.lateral_convs = nn.ModuleList(Conv(width, out_channels, 1) for width in in_channels)
        self.fpn_convs = nn.ModuleList(Conv(out_channels, out_channels, 3) for _ in in_channels)
        if extra_from != "pool":
            first = in_channels[-1] if extra_from == "input" else out_channels
            # in the same list, as in mmdet's checkpoints
            self.fpn_convs.extend(
                Conv(first if index == 0 else out_channels, out_channels, 3, stride=2) for index in range(extra_levels)
            )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, C_i, H_i, W_i) to (B, out_channels, H_i, W_i), then the extra levels.

        Raises:
            InvalidConfig: for another number of levels than the neck was built for.
        """
        if len(levels) != len(self.in_channels):
            raise InvalidConfig(f"this FPN takes {len(self.in_channels)} levels, got {len(levels)}")
        laterals = [conv(level) for conv, level in zip(self.lateral_convs, levels, strict=True)]
        for index in range(len(laterals) - 1, 0, -1):
            finer = laterals[index - 1]
            laterals[index - 1] = finer + F.interpolate(laterals[index], size=finer.shape[2:], mode="nearest")
        outputs = [conv(lateral) for conv, lateral in zip(self.fpn_convs, laterals, strict=False)]
        if self.extra_from == "pool":
            for _ in range(self.extra_levels):
                outputs.append(F.max_pool2d(outputs[-1], 1, stride=2))
            return outputs
        sources = {"input": levels[-1], "lateral": laterals[-1], "output": outputs[-1]}
        x = sources[self.extra_from]
        for index in range(self.extra_levels):
            x = F.relu(x) if index > 0 and self.relu_between else x
            x = self.fpn_convs[len(laterals) + index](x)
            outputs.append(x)
        return outputs
