"""Semantic segmentation with any family: a pyramid of its levels, UperNet's or Semantic FPN's head, an auxiliary head.

Defaults are mmseg 0.11's, in which the families' dense results were obtained; see the heads for the papers.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

from torch import Tensor

from visionmlp.errors import InvalidConfig
from visionmlp.heads.fpn import FPN
from visionmlp.heads.pixels import FCNHead, PixelHead, resize
from visionmlp.heads.semantic_fpn import SemanticFPNHead
from visionmlp.heads.upernet import UperNetHead
from visionmlp.models.backbone import Backbone
from visionmlp.models.dense import PYRAMID_STRIDES, DenseFeatures, dense_features
from visionmlp.models.dense_network import DenseNetwork, dense_backbone

SegmentationHead = Literal["upernet", "semantic_fpn"]
"""Heads by name."""

_CHANNELS = {"upernet": 512, "semantic_fpn": 128}
_AUXILIARY_CHANNELS = {"upernet": 256, "semantic_fpn": 0}
_AUXILIARY_LEVEL = PYRAMID_STRIDES.index(16)


class Segmenter(DenseNetwork):
    """Levels, neck, head, auxiliary head; built by `create_segmenter`.

    Args:
        levels: of a backbone, at strides 4, 8, 16, 32.
        decode_head: levels, or the neck's, to logits.
        options: see `DenseNetwork`.
        neck: between levels and head.
        auxiliary_head: the levels to logits of their own, for a second loss in training.
    """

    task = "segment"

    def __init__(
        self,
        levels: DenseFeatures,
        decode_head: PixelHead,
        options: dict[str, Any],
        *,
        neck: FPN | None = None,
        auxiliary_head: PixelHead | None = None,
    ) -> None:
        super().__init__(levels, options)
        self.neck, self.decode_head, self.auxiliary_head = neck, decode_head, auxiliary_head

    @property
    def num_classes(self) -> int:
        """K."""
        return self.decode_head.conv_seg.out_channels

    def official_name(self, name: str) -> str | None:
        """As in mmseg's files: the parts have its names; it has no pyramid."""
        return name if name.startswith(("neck.", "decode_head.", "auxiliary_head.")) else None

    def forward(self, x: Tensor, auxiliary: bool = False) -> Tensor | tuple[Tensor, Tensor | None]:
        """Images (B, in_chans, H, W) to logits (B, K, H, W), bilinear from the head's stride 4.

        Args:
            x: values normalised as the backbone's.
            auxiliary: for a loss: logits (B, K, H/4, W/4) as the head gives them, and the auxiliary head's (B, K,
                H/16, W/16), or None without one.

        Raises:
            InvalidImageSize: for images that the backbone does not take.
            InvalidConfig: in training on batches that have no variance, see `UperNetHead`.
        """
        levels = self.levels(x)
        logits = self.decode_head(levels if self.neck is None else self.neck(levels))
        if auxiliary:
            return logits, None if self.auxiliary_head is None else self.auxiliary_head(levels)
        return resize(logits, x.shape[2:])


def create_segmenter(
    backbone: Backbone | str,
    *,
    head: SegmentationHead = "upernet",
    num_classes: int,
    channels: int | None = None,
    auxiliary_channels: int | None = None,
    neck_channels: int | None = None,
    dropout: float = 0.1,
    img_size: int | tuple[int, int] | None = None,
    tile_overlap: int | None = None,
    out_indices: Sequence[int] | None = None,
    out_channels: int | None = None,
) -> Segmenter:
    """A network for semantic segmentation on any family, with a fresh head.

    Families of one image size take others by ``tile_overlap``, or are built at the size of the training crop
    (``img_size``) and evaluated by a sliding window.

    Args:
        backbone: its weights are copied; a name is built with fresh ones, without classifier and with a norm on each
            level where the family's authors have one (``feature_norms``).
        head: UperNet (arXiv 1807.10221) or Semantic FPN (arXiv 1901.02446).
        num_classes: K; background is one of them.
        channels: width of the head; None is 512 for UperNet and 128 for Semantic FPN.
        auxiliary_channels: width of the auxiliary head on stride 16, 0 for none; None is 256 for UperNet and 0 for
            Semantic FPN.
        neck_channels: width of Semantic FPN's neck; None is 256.
        dropout: rate of whole channels before the classifiers.
        img_size: side or height and width that a name is built for; None is its native size.
        tile_overlap: pixels that windows share into which images are cut; None gives the backbone whole images.
        out_indices: levels of the backbone; all stages or four evenly spaced blocks if None.
        out_channels: width of all levels of the pyramid; each keeps its own if None.

    Raises:
        UnknownModel: with the nearest names.
        InvalidConfig: for an unknown head, or an option that cannot be.
    """
    if head not in get_args(SegmentationHead):
        raise InvalidConfig(f"head must be {' or '.join(get_args(SegmentationHead))}, got {head!r}")
    if neck_channels is not None and head != "semantic_fpn":
        raise InvalidConfig(f"{head} has no neck; leave neck_channels out")
    if tile_overlap is not None and type(tile_overlap) is not int:
        raise InvalidConfig(f"tile_overlap must be an integer, got {tile_overlap!r}")
    if out_indices is not None and not all(type(index) is int for index in out_indices):
        raise InvalidConfig(f"out_indices must be integers, got {out_indices!r}")
    if head == "semantic_fpn":
        neck_channels = 256 if neck_channels is None else neck_channels
    options: dict[str, Any] = {
        "head": head,
        "num_classes": num_classes,
        "channels": _CHANNELS[head] if channels is None else channels,
        "auxiliary_channels": _AUXILIARY_CHANNELS[head] if auxiliary_channels is None else auxiliary_channels,
        "neck_channels": neck_channels,
        "dropout": dropout,
        "tile_overlap": tile_overlap,
        "out_indices": None if out_indices is None else list(out_indices),
        "out_channels": out_channels,
    }
    levels = dense_features(
        dense_backbone(backbone, img_size=img_size),
        tile_overlap=tile_overlap,
        out_indices=out_indices,
        out_channels=out_channels,
    )
    widths = levels.feature_info.channels()
    neck = None if neck_channels is None else FPN(widths, neck_channels)
    decode_head: PixelHead = (
        UperNetHead(widths, num_classes, channels=options["channels"], dropout=dropout)
        if neck is None
        else SemanticFPNHead(
            neck.out_channels, PYRAMID_STRIDES, num_classes, channels=options["channels"], dropout=dropout
        )
    )
    auxiliary_head = None
    if options["auxiliary_channels"] != 0:
        auxiliary_head = FCNHead(
            widths[_AUXILIARY_LEVEL],
            num_classes,
            level=_AUXILIARY_LEVEL,
            channels=options["auxiliary_channels"],
            dropout=dropout,
        )
    return Segmenter(levels, decode_head, options, neck=neck, auxiliary_head=auxiliary_head)
