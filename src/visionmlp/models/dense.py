"""Dense prediction: a feature pyramid from any family, and images of any size for families of one size.

Three modules that compose, each an image to a list of maps: `BackboneLevels`, the levels of a backbone; `Tiled`, the
same over windows of an image; `Pyramid`, brought to strides 4, 8, 16, 32. `dense_features` puts them together.

Pyramid: the levels are evenly spaced blocks, as in DPT (arXiv 2103.13413, section 3.1: blocks 3, 6, 9, 12 of 12), or
stages. The operators are ViTDet's (arXiv 2203.16527, appendix A): 2x2 transposed convolutions to finer strides, max
pooling to coarser ones. Its strides are 16 times a power of two; patches of 7 or 14 pixels (ViP, DynaMixer) leave a
ratio of 7/8, for which this adds bilinear interpolation and a depth-wise 3x3 convolution. That part is our choice.

Maps are (B, C, H, W).
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial

import torch
from timm.layers import LayerNorm2d
from timm.models._features import FeatureInfo
from torch import Tensor, nn
from torch.nn import functional as F

from visionmlp.errors import InvalidConfig, InvalidImageSize
from visionmlp.models.backbone import Backbone
from visionmlp.models.config import size_text
from visionmlp.models.registry import create_model, default_levels

PYRAMID_STRIDES = (4, 8, 16, 32)
"""What necks and heads for segmentation and detection expect."""


class DenseFeatures(nn.Module, ABC):
    """(B, in_chans, H, W) to a list of maps (B, C_i, H_i, W_i), fine to coarse.

    ``feature_info.channels()`` and ``feature_info.reduction()`` say C_i and the strides, as in timm.
    """

    feature_info: FeatureInfo

    @abstractmethod
    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, in_chans, H, W) to the levels."""


def crop(levels: Sequence[Tensor], strides: Sequence[int], size: Sequence[int]) -> list[Tensor]:
    """Only the positions that see the image: level i to at most ceil(H / stride_i) x ceil(W / stride_i)."""
    return [
        level[..., : -(-size[0] // stride), : -(-size[1] // stride)]
        for level, stride in zip(levels, strides, strict=True)
    ]


class BackboneLevels(DenseFeatures):
    """Levels of a backbone, without its classifier and what lies beyond the last level.

    Images keep the sizes that the model takes. One that takes multiples of its size (RepMLPNet) takes any: zeros are
    added on the right and at the bottom, and positions that see nothing else are left out.

    Args:
        model: is copied, with its weights; may be a deploy form.
        out_indices: levels, -1 is the last; all stages or four evenly spaced blocks if None.

    Raises:
        InvalidConfig: for levels that the model does not have.
    """

    def __init__(self, model: Backbone, *, out_indices: Sequence[int] | None = None) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        levels = model.take_levels(default_levels(model.config) if out_indices is None else out_indices)
        self.out_indices = self.model.prune_intermediate_layers(sorted(set(levels)), prune_norm=True)
        self.feature_info = FeatureInfo([dict(info) for info in model.feature_info], tuple(self.out_indices))

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, in_chans, H, W) to the levels.

        Raises:
            InvalidImageSize: for an image that the model does not take.
        """
        size, native = x.shape[-2:], self.model.config.img_size
        if self.model.input_sizes == "multiples":
            x = F.pad(x, (0, -size[1] % native[1], 0, -size[0] % native[0]))
        elif self.model.input_sizes == "fixed" and tuple(size) != native:
            raise InvalidImageSize(
                f"{self.model.name} as built takes exactly {size_text(native)}, got {size_text(size)}; "
                "build it with img_size, or cut images into windows by tile_overlap=0"
            )
        levels = self.model.forward_intermediates(x, indices=self.out_indices, intermediates_only=True)
        assert isinstance(levels, list)
        return crop(levels, self.feature_info.reduction(), size)


class Tiled(DenseFeatures):
    """Levels of images of any size, from windows of the size that the model is built for.

    Zeros are added on the right and at the bottom until windows fill the image. All windows are one batch; where they
    overlap, features are averaged. A window sees nothing of its neighbours.

    Args:
        net: levels of a window.
        overlap: pixels that neighbouring windows share; a multiple of the coarsest stride.
        taper: weigh a window's features the less, the nearer they are to its edge, within ``overlap``.
        max_windows: windows that are computed at a time, to bound memory; all if None. BatchNorms in training mode
            then see that many, and an export must fix the batch size.

    Raises:
        InvalidConfig: for an overlap or a number of windows that cannot work, naming those that can.
    """

    def __init__(
        self, net: BackboneLevels, *, overlap: int = 0, taper: bool = False, max_windows: int | None = None
    ) -> None:
        super().__init__()
        self.net = net
        self.feature_info = net.feature_info
        self.window = net.model.config.img_size
        self.max_windows = max_windows
        name, unit = net.model.name, math.lcm(*self.feature_info.reduction())
        largest = min(self.window) - unit
        if self.window[0] % unit or self.window[1] % unit:
            raise InvalidConfig(
                f"windows must be multiples of {unit}; build {name} with such an img_size, not {size_text(self.window)}"
            )
        if overlap not in range(0, largest + 1, unit):
            raise InvalidConfig(f"overlap of {name} must be a multiple of {unit} from 0 to {largest}, got {overlap}")
        if max_windows is not None and max_windows < 1:
            raise InvalidConfig(f"max_windows must be at least 1, got {max_windows}")
        if taper and not overlap:
            raise InvalidConfig(f"taper needs windows that overlap; give an overlap from {unit} to {largest}")
        self.step = (self.window[0] - overlap, self.window[1] - overlap)
        for i, stride in enumerate(self.feature_info.reduction()):
            rows, columns = (_ramp(side // stride, overlap // stride if taper else 0) for side in self.window)
            self.register_buffer(f"weight{i}", rows[:, None] * columns, persistent=False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, in_chans, H, W) to levels of ceil(H / stride) x ceil(W / stride)."""
        size = x.shape[-2:]
        counts = [
            1 + max(0, -(-(side - window) // step))
            for side, window, step in zip(size, self.window, self.step, strict=True)
        ]
        filled = [
            window + (count - 1) * step for window, count, step in zip(self.window, counts, self.step, strict=True)
        ]
        x = F.pad(x, (0, filled[1] - size[1], 0, filled[0] - size[0]))
        windows = x.unfold(2, self.window[0], self.step[0]).unfold(3, self.window[1], self.step[1])
        windows = windows.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
        if self.max_windows is None:
            levels = self.net(windows)
        else:
            parts = [self.net(part) for part in windows.split(self.max_windows)]
            levels = [torch.cat(level) for level in zip(*parts, strict=True)]
        merged = [self._merge(i, level, counts) for i, level in enumerate(levels)]
        return crop(merged, self.feature_info.reduction(), size)

    def _merge(self, index: int, level: Tensor, counts: Sequence[int]) -> Tensor:
        """(B * rows * columns, C, h, w) to (B, C, H, W): a weighted average."""
        weight: Tensor = getattr(self, f"weight{index}").to(level.dtype)
        stride = self.feature_info.reduction()[index]
        (height, width), rows, columns = weight.shape, self.step[0] // stride, self.step[1] // stride
        channels, windows = level.shape[1], counts[0] * counts[1]
        size = (height + (counts[0] - 1) * rows, width + (counts[1] - 1) * columns)
        add = partial(F.fold, output_size=size, kernel_size=(height, width), stride=(rows, columns))
        weighted = (level * weight).reshape(-1, windows, channels * height * width).transpose(1, 2)
        return add(weighted) / add(weight.view(1, -1, 1).expand(-1, -1, windows))


def _ramp(length: int, width: int) -> Tensor:
    """(length,): 1 in the middle, falling linearly over ``width`` positions at both ends."""
    position = torch.arange(length)
    nearest = torch.minimum(position, length - 1 - position)
    return (nearest + 1).clamp(max=width + 1) / (width + 1)


class Pyramid(DenseFeatures):
    """Levels at strides 4, 8, 16, 32, of ceil(H / stride) x ceil(W / stride).

    Each is a level of ``net`` behind a LayerNorm, brought to its stride by `resample`. With fewer than four levels some
    serve twice. A net that has these strides (four stages) keeps its levels as they are; of an odd image they have the
    sizes that its own embeddings give, which CycleMLP and Hire-MLP round down.

    Args:
        net: levels of the image.
        out_channels: width of all levels, by a 1x1 convolution before resampling; each keeps its own if None.
        strides: of the levels that are wanted, such as 8, 16, 32.
    """

    def __init__(
        self, net: DenseFeatures, *, out_channels: int | None = None, strides: Sequence[int] = PYRAMID_STRIDES
    ) -> None:
        super().__init__()
        self.net, self.strides = net, tuple(strides)
        if out_channels is not None and out_channels < 1:
            raise InvalidConfig(f"out_channels must be at least 1, got {out_channels}")
        if not self.strides or any(stride not in PYRAMID_STRIDES for stride in self.strides):
            raise InvalidConfig(f"strides of a pyramid are among {PYRAMID_STRIDES}, got {self.strides}")
        widths, given = net.feature_info.channels(), net.feature_info.reduction()
        if len(given) > len(PYRAMID_STRIDES):
            raise InvalidConfig(f"a pyramid has {len(PYRAMID_STRIDES)} levels; give out_indices of at most as many")
        already = tuple(given) == self.strides
        places = [PYRAMID_STRIDES.index(stride) + 1 for stride in self.strides]
        self.sources = [-(-len(given) * k // len(PYRAMID_STRIDES)) - 1 for k in places]
        if already:
            self.sources = list(range(len(given)))
        self.levels = nn.ModuleList()
        info = []
        for source, stride in zip(self.sources, self.strides, strict=True):
            layers: list[nn.Module] = []
            dim = widths[source]
            if not already or out_channels is not None:
                layers.append(LayerNorm2d(dim))
            if out_channels is not None:
                layers.append(nn.Conv2d(dim, out_channels, 1))
                dim = out_channels
            self.levels.append(nn.Sequential(*layers, *resample(dim, given[source], stride)))
            info.append({"module": f"levels.{len(info)}", "num_chs": dim, "reduction": stride})
        self.feature_info = FeatureInfo(info, tuple(range(len(info))))

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, in_chans, H, W) to a level for each stride."""
        given = self.net(x)
        levels = [level(given[source]) for source, level in zip(self.sources, self.levels, strict=True)]
        return crop(levels, self.strides, x.shape[-2:])


def resample(dim: int, stride: int, target: int) -> list[nn.Module]:
    """Layers that bring a map of ``dim`` channels from one stride to another; none if they are the same.

    Transposed convolutions or a max pooling to the nearest power of two, then what remains by interpolation. Positions
    keep their place: both maps begin at the same corner of the image. May give more positions on the right and at the
    bottom than the image has.
    """
    doublings = round(math.log2(stride / target))
    layers: list[nn.Module] = []
    for i in range(doublings):
        if i > 0:
            layers += [LayerNorm2d(dim), nn.GELU()]
        layers.append(nn.ConvTranspose2d(dim, dim, 2, stride=2))
    if doublings < 0:
        layers.append(nn.MaxPool2d(2**-doublings, ceil_mode=True))
    scale = stride / 2**doublings / target
    if scale != 1.0:
        smooth = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        # starts as the identity, so that a fresh pyramid interpolates
        nn.init.dirac_(smooth.weight, groups=dim)
        assert smooth.bias is not None
        nn.init.zeros_(smooth.bias)
        layers += [Interpolate(scale), smooth]
    return layers


class Interpolate(nn.Module):
    """Bilinear, by a factor that need not give whole numbers: one more position then, that may end beyond the map."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.more = math.ceil(1 / scale)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to at least (B, C, ceil(scale * H), ceil(scale * W))."""
        # with a size in place of a factor, the map would be stretched to it
        return F.interpolate(
            F.pad(x, (0, self.more, 0, self.more), mode="replicate"), scale_factor=self.scale, mode="bilinear"
        )


def dense_features(
    model: Backbone | str,
    *,
    pyramid: bool = True,
    tile_overlap: int | None = None,
    out_indices: Sequence[int] | None = None,
    out_channels: int | None = None,
    strides: Sequence[int] = PYRAMID_STRIDES,
) -> DenseFeatures:
    """Feature levels for dense prediction from any family.

    A deploy form comes from this by `reparameterize`, or goes into it.

    Args:
        model: its weights are copied; a name is built with fresh ones.
        pyramid: bring levels to strides 4, 8, 16, 32 (`Pyramid`); otherwise they keep the model's own.
        tile_overlap: pixels that neighbouring windows share, into which images of any size are then cut (`Tiled`); None
            gives the model the whole image.
        out_indices: the model's levels; all stages or four evenly spaced blocks if None.
        out_channels: width of all levels of the pyramid; each keeps its own if None.
        strides: of the pyramid's levels, if not all of 4, 8, 16, 32 are wanted.

    Raises:
        UnknownModel: with the nearest names.
        InvalidConfig: for levels, an overlap or widths that cannot work, naming those that can.
    """
    if isinstance(model, str):
        model = create_model(model)
    if not isinstance(model, Backbone):
        raise InvalidConfig(f"dense_features takes a model of visionmlp or its name, got {type(model).__name__}")
    strides = tuple(strides)
    if not pyramid and (out_channels is not None or strides != PYRAMID_STRIDES):
        raise InvalidConfig("out_channels and strides are of a pyramid's levels; give pyramid=True")
    if out_indices is None and tuple(info["reduction"] for info in model.feature_info) == PYRAMID_STRIDES:
        # so that nothing is computed for levels, nor a norm kept, that nobody reads
        out_indices = [index for index, stride in enumerate(PYRAMID_STRIDES) if stride in strides]
    net: DenseFeatures = BackboneLevels(model, out_indices=out_indices)
    if tile_overlap is not None:
        net = Tiled(net, overlap=tile_overlap)
    return Pyramid(net, out_channels=out_channels, strides=strides) if pyramid else net
