"""Videos as images, one frame after the other, and pictures as a video. OpenCV reads and writes them."""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from visionmlp.errors import Note, require
from visionmlp.files import OutputError, beside

SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
WRITTEN = ".mp4"


class Clip(NamedTuple):
    """A video that frames are of; each time that it is read is another, told apart by ``is``."""

    path: str
    rate: float
    """Frames per second."""


class Frame(NamedTuple):
    """One image of a video."""

    name: str
    """PATH#N, from 0 on."""
    image: Image.Image
    clip: Clip


class UnreadableVideo(Exception):
    """No video, or none that OpenCV knows; its text is the reason."""


def is_video(name: str) -> bool:
    """Whether a file's name says so."""
    return Path(name).suffix.lower() in SUFFIXES


def read_frames(path: str, mode: Literal["L", "RGB"]) -> Iterator[Frame]:
    """All frames, turned upright as the file says.

    A warning says if they are fewer than in the file's header.

    Raises:
        UnreadableVideo: before the first frame.
        MissingExtra: without OpenCV.
    """
    cv2 = _opencv()
    if not Path(path).is_file():  # OpenCV would fetch an address
        raise UnreadableVideo("no such file")
    capture = cv2.VideoCapture(path)
    try:
        if not capture.isOpened():
            raise UnreadableVideo("not a video that OpenCV can read")
        rate, expected = capture.get(cv2.CAP_PROP_FPS), round(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        clip = Clip(path, rate if 0 < rate < 1000 else 25.0)
        number = 0
        while True:
            there, pixels = capture.read()
            if not there:
                break
            image = Image.fromarray(np.ascontiguousarray(pixels[..., ::-1]))
            yield Frame(f"{path}#{number}", image.convert(mode), clip)
            number += 1
        if number == 0:
            raise UnreadableVideo("a video without frames")
        if number < expected:
            warnings.warn(Note(f"{path}: {number} frames could be read, its header says {expected}"), stacklevel=2)
    finally:
        capture.release()


class ClipWriter:
    """Writes pictures of frames as a video for each clip; a context, at whose end the last one is there.

    Args:
        force: whether files may be replaced.
    """

    def __init__(self, *, force: bool) -> None:
        self.force = force
        self._stack = contextlib.ExitStack()
        self._clip: Clip | None = None
        self._add: Callable[[Image.Image], None] | None = None

    def __enter__(self) -> "ClipWriter":
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.__exit__(*exception)

    def write(self, path: Path, clip: Clip, picture: Image.Image) -> None:
        """Add a picture to the clip's video.

        Args:
            path: of the video, ending in .mp4; the same for all frames of the clip.
            clip: when it is another, even an equal one, the video before is done.
            picture: all of a clip have one size.

        Raises:
            OutputError: if the file exists or cannot be written.
        """
        if self._add is None or clip is not self._clip:
            self._stack.close()
            self._clip = clip
            self._add = self._stack.enter_context(_video_file(path, clip.rate, picture.size, force=self.force))
        self._add(picture)


@contextlib.contextmanager
def _video_file(
    path: Path, rate: float, size: tuple[int, int], *, force: bool
) -> Iterator[Callable[[Image.Image], None]]:
    cv2 = _opencv()
    with beside(path, force=force, suffix=WRITTEN) as partial:
        video = cv2.VideoWriter(str(partial), cv2.VideoWriter_fourcc(*"mp4v"), rate, size)
        if not video.isOpened():
            raise OutputError(f"cannot write {path}: OpenCV has no encoder for {size[0]}x{size[1]} pixels")
        count = 0

        def add(picture: Image.Image) -> None:
            nonlocal count
            video.write(np.ascontiguousarray(np.asarray(picture.convert("RGB"))[..., ::-1]))
            count += 1

        try:
            yield add
        finally:
            video.release()
        # OpenCV does not say when the disk is full
        check = cv2.VideoCapture(str(partial))
        written = round(check.get(cv2.CAP_PROP_FRAME_COUNT)) if check.isOpened() else 0
        check.release()
        if written < count:
            raise OutputError(f"cannot write {path}: {written} of {count} frames are in the file; is the disk full?")


def _opencv() -> Any:
    # libraries below OpenCV would print what they think of a damaged file
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    return require("cv2", extra="video")
