"""Classes of images: files, folders, frames of videos, or bytes on standard input."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from timm.data import ImageNetInfo
from torch import Tensor

from visionmlp.data.inputs import find_images, open_images, prepared
from visionmlp.data.transforms import Preprocessing
from visionmlp.deploy.session import SessionModel, preprocessing_of
from visionmlp.errors import InvalidConfig
from visionmlp.measure.timing import open_device
from visionmlp.models.backbone import Backbone
from visionmlp.models.checkpoint import CheckpointInfo


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassScore:
    """One class of a prediction."""

    index: int
    name: str
    probability: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the model says about one image, or why it could not be read."""

    image: str
    classes: list[ClassScore] = dataclasses.field(default_factory=list)
    error: str | None = None

    def lines(self) -> list[str]:
        """A class a line, most probable first."""
        return [f"{score.probability:6.1%}  {score.name}" for score in self.classes]

    def rows(self) -> list[dict[str, Any]]:
        """A class a row, most probable first."""
        return [
            {
                "image": self.image,
                "rank": rank,
                "index": score.index,
                "class": score.name,
                "probability": score.probability,
            }
            for rank, score in enumerate(self.classes, start=1)
        ]

    def record(self) -> dict[str, Any]:
        """Name, classes and error."""
        return dataclasses.asdict(self)


def class_names_of(model: Backbone | SessionModel, info: CheckpointInfo) -> list[str]:
    """Names from the checkpoint; ImageNet's for an authors' file with its 1000 classes; else "class N"."""
    if info.class_names:
        return info.class_names
    if model.num_classes == 1000 and info.source.endswith((".pth", ".pt", ".bin", ".npz")):
        imagenet = ImageNetInfo()
        return [imagenet.index_to_description(index) for index in range(1000)]
    return [f"class {index}" for index in range(model.num_classes)]


def predict(
    model: Backbone | SessionModel,
    info: CheckpointInfo,
    inputs: Iterable[str],
    *,
    top_k: int = 5,
    batch_size: int = 16,
    device: str = "cpu",
) -> Iterator[Prediction]:
    """Predictions in the order of the images; one that cannot be read, or a folder without any, has an ``error``.

    Args:
        model: in evaluation mode, or an exported file at work.
        info: class names and preprocessing.
        inputs: image files, folders, videos, or ``-`` for standard input.
        top_k: classes per image, most probable first.
        batch_size: images per step.
        device: where to run.

    Raises:
        CheckpointError: for preprocessing that does not fit the model.
        InvalidConfig: for a model without classifier, or an option that cannot work.
    """
    if model.num_classes == 0:
        raise InvalidConfig(f"{info.model} was built without a classifier")
    for name, value in (("top-k", top_k), ("batch-size", batch_size)):
        if value < 1:
            raise InvalidConfig(f"{name} must be at least 1, got {value}")
    place = open_device(device)
    model = model.to(place)
    names = class_names_of(model, info)
    preprocessing = Preprocessing.from_saved(preprocessing_of(model, info))
    transform = preprocessing.transform()
    images = open_images(find_images(inputs), preprocessing.mode, exif_orientation=preprocessing.exif_orientation)
    read = ((opened.name, prepared(opened.image, transform)) for opened in images)
    while chunk := list(itertools.islice(read, batch_size)):
        readable = [tensor for _, tensor in chunk if isinstance(tensor, Tensor)]
        scores = iter(_scores(model, readable, names, top_k, place))
        for name, tensor in chunk:
            if isinstance(tensor, str):
                yield Prediction(image=name, error=tensor)
            else:
                yield Prediction(image=name, classes=next(scores))


@torch.inference_mode()
def _scores(
    model: Backbone | SessionModel, images: list[Tensor], names: list[str], top_k: int, device: torch.device
) -> list[list[ClassScore]]:
    if not images:
        return []
    dtype = next(model.parameters()).dtype
    probabilities = model(torch.stack(images).to(device, dtype)).float().softmax(dim=1).cpu()
    values, indices = probabilities.topk(min(top_k, model.num_classes))
    return [
        [
            ClassScore(index=index, name=names[index], probability=value)
            for index, value in zip(row_i, row_v, strict=True)
        ]
        for row_i, row_v in zip(indices.tolist(), values.tolist(), strict=True)
    ]
