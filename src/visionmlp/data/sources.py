"""Where images come from: an image folder, such a folder packed into shards, or a dataset by name.

Every source is random access, as only then an epoch can be resumed in its middle, exactly, with any number of workers.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

from PIL import Image

from visionmlp.data.folders import FolderSource, open_flat_or_classes
from visionmlp.data.labelled import LabelledImages
from visionmlp.data.named import TORCH_NAMES, DigitsSource, HuggingFaceSource, TorchSource
from visionmlp.data.packed import PackedMeta, PackedSource, is_packed, packed_split
from visionmlp.data.shards import ShardSource
from visionmlp.data.splits import EVALUATION_NAMES, TRAIN_NAMES, split_names
from visionmlp.data.subset import Subset
from visionmlp.data.summary import DataSummary
from visionmlp.errors import DataError

_KNOWN = f"sklearn/digits, torch/<{'|'.join(TORCH_NAMES)}>, hfds/<name>, wds/<name>"


class ImageSource(Protocol):
    """Labelled images by index."""

    class_names: list[str]

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What to call an image in a message."""
        ...

    def label(self, index: int) -> int:
        """Class of an image, an index into ``class_names``."""
        ...

    def read(self, index: int) -> Path | BinaryIO | Image.Image:
        """What `visionmlp.data.decode.decode` takes; any exception means that it cannot be read."""
        ...

    def summary(self) -> DataSummary:
        """What the dataset holds, to notice later that it changed."""
        ...


def open_training_data(
    data: str, *, root: Path | None = None, download: bool = False, max_images: int | None = None
) -> tuple[ImageSource, ImageSource]:
    """Open the training images and the images to evaluate on, with one numbering of classes.

    Args:
        data: a folder that holds ``train/`` and one of ``val/ valid/ validation/ test/``, such a folder packed by
            `visionmlp.data.packing.pack`, or a dataset name.
        root: where a named dataset lies; a relative folder starts here.
        download: whether a named dataset may be fetched; nothing is fetched otherwise.
        max_images: of each of the two at most so many, see `visionmlp.data.subset.Subset`.

    Raises:
        DataError: for what is missing, empty, of one class only, or has classes in evaluation that training lacks.
    """
    train = _open(data, root, "train", download)
    evaluation = _open(data, root, "validation", download)
    train.check_labels(len(train.class_names))
    if len(train.class_names) < 2:
        raise DataError(f"{data} has one class only ({train.class_names[0]}); classification needs at least two")
    if isinstance(train, FolderSource):
        train.require_full_classes()
    if isinstance(evaluation, FolderSource):
        evaluation.warn_of_empty_classes()
    evaluation.use_classes(train.class_names, len(train.class_names))
    if max_images is not None:
        return Subset(train, max_images), Subset(evaluation, max_images)
    return train, evaluation


def open_evaluation_data(
    data: str,
    *,
    split: str = "validation",
    root: Path | None = None,
    class_names: Sequence[str] | None = None,
    num_classes: int | None = None,
    download: bool = False,
    flat: bool = False,
) -> ImageSource:
    """Open images to evaluate a model on.

    Args:
        data: as in `open_training_data`; a folder without split folders is taken as a whole.
        split: ``train``, ``validation`` (which takes ``test`` where that is all there is) or ``test``.
        root: as in `open_training_data`.
        class_names: of the model's outputs, if they have names; classes are numbered by them.
        num_classes: how many outputs the model has; without it or names, labels are those of the dataset, unchecked.
        download: as in `open_training_data`.
        flat: whether images may lie in the folder itself, without classes; their labels are -1 then.

    Raises:
        DataError: as in `open_training_data`, and for classes of which it is not certain which output they are.
    """
    if split not in (*TRAIN_NAMES, *EVALUATION_NAMES):
        raise DataError(f"unknown split {split!r}; give train, validation or test")
    folder = (root or Path()) / data
    is_folder = folder.is_dir() and not is_packed(folder)
    if is_folder and not split_folders(folder):
        source: LabelledImages = open_flat_or_classes(folder) if flat else FolderSource(folder)
    elif is_folder and flat:
        source = open_flat_or_classes(_split_folder(folder, split))
    else:
        source = _open(data, root, split, download)
    if isinstance(source, FolderSource):
        source.warn_of_empty_classes()
    outputs = num_classes if class_names is None else len(class_names)
    if outputs is not None:
        source.use_classes(class_names, outputs)
    return source


def _open(data: str, root: Path | None, split: str, download: bool) -> LabelledImages:
    folder = (root or Path()) / data
    if is_packed(folder):
        return PackedSource(folder, packed_split(folder, split))
    if folder.is_dir():
        return FolderSource(_split_folder(folder, split))
    prefix = data.lower().partition("/")[0]
    if data.lower() == "sklearn/digits":
        return DigitsSource(split)
    if prefix == "torch" and "/" in data:
        return TorchSource(data, root, split, download)
    if prefix == "hfds":
        return HuggingFaceSource(data, root, split, download)
    if prefix == "wds":
        return ShardSource(data, root, split)
    if prefix in ("tfds", "hfids"):
        raise DataError(f"{data} is a stream, which cannot be resumed exactly; use hfds/, wds/ or an image folder")
    raise DataError(f"{folder} is no folder and {data!r} no dataset name; there are {_KNOWN}")


def open_splits(data: str, *, root: Path | None = None) -> dict[str, LabelledImages]:
    """Every part of a dataset by name, each with its own numbering of classes: training, evaluation, and ``test``.

    A folder without split folders is one part, ``images``. Of a dataset by name, training and evaluation are opened.

    Raises:
        DataError: for what is missing or empty.
    """
    folder = (root or Path()) / data
    if not folder.is_dir():
        return {split: _open(data, root, split, download=False) for split in ("train", "validation")}
    if is_packed(folder):
        return {name: PackedSource(folder, name) for name in PackedMeta.read(folder).splits}
    names = split_folders(folder)
    if not names:
        return {"images": FolderSource(folder)}
    return {name: FolderSource(folder / name) for name in names}


def split_folders(folder: Path) -> list[str]:
    """Names of the folders in it that are splits."""
    return [name for name in (*TRAIN_NAMES, *EVALUATION_NAMES) if (folder / name).is_dir()]


def _split_folder(folder: Path, split: str) -> Path:
    names = split_names(split)
    for name in names:
        if (folder / name).is_dir():
            return folder / name
    raise DataError(f"{folder} has no sub-folder {' or '.join(names)}; images lie in {folder}/{names[0]}/CLASS/")
