"""Objects in images: files, folders, videos, or bytes on standard input."""

import contextlib
import csv
import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from visionmlp.data.inputs import Opened, OutputNames, find_images, open_images, require_apart
from visionmlp.data.videos import WRITTEN, ClipWriter
from visionmlp.errors import InvalidConfig
from visionmlp.files import OutputError, beside, writing
from visionmlp.models.detector import Detector
from visionmlp.tasks.detect.annotations import Categories
from visionmlp.tasks.detect.definition import DetectPredictOptions
from visionmlp.tasks.detect.drawing import drawn, found_objects, save_picture
from visionmlp.tasks.detect.inference import found_on
from visionmlp.tasks.detect.loading import categories_of, exif_orientation_of, load_detector
from visionmlp.tasks.detect.metrics import Detections
from visionmlp.tasks.detect.samples import mode_of, to_tensor

_SIDES = ("left", "top", "right", "bottom")


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
    picture: str | None = None
    """File with the objects drawn in; the same for all frames of a video."""
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
                **dict(zip(_SIDES, one.box, strict=True)),
            }
            for one in self.objects
        ]

    def record(self) -> dict[str, Any]:
        """Name, objects, picture and error."""
        return dataclasses.asdict(self)


def predictions(options: DetectPredictOptions) -> Iterator[Objects]:
    """What is found, in the order of the images; one that cannot be read, or a folder without any, has an ``error``.

    Raises:
        InvalidConfig: for a number that breaks its rule.
        OutputError: for files that exist, or a folder that cannot be made.
        VisionMLPError: if the model or the device cannot be used.
    """
    if not 0 <= options.score <= 1:
        raise InvalidConfig(f"score must be in [0, 1], got {options.score:g}")
    if options.output is not None:
        require_apart(options.inputs, options.output, force=options.force)
    detector, info = load_detector(options)
    turned, categories = exif_orientation_of(info, options), categories_of(info)
    images = open_images(find_images(options.inputs), mode_of(detector.backbone.in_chans), exif_orientation=turned)
    with contextlib.ExitStack() as stack:
        files = None
        if options.output is not None:
            files = stack.enter_context(_files(options.output, categories, force=options.force))
        usable = (_usable(opened, detector) for opened in images)
        while chunk := list(itertools.islice(usable, options.batch_size)):
            found = iter(_found(detector, [one.image for one in chunk if isinstance(one.image, Image.Image)]))
            for opened in chunk:
                if isinstance(opened.image, str):
                    yield Objects(image=opened.name, error=opened.image)
                    continue
                detections = next(found).above(options.score)
                answer = Objects(image=opened.name, objects=_objects(detections, categories))
                yield answer if files is None else files.write(answer, opened, detections)


def _usable(opened: Opened, detector: Detector) -> Opened:
    """The image, or why the detector cannot look at it."""
    if isinstance(opened.image, str):
        return opened
    reason = detector.refusal((opened.image.height, opened.image.width))
    return opened if reason is None else opened._replace(image=reason)


@torch.inference_mode()
def _found(detector: Detector, images: list[Image.Image]) -> list[Detections]:
    if not images:
        return []
    like = next(detector.parameters())
    return [Detections.of(result) for result in found_on(detector, [to_tensor(image).to(like) for image in images])]


def _objects(detections: Detections, categories: Categories) -> list[Found]:
    records = detections.records(None, range(1, len(categories.names) + 1))
    return [
        Found(
            label=categories.names[record["category_id"] - 1],
            score=record["score"],
            box=tuple(box),
            mask=record.get("segmentation"),
        )
        for record, box in zip(records, detections.boxes.tolist(), strict=True)
    ]


@contextlib.contextmanager
def _files(folder: Path, categories: Categories, *, force: bool) -> Iterator["_Files"]:
    """Pictures, which are there one by one, and a table, which is there when all are."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; --output takes a folder")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    # names of files need not be UTF-8, and come out as they are on the disk
    with (
        beside(folder / "objects.csv", force=force) as partial,
        partial.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        table = csv.DictWriter(file, ["image", "label", "score", *_SIDES], lineterminator="\n")
        table.writeheader()
        with ClipWriter(force=force) as clips:
            yield _Files(folder, categories, table, clips)


class _Files:
    def __init__(self, folder: Path, categories: Categories, table: "csv.DictWriter[str]", clips: ClipWriter) -> None:
        self.folder, self.categories, self.table, self.clips = folder, categories, table, clips
        self.names = OutputNames()

    def write(self, answer: Objects, opened: Opened, detections: Detections) -> Objects:
        """The answer with its picture, or the video that it is in."""
        assert isinstance(opened.image, Image.Image)
        picture, stem = drawn(opened.image, found_objects(detections, self.categories)), self.names.of(opened)
        if opened.clip is not None:
            path = self.folder / f"{stem}{WRITTEN}"
            self.clips.write(path, opened.clip, picture)
        else:
            path = self.folder / f"{stem}.png"
            if path.exists() and not self.clips.force:
                raise OutputError(f"{path} exists; give another --output, or --force to replace it")
            save_picture(picture, path)
        self.table.writerows(answer.rows())
        return dataclasses.replace(answer, picture=str(path))
