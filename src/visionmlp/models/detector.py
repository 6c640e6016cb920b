"""Detectors: RetinaNet, Faster, Mask and Cascade Mask R-CNN over a feature pyramid of any family."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from visionmlp.models.backbone import Backbone
from visionmlp.models.dense import DenseFeatures, dense_features
from visionmlp.models.dense_network import DenseNetwork

DetectorHead = Literal["retinanet", "faster_rcnn", "mask_rcnn", "cascade_mask_rcnn"]


class _Neck(nn.Module):
    def __init__(self, levels: DenseFeatures, fpn: nn.Module, skip: int, width: int) -> None:
        super().__init__()
        self.levels, self.fpn, self.skip, self.out_channels = [levels], fpn, skip, width

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.fpn({str(i): level for i, level in enumerate(self.levels[0](x)) if i >= self.skip})


class Detector(DenseNetwork):
    """A detector with torchvision's call and results."""

    task: ClassVar[str] = "detect"

    def __init__(self, levels: DenseFeatures, options: Mapping[str, Any], net: nn.Module) -> None:
        super().__init__(levels, options)
        self.net = net

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Images (C, H, W) in [0, 1] to losses in training mode, to detections in evaluation."""
        return self.net(list(images), None if targets is None else [dict(target) for target in targets])


def create_detector(
    backbone: Backbone | str,
    *,
    head: DetectorHead,
    num_classes: int,
    definition: Literal["mmdet", "torchvision", "detectron2", "asmlp"] = "mmdet",
    settings: Mapping[str, Any] | None = None,
    min_size: int | Sequence[int] | None = None,
    max_size: int | None = None,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    fpn_channels: int = 256,
    tile_overlap: int | None = None,
) -> Detector:
    """SKELETON with torchvision's definitions; definition and settings come with the next commits."""
    options = {name: value for name, value in locals().items() if name != "backbone"}
    levels = dense_features(backbone, tile_overlap=tile_overlap)
    retina = head == "retinanet"
    skip = 1 if retina else 0
    extra = LastLevelP6P7(fpn_channels, fpn_channels) if retina else LastLevelMaxPool()
    fpn = FeaturePyramidNetwork(levels.feature_info.channels()[skip:], fpn_channels, extra_blocks=extra)
    build: Any = {"retinanet": RetinaNet, "faster_rcnn": FasterRCNN}.get(head, MaskRCNN)
    net = build(
        _Neck(levels, fpn, skip, fpn_channels),
        num_classes + 1,
        min_size=min_size or 800,
        max_size=max_size or 1333,
        image_mean=image_mean,
        image_std=image_std,
    )
    return Detector(levels, options, net)
