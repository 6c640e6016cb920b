"""The images of a command line: files, folders, videos and standard input, one after the other."""

import io
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from PIL import Image
from torch import Tensor

from visionmlp.data.decode import decode, reason
from visionmlp.data.files import folder_identity, image_suffixes, natural_key, read_folder
from visionmlp.data.transforms import Transform
from visionmlp.data.videos import Clip, UnreadableVideo, is_video, read_frames
from visionmlp.errors import UnreadableImage
from visionmlp.files import OutputError

STDIN = "-"


def find_images(inputs: Iterable[str]) -> Iterator[str]:
    """Image files of files, folders (with their sub-folders) and ``-``; no more than one folder's names are in memory.

    What counts as an image, and what is left out, is as in `visionmlp.data.files.find_images`; a warning behind each
    folder says how much was left out. The names of each folder, files and sub-folders, are in natural order.
    A missing file and a folder that has no images or cannot be searched come back as they are: it is for the reader to
    say so.
    """
    for name in inputs:
        if not Path(name).is_dir():
            yield name
            continue
        walk = _Walk(name)
        empty = True
        for path in walk.images(name):
            empty = False
            yield path
        if empty:
            yield name
        if walk.hidden:
            warnings.warn(f"{name}: left out hidden names ({walk.hidden}, such as {walk.first_hidden})", stacklevel=2)


class _Walk:
    """One search through a folder; it remembers which folders it has read, since links may lead back."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.suffixes = image_suffixes()
        self.seen: set[tuple[int, int]] = set()
        self.hidden, self.first_hidden = 0, ""

    def images(self, start: str) -> Iterator[str]:
        """The images of a folder and of those below it."""
        waiting = [(start, True)]
        while waiting:
            path, is_folder = waiting.pop()
            if not is_folder:
                yield path
                continue
            try:
                identity = folder_identity(path)
                if identity in self.seen:
                    continue
                contents = read_folder(path, self.suffixes)
            except OSError:
                yield path
                continue
            if identity is not None:
                self.seen.add(identity)
            self.hidden += len(contents.hidden)
            if contents.hidden and not self.first_hidden:
                self.first_hidden = os.path.relpath(os.path.join(path, contents.hidden[0]), self.root)
            folders = {*contents.folders, *contents.links}
            below = sorted([*contents.images, *folders], key=natural_key, reverse=True)
            waiting += [(os.path.join(path, name), name in folders) for name in below]


def why_no_images(folder: str) -> str:
    """What is the matter with a folder that `find_images` gave back, in one line."""
    try:
        os.scandir(folder).close()
    except OSError as error:
        return error.strerror or str(error)
    return f"no images in this folder; image files end in {', '.join(sorted(image_suffixes()))}"


class Opened(NamedTuple):
    """One image of a command line."""

    name: str
    """As it was found; of a frame of a video with its number."""
    image: Image.Image | str
    """Decoded, or why it cannot be read."""
    clip: Clip | None = None
    """The video that it is a frame of."""


def open_images(names: Iterable[str], mode: Literal["L", "RGB"], *, exif_orientation: bool) -> Iterator[Opened]:
    """The images of `find_images`, and all frames of its videos.

    Raises:
        MissingExtra: at a video, without OpenCV.
    """
    for name in names:
        if not is_video(name):
            yield Opened(name, open_image(name, mode, exif_orientation=exif_orientation))
            continue
        try:
            for frame in read_frames(name, mode):
                yield Opened(*frame)
        except UnreadableVideo as error:
            yield Opened(name, str(error))


def prepared(image: Image.Image | str, transform: Transform) -> Tensor | str:
    """An opened image as (C, H, W), or why there is none."""
    if isinstance(image, str):
        return image
    try:
        return transform(image)
    except (UnreadableImage, MemoryError) as error:
        return reason(error)


def require_apart(inputs: Iterable[str], output: Path, *, force: bool) -> None:
    """Refuse a folder for pictures where they would be taken for images, or with ``force`` take the place of some.

    Raises:
        OutputError: naming the input.
    """
    target = output.resolve()
    for name in inputs:
        source = Path(name)
        if source.is_dir() and target.is_relative_to(source.resolve()):
            raise OutputError(f"{output} lies in {name}, so pictures would be taken for images; give another --output")
        if force and name != STDIN and source.parent.resolve() == target:
            raise OutputError(f"{name} lies in {output}, where --force would replace it; give another --output")


class OutputNames:
    """Names for what is written of each image: that of its file, with a number where that is taken.

    Args:
        endings: of the files of an image, behind its name; no name with an ending is given to another image.
    """

    def __init__(self, endings: Sequence[str] = ("",)) -> None:
        self.endings = endings
        self._given: set[str] = set()
        self._clip: Clip | None = None
        self._clip_name = ""

    def of(self, opened: Opened) -> str:
        """The same for all frames of a video, which come one behind the other."""
        if opened.clip is None:
            return self._new("stdin" if opened.name == STDIN else Path(opened.name).stem)
        if opened.clip is not self._clip:
            self._clip, self._clip_name = opened.clip, self._new(Path(opened.clip.path).stem)
        return self._clip_name

    def _new(self, own: str) -> str:
        name, number = own, 2
        while any(name + ending in self._given for ending in self.endings):
            name, number = f"{own}-{number}", number + 1
        self._given.update(name + ending for ending in self.endings)
        return name


def open_image(name: str, mode: Literal["L", "RGB"], *, exif_orientation: bool) -> Image.Image | str:
    """The decoded image, or why it cannot be read."""
    if Path(name).is_dir():
        return why_no_images(name)
    notes: list[str] = []
    try:
        file = io.BytesIO(sys.stdin.buffer.read()) if name == STDIN else Path(name)
        image = decode(file, mode, warn=notes.append, exif_orientation=exif_orientation)
    except (UnreadableImage, MemoryError) as error:
        return reason(error)
    for note in notes:
        warnings.warn(f"{name}: {note}", stacklevel=2)
    return image
