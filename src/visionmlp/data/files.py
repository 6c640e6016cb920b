"""Image files in folders as people have them: which files count, in which order, and what is left out."""

import dataclasses
import os
import re
from collections import Counter
from pathlib import Path

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
    """What was left out, in words for one line; mostly empty."""
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
                status = os.stat(path)
                entries = list(os.scandir(path))
            except OSError as error:
                raise DataError(f"cannot read folder {path}: {error.strerror}") from error
            # some file systems have no such numbers
            identity = status.st_dev, status.st_ino
            if status.st_ino and identity in self.seen:
                self.repeated.append(below)
                continue
            self.seen.add(identity)
            for entry in entries:
                name = f"{below}/{entry.name}" if below else entry.name
                if self.is_folder(entry, name):
                    (self.links if entry.is_symlink() else waiting).append(name)

    def is_folder(self, entry: "os.DirEntry[str]", name: str) -> bool:
        """Take note of a file or folder; whether it is a folder to read."""
        folder = os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()
        image = not folder and suffix_of(name) in self.suffixes
        if is_hidden(entry.name):
            if folder or image:
                self.hidden.append(name)
            return False
        first, _, rest = name.partition("/")
        dead = entry.is_symlink() and not os.path.exists(entry.path)
        if image and (dead or entry.is_file()):
            self.images.append(name)
        elif dead:
            self.dead.append(name)
        elif rest and not folder:
            self.others.setdefault(first, Counter())[suffix_of(name) or "no suffix"] += 1
        if not rest and (folder or (dead and not image)):  # what a dead link led to was a class
            self.folders.append(name)
        return folder

    def notes(self) -> list[str]:
        """What was left out."""
        kinds = {
            "hidden names": self.hidden,
            "links to folders that are read already": self.repeated,
            "links that lead nowhere": self.dead,
        }
        notes = [f"left out {kind} ({len(names)}, such as {min(names)})" for kind, names in kinds.items() if names]
        if others := sum(self.others.values(), Counter[str]()):
            notes.append(f"left out files without an image's suffix ({others.total()}: {most_common(others)})")
        return notes


def most_common(suffixes: "Counter[str]") -> str:
    """The five suffixes that most files have, for a message."""
    return ", ".join(sorted(suffixes, key=lambda suffix: (-suffixes[suffix], suffix))[:5])
