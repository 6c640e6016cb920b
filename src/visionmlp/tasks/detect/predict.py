"""Objects in images: files, folders, or bytes on standard input."""

import dataclasses
import io
import itertools
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from visionmlp.data.decode import decode, reason
from visionmlp.data.inputs import STDIN, find_images, why_no_images
from visionmlp.errors import InvalidConfig, UnreadableImage
from visionmlp.files import OutputError
from visionmlp.measure.timing import open_device
from visionmlp.models.detector import Detector
from visionmlp.tasks.detect.annotations import Categories
from visionmlp.tasks.detect.definition import DetectPredictOptions
from visionmlp.tasks.detect.drawing import drawn, found_objects, save_picture
from visionmlp.tasks.detect.loading import categories_of, load_detector
from visionmlp.tasks.detect.metrics import Detections
from visionmlp.tasks.detect.run import mode_of
from visionmlp.tasks.detect.samples import to_tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """One object."""

    label: str
    score: float
    box: tuple[float, float, float, float]
    """x and y of the upper left and the lower right corner, in pixels."""
    mask: dict[str, Any] | None = None
    """COCO's run lengths, ``size`` [h, w] and ``counts``; None from a network that finds no masks."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objects:
    """What the model finds on one image, best first, or why it could not be read."""

    image: str
    objects: list[Found] = dataclasses.field(default_factory=list)
    error: str | None = None

    def lines(self) -> list[str]:
        """An object a line."""
        if self.error is None and not self.objects:
            return ["nothing found"]
        return [
            f"{one.score:6.1%}  {one.label}  ({', '.join(f'{value:.0f}' for value in one.box)})" for one in self.objects
        ]

    def rows(self) -> list[dict[str, Any]]:
        """An object a row; none for an image without."""
        return [
            {
                "image": self.image,
                "label": one.label,
                "score": one.score,
                **dict(zip(("left", "top", "right", "bottom"), one.box, strict=True)),
            }
            for one in self.objects
        ]

    def record(self) -> dict[str, Any]:
        """Name, objects and error."""
        return dataclasses.asdict(self)


def predictions(options: DetectPredictOptions) -> Iterator[Objects]:
    """What is found, in the order of the images; one that cannot be read, or a folder without any, has an ``error``.

    Raises:
        InvalidConfig: for a number that breaks its rule.
        OutputError: if a picture cannot be written, or exists.
        VisionMLPError: if the model or the device cannot be used.
    """
    if options.batch_size < 1:
        raise InvalidConfig(f"batch-size must be at least 1, got {options.batch_size}")
    if not 0 <= options.score <= 1:
        raise InvalidConfig(f"score must be in [0, 1], got {options.score:g}")
    if options.threads is not None:
        if options.threads < 1:
            raise InvalidConfig(f"threads must be at least 1, got {options.threads}")
        torch.set_num_threads(options.threads)
    detector, info = load_detector(options)
    detector = detector.to(open_device(options.device))
    turned = info.preprocessing.get("exif_orientation", True)
    if options.exif_orientation is not None:
        turned = options.exif_orientation == "apply"
    pictures = None if options.pictures is None else _Pictures(options.pictures, force=options.force)
    categories = categories_of(info)
    names = find_images(options.inputs)
    while chunk := list(itertools.islice(names, options.batch_size)):
        images = [_read(name, detector, exif_orientation=turned) for name in chunk]
        found = iter(_found(detector, [image for image in images if isinstance(image, Image.Image)]))
        for name, image in zip(chunk, images, strict=True):
            if isinstance(image, str):
                yield Objects(image=name, error=image)
                continue
            detections = next(found)
            if pictures is not None:
                pictures.save(name, drawn(image, found_objects(detections, categories, score=options.score)))
            yield Objects(image=name, objects=_objects(detections, categories, options.score))


def _read(name: str, detector: Detector, *, exif_orientation: bool) -> Image.Image | str:
    """The image, or why it cannot be read."""
    if Path(name).is_dir():
        return why_no_images(name)
    notes: list[str] = []
    try:
        file = io.BytesIO(sys.stdin.buffer.read()) if name == STDIN else Path(name)
        image = decode(file, mode_of(detector), warn=notes.append, exif_orientation=exif_orientation)
    except (UnreadableImage, MemoryError) as error:
        return reason(error)
    for note in notes:
        warnings.warn(f"{name}: {note}", stacklevel=2)
    return image


@torch.inference_mode()
def _found(detector: Detector, images: list[Image.Image]) -> list[Detections]:
    if not images:
        return []
    like = next(detector.parameters())
    results = detector([to_tensor(image).to(like) for image in images])
    return [Detections.of(result) for result in results]  # type: ignore[arg-type] (losses in training mode only)


def _objects(detections: Detections, categories: Categories, score: float) -> list[Found]:
    records = detections.records(None, range(1, len(categories.names) + 1))
    return [
        Found(
            label=categories.names[record["category_id"] - 1],
            score=record["score"],
            box=tuple(detections.boxes[place].tolist()),
            mask=record.get("segmentation"),
        )
        for place, record in enumerate(records)
        if record["score"] >= score
    ]


class _Pictures:
    """A folder of pictures, named as the images are; two of the same name get numbers."""

    def __init__(self, folder: Path, *, force: bool) -> None:
        self.folder, self.force = folder, force
        self.names: set[str] = set()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot write {folder}: {error.strerror}") from error

    def save(self, image: str, picture: Image.Image) -> None:
        stem = "stdin" if image == STDIN else re.sub(r"[^\w.-]", "_", Path(image).stem)
        numbered = itertools.chain([stem], (f"{stem}_{number}" for number in itertools.count(2)))
        name = next(name for name in numbered if name not in self.names)
        self.names.add(name)
        path = self.folder / f"{name}.png"
        if path.exists() and not self.force:
            raise OutputError(f"{path} exists; give another --pictures, or --force to replace it")
        save_picture(picture, path)
