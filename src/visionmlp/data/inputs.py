"""The images of a command line: files, folders and standard input, one after the other."""

import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from visionmlp.data.files import image_suffixes, is_hidden, natural_key, suffix_of

STDIN = "-"


def find_images(inputs: Iterable[str]) -> Iterator[str]:
    """Image files of files, folders (with their sub-folders) and ``-``; no more than one folder's names are in memory.

    What counts as an image, and what is left out, is as in `visionmlp.data.files.find_images`; a warning behind each
    folder says how much was left out. The names of each folder are in natural order.
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

    def images(self, folder: str) -> Iterator[str]:
        """The images of a folder and of those below it."""
        try:
            status = os.stat(folder)
            entries = sorted(os.scandir(folder), key=lambda entry: natural_key(entry.name))
        except OSError:
            yield folder
            return
        identity = status.st_dev, status.st_ino
        if status.st_ino and identity in self.seen:  # some file systems have no such numbers
            return
        self.seen.add(identity)
        for entry in entries:
            is_folder = entry.is_dir()
            if not is_folder and suffix_of(entry.name) not in self.suffixes:
                continue
            if is_hidden(entry.name):
                self.hidden += 1
                self.first_hidden = self.first_hidden or os.path.relpath(entry.path, self.root)
            elif is_folder:
                yield from self.images(entry.path)
            else:
                yield entry.path


def why_no_images(folder: str) -> str:
    """What is the matter with a folder that `find_images` gave back, in one line."""
    try:
        os.scandir(folder).close()
    except OSError as error:
        return error.strerror or str(error)
    return f"no images in this folder; image files end in {', '.join(sorted(image_suffixes()))}"
