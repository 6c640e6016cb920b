"""An exported model at work, whatever runs it: images in, logits out."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from visionmlp.deploy.metadata import ExportMetadata
from visionmlp.errors import CheckpointError, InvalidConfig, InvalidImageSize
from visionmlp.models.backbone import Backbone
from visionmlp.models.checkpoint import CheckpointInfo, default_preprocessing
from visionmlp.models.config import size_text

Call = Callable[[np.ndarray], np.ndarray]
"""(B, C, H, W) float32 to logits, float32: (B, classes), of segmentation networks (B, classes, H, W)."""


class RuntimeSession(Protocol):
    """A model outside of eager PyTorch."""

    @property
    def metadata(self) -> ExportMetadata:
        """What it says about itself."""
        ...

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """As a `Call`."""
        ...


@dataclasses.dataclass(frozen=True)
class Session:
    """A graph in a runtime; takes any number of images, also where the graph has one batch size."""

    metadata: ExportMetadata
    call: Call
    """For images that the graph takes as they are."""

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """As a `Call`.

        Of a graph with one batch size, batches are cut and the last is filled up with zeros.

        Raises:
            InvalidImageSize: for images of another size than the graph takes.
            ExportError: if the runtime fails.
        """
        self._check(images)
        images = np.ascontiguousarray(images, dtype=np.float32)
        batch = self.metadata.batch
        if batch == "dynamic" or len(images) == batch:
            return self.call(images)
        parts = []
        for start in range(0, len(images), batch):
            part = images[start : start + batch]
            filled = np.concatenate([part, np.zeros((batch - len(part), *part.shape[1:]), np.float32)])
            parts.append(self.call(filled)[: len(part)])
        return np.concatenate(parts)

    def _check(self, images: np.ndarray) -> None:
        if images.ndim == 4 and len(images) == 0:
            raise InvalidImageSize(f"this batch is empty, {images.shape}; give one image or more")
        channels, *size = self.metadata.input_size
        sides = self.metadata.sides
        fits = images.ndim == 4 and images.shape[1] == channels
        if sides is None:
            fits, works = fits and images.shape[2:] == tuple(size), size_text(size)
        else:
            fits = fits and all(map(sides.fits, images.shape[2:]))
            works = f"multiples of {sides.step} from {sides.least} on"
        if not fits:
            raise InvalidImageSize(
                f"this file of {self.metadata.model} takes images of {channels} channels and {works}, "
                f"got {images.shape}"
            )


class SessionModel(nn.Module):
    """A session as a module, for what evaluates models; without gradient.

    Args:
        session: from `open_session`.
    """

    def __init__(self, session: RuntimeSession) -> None:
        super().__init__()
        self.session = session
        self.num_classes = session.metadata.num_classes
        self.in_chans = session.metadata.input_size[0]
        self.like = nn.Parameter(torch.empty(0), requires_grad=False)
        """Tells dtype and device of the images."""

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to logits, as a `Call`."""
        return torch.from_numpy(self.session(images.numpy()))


def preprocessing_of(model: Backbone | SessionModel, info: CheckpointInfo) -> dict[str, Any]:
    """What `visionmlp.data.Preprocessing.from_saved` takes: the checkpoint's, or that of the published weights.

    Raises:
        CheckpointError: if they do not fit the model's channels.
        InvalidConfig: if no image file has the model's channels.
    """
    channels = model.in_chans
    if channels not in (1, 3):
        raise InvalidConfig(f"{info.model} takes {channels} channels; an image file gives 1 or 3")
    preprocessing = info.preprocessing
    if not preprocessing:
        assert isinstance(model, Backbone)  # an exported file always has some
        preprocessing = default_preprocessing(model)
    for key in ("mean", "std"):
        values = preprocessing.get(key, ())
        if len(values) != channels:
            raise CheckpointError(
                f"{info.source}: its preprocessing has {len(values)} values of {key}, "
                f"but the model takes {channels} channels"
            )
    return preprocessing
