"""ReaL: ImageNet's validation images with a reassessed set of labels each (Beyer et al., arXiv 2006.07159)."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from visionmlp.data.classes import IMAGENET_CLASSES
from visionmlp.data.sources import ImageSource
from visionmlp.errors import DataError

IMAGES = 50_000
"""Of ImageNet's validation split, and entries of the file."""
_NAME = re.compile(r"ILSVRC2012_val_(\d{8})(\.\w+)?", re.ASCII)
# in the published file 9 of 10 images keep their old label; sets of other images hold it by chance
_AGREEMENT, _ENOUGH = 0.5, 20


def read_real_labels(path: Path) -> list[list[int]]:
    """The authors' ``real.json``: a list of 50,000 lists of class numbers, of which entry i - 1 is of image number i.

    An empty list means that nobody could name the image.

    Raises:
        DataError: if the file cannot be read or is none of these.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read the ReaL labels {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise DataError(f"{path} is not JSON; --real-labels takes the real.json of the ReaL authors") from error
    if not isinstance(entries, list):
        raise DataError(f"{path} holds no list; ReaL labels are a list of {IMAGES} lists of class numbers")
    if len(entries) != IMAGES:
        raise DataError(
            f"{path} has {len(entries)} entries, but ImageNet has {IMAGES} validation images; take the whole real.json"
        )
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, list) or not all(
            type(label) is int and 0 <= label < IMAGENET_CLASSES for label in entry
        ):
            raise DataError(
                f"{path}: the entry of image {number} is no list of class numbers from 0 to {IMAGENET_CLASSES - 1}"
            )
    return entries


def image_number(name: str) -> int | None:
    """1 to 50,000 from the name of a file such as ``val/n01751748/ILSVRC2012_val_00000001.JPEG``; None for another."""
    # a shard's images stand behind its name and a colon
    match = _NAME.fullmatch(re.split(r"[/\\:]", name)[-1])
    number = int(match[1]) if match else 0
    return number if 1 <= number <= IMAGES else None


def real_labels_of(source: ImageSource, path: Path, outputs: Sequence[int]) -> list[list[int]]:
    """The ReaL labels of each image of a source, found by the number in its file's name, as outputs of a model.

    Args:
        source: some or all of ImageNet's validation images.
        path: see `read_real_labels`.
        outputs: the model's output for each of ImageNet's classes.

    Raises:
        DataError: for a file that is no ReaL labels, for an image without a number, for two with the same number, and
            where file and folders contradict each other.
    """
    entries = read_real_labels(path)
    seen: dict[int, int] = {}
    answers = []
    for index in range(len(source)):
        number = image_number(source.name(index))
        if number is None:
            raise DataError(
                f"ReaL labels go by the number in a file's name, ILSVRC2012_val_00000001 to _{IMAGES:08d}, and "
                f"{source.name(index)} has none; evaluate ImageNet's validation images under their own names"
            )
        if number in seen:
            raise DataError(f"{source.name(seen[number])} and {source.name(index)} are the same image; remove one")
        seen[number] = index
        answers.append([outputs[label] for label in entries[number - 1]])
    _check_agreement(source, path, answers)
    return answers


def _check_agreement(source: ImageSource, path: Path, answers: Sequence[Sequence[int]]) -> None:
    """Refuse a file that was shifted or sorted: nothing but the images' classes tells."""
    labelled = [
        source.label(index) in answer for index, answer in enumerate(answers) if answer and source.label(index) >= 0
    ]
    if len(labelled) >= _ENOUGH and sum(labelled) < _AGREEMENT * len(labelled):
        raise DataError(
            f"{path} does not fit: of {len(labelled)} images only {100 * sum(labelled) / len(labelled):.1f} % have "
            "the class of their folder among their ReaL labels (of ImageNet about 90 %); the file is in another order, "
            "or the images lie in wrong folders"
        )
