"""What happens when an image cannot be read."""

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

from visionmlp.errors import DataError

OnBadImage = Literal["stop", "skip"]

# file names are bytes, and need not be UTF-8
_ERRORS = "surrogateescape"
_MOST_NOTES = 20


class BadImage(NamedTuple):
    """An image that cannot be decoded. Workers return it; only the main process raises."""

    name: str
    reason: str


class ImageNote(NamedTuple):
    """What is odd about an image that is used all the same."""

    name: str
    text: str


class BadImageLog:
    """Applies the policy, and names each bad image once: as a warning and in a file. Passes notes on as warnings.

    Args:
        policy: ``"stop"`` raises at the first bad image, ``"skip"`` goes on.
        path: ``bad_images.txt`` of a run; images that it lists already are not named again.
    """

    def __init__(self, policy: OnBadImage, path: Path | None = None) -> None:
        self.policy = policy
        self.path = path
        self.names: set[str] = set()
        self.notes: set[ImageNote] = set()

    def report(self, images: Iterable[BadImage]) -> None:
        """Take note of bad images.

        Raises:
            DataError: naming the first of them, if the policy is to stop.
        """
        for image in images:
            if self.policy == "stop":
                raise DataError(
                    f"cannot read image {image.name} ({image.reason}); repair or remove it, or set on_bad_image to skip"
                )
            if image.name in self.names:
                continue
            self.names.add(image.name)
            if self.path is not None:
                # read again each time, as other ranks and earlier sessions write here too
                if _escaped(image.name) in names_of_bad_images(self.path):
                    continue
                with self.path.open("a", encoding="utf-8", errors=_ERRORS, newline="") as file:
                    file.write(f"{_escaped(image.name)}\t{image.reason}\n")
            warnings.warn(f"skipped image {image.name}: {image.reason}", stacklevel=2)

    def note(self, notes: Iterable[ImageNote]) -> None:
        """Warn of each note once, up to a number that can be read."""
        for note in notes:
            if note in self.notes or len(self.notes) > _MOST_NOTES:
                continue
            self.notes.add(note)
            if len(self.notes) > _MOST_NOTES:
                warnings.warn(f"{note.name} and others too: {note.text}; further notes are left out", stacklevel=2)
            else:
                warnings.warn(f"{note.name}: {note.text}", stacklevel=2)


def names_of_bad_images(path: Path) -> list[str]:
    """The images that a run's ``bad_images.txt`` lists, tabs and line ends in them escaped; none without the file."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", errors=_ERRORS, newline="\n") as lines:
        return [line.partition("\t")[0] for line in lines]


def _escaped(name: str) -> str:
    """On one line, as a name may hold whatever separates lines and columns."""
    return name.replace("\t", "\\t").replace("\n", "\\n")
