"""Image files in folders as people have them: which files count, in which order, and what is left out."""

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Container
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from visionmlp.errors import DataError

# stubs without a decoder, vector graphics, films, and captions
_NO_PICTURES = frozenset({"BUFR", "EPS", "FLI", "GRIB", "HDF5", "IPTC", "MPEG", "PDF", "WMF"})
_NO_STILL_SUFFIXES = frozenset({".avifs"})
# a JPEG opener hands these on
_OPENED_ELSEWHERE = frozenset({"MPO"})
# in lower case; of macOS, Synology, Windows and Linux
_LITTER = frozenset(
    {"__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found"}
    | {"thumbs.db", "desktop.ini"}
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoundImages:
    """What a folder holds."""

    images: list[str]
    """Paths below the folder with ``/``, in natural order."""
    folders: list[str]
    """Sub-folders of the first level that are not hidden, in natural order, with or without images."""
    notes: list[str]
    """What was left out, or is odd, in words for one line; mostly empty."""
    others: dict[str, Counter[str]]
    """For each sub-folder of the first level: its files that are no images, by suffix."""


def image_suffixes() -> frozenset[str]:
    """Suffixes, in lower case, of the still formats that Pillow and its registered plugins read."""
    formats = Image.registered_extensions()  # loads the plugins, so before Image.OPEN
    readable = (set(Image.OPEN) | _OPENED_ELSEWHERE) - _NO_PICTURES
    suffixes = {suffix for suffix, kind in formats.items() if kind in readable}
    return frozenset(suffixes - _NO_STILL_SUFFIXES)


def suffix_of(name: str) -> str:
    """The suffix of a file in lower case, with its dot; empty if there is none."""
    return os.path.splitext(name)[1].lower()


def is_hidden(name: str) -> bool:
    """Whether a name, of a file or folder, is one that systems and editors leave behind."""
    return name.startswith(".") or name.lower() in _LITTER


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Sorts numbers by value and letters without case; ties, such as 1 and 01, by the name itself."""
    parts = re.split(r"(\d+)", name.lower())
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], name


class FolderContents(NamedTuple):
    """Names in one folder, in natural order."""

    images: list[str]
    """Files, and links that lead nowhere, with the suffix of an image."""
    folders: list[str]
    links: list[str]
    """To folders."""
    hidden: list[str]
    """Folders and images that are left out for their names."""
    dead: list[str]
    """Links that lead nowhere, without the suffix of an image."""
    others: list[str]
    """Everything else that is not hidden."""


def read_folder(path: str, suffixes: Container[str]) -> FolderContents:
    """Tell apart what lies in one folder.

    Raises:
        OSError: if it cannot be read.
    """
    contents = FolderContents([], [], [], [], [], [])
    for entry in sorted(os.scandir(path), key=lambda entry: natural_key(entry.name)):
        link = entry.is_symlink()
        folder = os.path.isdir(entry.path) if link else entry.is_dir()
        image = not folder and suffix_of(entry.name) in suffixes
        dead = link and not folder and not os.path.exists(entry.path)
        if is_hidden(entry.name):
            names = contents.hidden if folder or image else None
        elif folder:
            names = contents.links if link else contents.folders
        elif image and (dead or entry.is_file()):
            names = contents.images
        else:
            names = contents.dead if dead else contents.others
        if names is not None:
            names.append(entry.name)
    return contents


def folder_identity(path: str) -> tuple[int, int] | None:
    """The same for two ways to one folder; None on file systems that do not tell.

    Raises:
        OSError: if there is no such folder.
    """
    status = os.stat(path)
    return (status.st_dev, status.st_ino) if status.st_ino else None


def find_images(folder: Path) -> FoundImages:
    """Search a folder and all folders below it.

    Links are followed. A folder is read once, where it lies if that is below ``folder``, so circles end. A link that
    leads nowhere is an image if its name says so: it shall be a bad image, not one image less.

    Raises:
        DataError: for a folder that cannot be read.
    """
    walk = _Walk(folder)
    return FoundImages(
        images=sorted(walk.images, key=natural_key),
        folders=sorted(walk.folders, key=natural_key),
        notes=walk.notes(),
        others=walk.others,
    )


class _Walk:
    def __init__(self, root: Path) -> None:
        self.root, self.suffixes = root, image_suffixes()
        self.images: list[str] = []
        self.folders: list[str] = []
        self.hidden: list[str] = []
        self.repeated: list[str] = []
        self.suffixed: list[str] = []
        self.dead: list[str] = []
        self.others: dict[str, Counter[str]] = {}
        self.seen: set[tuple[int, int]] = set()
        self.links: list[str] = []
        self.read("")
        while self.links:
            links, self.links = sorted(self.links, key=natural_key), []
            for link in links:
                self.read(link)

    def read(self, start: str) -> None:
        """Read a folder and those below it but for links, which wait in ``links``."""
        waiting = [start]
        while waiting:
            below = waiting.pop()
            path = os.path.join(self.root, below)
            try:
                identity = folder_identity(path)
                if identity in self.seen:
                    self.repeated.append(below)
                    continue
                contents = read_folder(path, self.suffixes)
            except OSError as error:
                raise DataError(f"cannot read folder {path}: {error.strerror}") from error
            if identity is not None:
                self.seen.add(identity)
            if suffix_of(below) in self.suffixes:
                self.suffixed.append(below)
            prefix = f"{below}/" if below else ""
            for names, found in (
                (contents.images, self.images),
                (contents.hidden, self.hidden),
                (contents.dead, self.dead),
                (contents.links, self.links),
                (contents.folders, waiting),
            ):
                found += [prefix + name for name in names]
            if not below:
                self.folders = contents.folders + contents.links + contents.dead  # what a dead link led to was a class
            elif contents.others:
                counter = self.others.setdefault(below.partition("/")[0], Counter())
                counter.update(suffix_of(name) or "no suffix" for name in contents.others)

    def notes(self) -> list[str]:
        """What was left out, or read otherwise than its name says."""
        kinds = {
            "hidden names": self.hidden,
            "links to folders that are read already": self.repeated,
            "links that lead nowhere": self.dead,
        }
        notes = [f"left out {kind} ({len(names)}, such as {min(names)})" for kind, names in kinds.items() if names]
        if self.suffixed:
            notes.append(
                f"read as folders what is named like images ({len(self.suffixed)}, such as {min(self.suffixed)})"
            )
        if others := sum(self.others.values(), Counter[str]()):
            notes.append(f"left out files without an image's suffix ({others.total()}: {most_common(others)})")
        return notes


def most_common(suffixes: "Counter[str]") -> str:
    """The five suffixes that most files have, for a message."""
    return ", ".join(sorted(suffixes, key=lambda suffix: (-suffixes[suffix], suffix))[:5])
