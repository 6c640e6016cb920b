"""The images of a command line: files, folders and standard input, one after the other."""

import io
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from PIL import Image
from torch import Tensor

from visionmlp.data.decode import decode, reason
from visionmlp.data.files import folder_identity, image_suffixes, natural_key, read_folder
from visionmlp.data.transforms import Preprocessing, Transform
from visionmlp.errors import UnreadableImage

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


def read_image(name: str, preprocessing: Preprocessing, transform: Transform) -> Tensor | str:
    """The image as (C, H, W), or why it cannot be read."""
    image = open_image(name, preprocessing.mode, exif_orientation=preprocessing.exif_orientation)
    if isinstance(image, str):
        return image
    try:
        return transform(image)
    except (UnreadableImage, MemoryError) as error:
        return reason(error)


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
