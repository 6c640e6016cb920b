"""The images of a command line: files, folders and standard input, one after the other."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from timm.data.readers.img_extensions import get_img_extensions

STDIN = "-"


def find_images(inputs: Iterable[str]) -> Iterator[str]:
    """Image files of files, folders (with their sub-folders) and ``-``; no more than one folder's names are in memory.

    The names of each folder are sorted. A missing file and a folder that has no images or cannot be searched come back
    as they are: it is for the reader to say so.
    """
    for name in inputs:
        if not Path(name).is_dir():
            yield name
            continue
        empty = True
        for path in _walk(name):
            empty = False
            yield path
        if empty:
            yield name


def _walk(folder: str) -> Iterator[str]:
    suffixes = get_img_extensions(as_set=True)
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError:
        yield folder
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path)
        elif os.path.splitext(entry.name)[1].lower() in suffixes and entry.is_file():
            yield entry.path


def why_no_images(folder: str) -> str:
    """What is the matter with a folder that `find_images` gave back, in one line."""
    try:
        os.scandir(folder).close()
    except OSError as error:
        return error.strerror or str(error)
    return f"no images in this folder; image files end in {', '.join(sorted(get_img_extensions(as_set=True)))}"
