"""Batches of images with their classes."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from PIL.Image import Image
from torch import Tensor

from visionmlp.data.loading import EpochOrder, EvaluationLoader, Reading, Sample, TrainingLoader, read_image
from visionmlp.data.policy import BadImage, BadImageLog
from visionmlp.data.sources import ImageSource
from visionmlp.data.transforms import Transform
from visionmlp.data.views import Views

__all__ = ["BadImage", "Batch", "EpochOrder", "EvaluationBatches", "TrainingBatches", "ViewBatch"]


class Batch(NamedTuple):
    """Images (B, C, H, W) and class numbers (B,).

    ``keys`` (B, 3), int64, say what each sample depends on beside seed and transform: the epoch, the position there,
    and the index in the source of the image that was read. In evaluation the epoch is 0, and the position the index.
    """

    images: Tensor
    labels: Tensor
    keys: Tensor | None = None


class ViewBatch(NamedTuple):
    """The same for several views of each image, each (B, C, H, W) and of its own size."""

    views: tuple[Tensor, ...]
    labels: Tensor


class _Labelled(NamedTuple):
    """An image, decoded or behind its transform, with its class."""

    image: Any
    label: int


class _LabelledImages:
    """Decoded images of a source with their classes."""

    def __init__(self, source: ImageSource, mode: Literal["L", "RGB"], exif_orientation: bool) -> None:
        self.source, self.exif_orientation = source, exif_orientation
        self.mode: Literal["L", "RGB"] = mode

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> Reading:
        source = self.source
        reading = read_image(
            lambda: source.read(index), source.name(index), self.mode, exif_orientation=self.exif_orientation
        )
        if isinstance(reading.item, BadImage):
            return reading
        return Reading(_Labelled(reading.item, source.label(index)), reading.notes)


class _OfImage:
    """The transform of an image, of one with a class."""

    def __init__(self, transform: Transform | Views) -> None:
        self.transform = transform

    def __call__(self, item: _Labelled) -> _Labelled:
        image: Image = item.image
        return item._replace(image=self.transform(image))


def _collate(samples: Sequence[Sample]) -> Batch | ViewBatch:
    labels = torch.tensor([sample.item.label for sample in samples])
    images = [sample.item.image for sample in samples]
    if isinstance(images[0], tuple):
        return ViewBatch(tuple(torch.stack(view) for view in zip(*images, strict=True)), labels)
    return Batch(torch.stack(images), labels, torch.tensor([sample.key for sample in samples]))


class TrainingBatches(TrainingLoader):
    """Augmented `Batch` after `Batch` of one rank, epoch by epoch; `ViewBatch` where the transform gives several views.

    Args:
        source: images.
        transform: from `Augmentation.transform` or `visionmlp.data.views.Views`.
        order: which images, when.
        mode: Pillow's mode that images are decoded to.
        exif_orientation: whether images are turned as their EXIF says.
        bad_images: the policy.
        num_workers: processes that load; 0 loads in this one.
        pin_memory: for copies to a GPU.
    """

    def __init__(
        self,
        source: ImageSource,
        transform: Transform | Views,
        order: EpochOrder,
        *,
        mode: Literal["L", "RGB"],
        exif_orientation: bool = True,
        bad_images: BadImageLog,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        super().__init__(
            _LabelledImages(source, mode, exif_orientation),
            _OfImage(transform),
            order,
            collate=_collate,
            bad_images=bad_images,
            num_workers=num_workers,
            pin_memory=pin_memory,
        )


class EvaluationBatches(EvaluationLoader):
    """All images of a source in order, each once; rank r takes every image = r mod ranks.

    Arguments are those of `TrainingBatches`.
    """

    def __init__(
        self,
        source: ImageSource,
        transform: Transform,
        *,
        batch_size: int,
        mode: Literal["L", "RGB"],
        exif_orientation: bool = True,
        bad_images: BadImageLog,
        rank: int = 0,
        ranks: int = 1,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        super().__init__(
            _LabelledImages(source, mode, exif_orientation),
            _OfImage(transform),
            batch_size=batch_size,
            collate=_collate,
            bad_images=bad_images,
            rank=rank,
            ranks=ranks,
            num_workers=num_workers,
            pin_memory=pin_memory,
        )
