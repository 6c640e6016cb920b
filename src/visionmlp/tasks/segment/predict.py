"""Classes of each pixel of images: files, folders, videos, or bytes on standard input; as shares, and as pictures."""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from visionmlp.data.decode import reason
from visionmlp.data.inputs import Opened, OutputNames, find_images, open_images, require_apart
from visionmlp.data.videos import WRITTEN, ClipWriter
from visionmlp.errors import UnreadableImage
from visionmlp.files import OutputError, writing
from visionmlp.tasks.segment.definition import SegmentPredictOptions
from visionmlp.tasks.segment.figures import write_png
from visionmlp.tasks.segment.inference import segmenter_logits
from visionmlp.tasks.segment.overlay import indexed, overlay
from visionmlp.tasks.segment.served import Served, load_served
from visionmlp.tasks.segment.transforms import EvaluationTransform


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassShare:
    """One class of an image."""

    index: int
    name: str
    pixels: int
    share: float
    """Of the image's pixels."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the network says about one image, or why it could not be read."""

    image: str
    height: int = 0
    width: int = 0
    classes: list[ClassShare] = dataclasses.field(default_factory=list)
    """Those that it has, largest first."""
    mask: str | None = None
    """File of class numbers."""
    overlay: str | None = None
    """File of the image below them."""
    error: str | None = None

    def lines(self) -> list[str]:
        """A class a line, largest first."""
        return [f"{part.share:6.1%}  {part.name}" for part in self.classes]

    def rows(self) -> list[dict[str, Any]]:
        """None: pictures are what is written."""
        return []

    def record(self) -> dict[str, Any]:
        """Name, size, classes, files and error."""
        return dataclasses.asdict(self)


def predictions(options: SegmentPredictOptions) -> Iterator[Prediction]:
    """Answers in the order of the images; one that cannot be read, or a folder without any, has an ``error``.

    Raises:
        OutputError: for pictures that exist, or a folder that cannot be made.
        VisionMLPError: if the network or the device cannot be used.
    """
    if options.output is not None:
        require_apart(options.inputs, options.output, force=options.force)
    served = load_served(options)
    pictures = None if options.output is None else _Pictures(options.output, served, force=options.force)
    return _predictions(options, served, pictures)


def _predictions(options: SegmentPredictOptions, served: Served, pictures: "_Pictures | None") -> Iterator[Prediction]:
    transform = served.preparation.transform(options.scales)
    with contextlib.nullcontext() if pictures is None else pictures.clips:
        yield from _answers(options.inputs, served, transform, pictures)


def _answers(
    inputs: Iterable[str], served: Served, transform: EvaluationTransform, pictures: "_Pictures | None"
) -> Iterator[Prediction]:
    images = open_images(find_images(inputs), "RGB", exif_orientation=served.preparation.exif_orientation)
    for opened in images:
        name, image = opened.name, opened.image
        if isinstance(image, str):
            yield Prediction(image=name, error=image)
            continue
        try:
            labels = segment(served, transform, image)
        except (UnreadableImage, MemoryError) as error:
            yield Prediction(image=name, error=reason(error))
            continue
        counts = np.bincount(labels.ravel(), minlength=len(served.names))
        classes = [
            ClassShare(
                index=index,
                name=served.names[index],
                pixels=int(counts[index]),
                share=float(counts[index] / labels.size),
            )
            for index in np.argsort(-counts, kind="stable").tolist()
            if counts[index]
        ]
        files = {} if pictures is None else pictures.write(opened, image, labels)
        yield Prediction(image=name, height=image.height, width=image.width, classes=classes, **files)


@torch.inference_mode()
def segment(served: Served, transform: EvaluationTransform, image: Image.Image) -> np.ndarray:
    """Class numbers (H, W), uint8, at the size of the image."""
    like = next(served.network.parameters())
    views = [view.to(like) for view in transform.views(image)]
    labels = np.empty((image.height, image.width), np.uint8)
    for chunk in served.preparation.inference(segmenter_logits(served.network), views, labels.shape):
        if chunk.log_probabilities.isnan().any():  # which argmax takes for the largest number
            raise UnreadableImage("the network gives NaN for it, which is no class")
        labels[chunk.rows] = chunk.predicted.cpu().numpy()
    return labels


class _Pictures:
    """Writes two PNGs for an image, and a video of overlays for a video."""

    def __init__(self, folder: Path, served: Served, *, force: bool) -> None:
        self.folder, self.palette, self.force = folder, served.preparation.palette, force
        self.names = OutputNames(("", "_overlay"))
        self.clips = ClipWriter(force=force)
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"{folder} is a file; --output takes a folder for pictures")
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)

    def write(self, opened: Opened, image: Image.Image, labels: np.ndarray) -> dict[str, str]:
        """Names of the files."""
        stem = self.names.of(opened)
        if opened.clip is not None:
            video = self.folder / f"{stem}_overlay{WRITTEN}"
            self.clips.write(video, opened.clip, overlay(image, labels, self.palette))
            return {"overlay": str(video)}
        paths = {"mask": self.folder / f"{stem}.png", "overlay": self.folder / f"{stem}_overlay.png"}
        for path in paths.values():
            if path.exists() and not self.force:
                raise OutputError(f"{path} exists; give another --output, or --force to replace it")
        write_png(paths["mask"], indexed(labels, self.palette))
        write_png(paths["overlay"], overlay(image, labels, self.palette))
        return {kind: str(path) for kind, path in paths.items()}
