"""Where images come from: an image folder, scikit-learn's digits, or a dataset name of ``timm.data.create_dataset``.

Every source is random access, as only then an epoch can be resumed in its middle, exactly, with any number of workers.
"""

import contextlib
import io
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np
from PIL import Image
from timm.data import create_dataset
from torchvision.datasets import ImageNet, Places365

from visionmlp.errors import DataError, require

TRAIN_NAMES = ("train", "training")
EVALUATION_NAMES = ("val", "valid", "validation", "test")
TORCH_NAMES = ("cifar10", "cifar100", "fashion_mnist", "imagenet", "kmnist", "mnist", "places365", "qmnist")
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


class FolderSource:
    """One folder a class. Class names are the folders', in natural order."""

    def __init__(self, folder: Path) -> None:
        try:
            dataset: Any = create_dataset("", root=str(folder), search_split=False)
        except RuntimeError as error:
            raise DataError(f"no images in {folder}; it must hold one sub-folder of images for each class") from error
        reader = dataset.reader
        self.folder = folder
        self.class_names: list[str] = list(reader.class_to_idx)
        self.samples: list[tuple[str, int]] = reader.samples
        folders: dict[str, Path] = {}
        for path in dict.fromkeys(Path(path).parent for path, _ in self.samples):
            if path == folder:
                raise DataError(f"images lie directly in {folder}; move them into one sub-folder for each class")
            # timm names classes by the last folder alone and would merge these
            if (other := folders.setdefault(path.name, path)) != path:
                raise DataError(f"{other} and {path} have the same name but are not one class; rename one of them")

    def __len__(self) -> int:
        return len(self.samples)

    def name(self, index: int) -> str:
        """Path of the file."""
        return self.samples[index][0]

    def label(self, index: int) -> int:
        """Class of the folder."""
        return self.samples[index][1]

    def read(self, index: int) -> Path:
        """The file."""
        return Path(self.samples[index][0])

    def use_classes(self, class_names: Sequence[str]) -> None:
        """Number the classes as elsewhere.

        Raises:
            DataError: naming a class folder that the other numbering lacks.
        """
        strangers = sorted(set(self.class_names) - set(class_names))
        if strangers:
            raise DataError(
                f"{self.folder} has class folder {strangers[0]!r}, which is none of the {len(class_names)} classes "
                f"of the training data ({', '.join(class_names[:3])}, ...); rename or remove it"
            )
        numbers = {name: number for number, name in enumerate(class_names)}
        self.samples = [(path, numbers[self.class_names[label]]) for path, label in self.samples]
        self.class_names = list(class_names)


class DigitsSource:
    """The 1797 handwritten digits of scikit-learn, 8x8 grey: 1437 to train, 360 held out, stratified.

    The split is fixed: ``train_test_split(test_size=0.2, stratify=labels, random_state=0)``.
    """

    def __init__(self, split: str) -> None:
        datasets = require("sklearn.datasets", extra="digits")
        selection = require("sklearn.model_selection", extra="digits")
        digits = datasets.load_digits()
        parts = selection.train_test_split(
            np.arange(len(digits.target)), test_size=0.2, stratify=digits.target, random_state=0
        )
        self.rows: np.ndarray = np.sort(parts[0 if split in TRAIN_NAMES else 1])
        self.pixels = (digits.images[self.rows] * (255 / 16)).round().astype(np.uint8)
        self.labels = digits.target[self.rows]
        self.class_names = [str(digit) for digit in range(10)]

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        """Row of scikit-learn's table."""
        return f"sklearn/digits[{self.rows[index]}]"

    def label(self, index: int) -> int:
        """The digit."""
        return int(self.labels[index])

    def read(self, index: int) -> Image.Image:
        """8x8 grey image."""
        return Image.fromarray(self.pixels[index])


class TorchSource:
    """A dataset of torchvision, by timm's name for it."""

    def __init__(self, data: str, root: Path | None, split: str, download: bool) -> None:
        if data.split("/")[1].lower() not in TORCH_NAMES:
            raise DataError(f"unknown dataset {data!r}; torch/ has {', '.join(TORCH_NAMES)}")
        if root is None:
            raise DataError(f"{data} needs data_root, the folder that it lies in")
        try:
            self.dataset: Any = create_dataset(data, root=str(root), split=split, download=download)
        except (RuntimeError, OSError) as error:
            raise DataError(f"{data} is not in {root}, or incomplete; set download to fetch it") from error
        if isinstance(self.dataset, ImageNet | Places365):
            self.dataset.loader = Path  # theirs drops what a file says of orientation, depth and transparency
        self.data = data
        # ImageNet's classes are tuples of synonyms
        self.class_names = [name if isinstance(name, str) else name[0] for name in self.dataset.classes]

    def __len__(self) -> int:
        return len(self.dataset)

    def name(self, index: int) -> str:
        """Dataset name and index."""
        return f"{self.data}[{index}]"

    def label(self, index: int) -> int:
        """Class number."""
        return int(self.dataset.targets[index])

    def read(self, index: int) -> Path | Image.Image:
        """The file, or the image of a dataset that has none."""
        return self.dataset[index][0]


class HuggingFaceSource:
    """A dataset of Hugging Face ``datasets``, by timm's reader. Without ``download``, only what is on this machine."""

    def __init__(self, data: str, root: Path | None, split: str, download: bool) -> None:
        require("datasets", extra="hfds")
        dataset: Any = None
        for name in _split_names(split):
            try:
                with contextlib.nullcontext() if download else _offline():
                    dataset = create_dataset(data, root=str(root) if root else None, split=name)
                break
            except ValueError as error:
                if "split" not in str(error).lower():
                    raise DataError(f"{data} cannot be opened: {_first_line(error)}") from error
            except (OSError, RuntimeError) as error:
                hint = "" if download else "; set download to fetch it"
                raise DataError(f"{data} cannot be opened: {_first_line(error)}{hint}") from error
        if dataset is None:
            raise DataError(f"{data} has no split {' or '.join(_split_names(split))}")
        self.data, self.reader = data, dataset.reader
        self.targets = [int(target) for target in self.reader.iter_targets()]
        names_by_class = {number: name for name, number in self.reader.class_to_idx.items()}
        count = max(*self.targets, *names_by_class, 0) + 1
        self.class_names = [names_by_class.get(number, str(number)) for number in range(count)]

    def __len__(self) -> int:
        return len(self.targets)

    def name(self, index: int) -> str:
        """Dataset name and index."""
        return f"{self.data}[{index}]"

    def label(self, index: int) -> int:
        """Class number."""
        return self.targets[index]

    def read(self, index: int) -> BinaryIO:
        """The encoded image."""
        with self.reader[index][0] as file:
            return io.BytesIO(file.read())


class _Member(NamedTuple):
    shard: int
    key: str
    offset: int
    size: int
    label: int


class ShardSource:
    """WebDataset shards on this machine, read by position: files ``KEY.jpg|png|webp`` and ``KEY.cls`` in tar archives.

    Shards belong to a split by their name (``imagenet1k-train-0001.tar``) or folder (``train/0001.tar``).
    """

    def __init__(self, data: str, root: Path | None, split: str) -> None:
        if root is None or not root.is_dir():
            raise DataError(f"{data} needs data_root, the folder of its .tar shards; {root} is none")
        for name in _split_names(split):
            shards = [path for path in sorted(root.rglob("*.tar")) if name in _words(path.relative_to(root))]
            if shards:
                break
        else:
            raise DataError(f"no shard of split {split!r} in {root}; name them like NAME-{split}-0000.tar")
        self.shards = shards
        self.members = [member for number, path in enumerate(shards) for member in _index(number, path)]
        if not self.members:
            raise DataError(f"no pair of an image and a .cls file in the shards of {root}, such as {shards[0].name}")
        self.class_names = [str(number) for number in range(max(member.label for member in self.members) + 1)]

    def __len__(self) -> int:
        return len(self.members)

    def name(self, index: int) -> str:
        """Shard and key."""
        return f"{self.shards[self.members[index].shard]}:{self.members[index].key}"

    def label(self, index: int) -> int:
        """Class number."""
        return self.members[index].label

    def read(self, index: int) -> BinaryIO:
        """The encoded image."""
        member = self.members[index]
        with self.shards[member.shard].open("rb") as shard:
            shard.seek(member.offset)
            return io.BytesIO(shard.read(member.size))


def open_training_data(
    data: str, *, root: Path | None = None, download: bool = False
) -> tuple[ImageSource, ImageSource]:
    """Open the training images and the images to evaluate on, with one numbering of classes.

    Args:
        data: a folder that holds ``train/`` and one of ``val/ valid/ validation/ test/``, or a dataset name.
        root: where a named dataset lies; a relative folder starts here.
        download: whether a named dataset may be fetched; nothing is fetched otherwise.

    Raises:
        DataError: for what is missing, empty, of one class only, or has classes in evaluation that training lacks.
    """
    train = _open(data, root, "train", download)
    evaluation = _open(data, root, "validation", download)
    if isinstance(train, FolderSource) and isinstance(evaluation, FolderSource):
        evaluation.use_classes(train.class_names)
    if len(train.class_names) < 2:
        raise DataError(f"{data} has one class only ({train.class_names[0]}); classification needs at least two")
    if len(evaluation.class_names) > len(train.class_names):
        raise DataError(
            f"{data} has {len(evaluation.class_names)} classes to evaluate on but {len(train.class_names)} to train on"
        )
    return train, evaluation


def open_evaluation_data(
    data: str,
    *,
    split: str = "validation",
    root: Path | None = None,
    class_names: Sequence[str] | None = None,
    download: bool = False,
) -> ImageSource:
    """Open images to evaluate a model on.

    Args:
        data: as in `open_training_data`; a folder without split folders is taken as a whole.
        split: ``train``, ``validation`` (which takes ``test`` where that is all there is) or ``test``.
        root: as in `open_training_data`.
        class_names: the model's classes; class folders are numbered by them.
        download: as in `open_training_data`.

    Raises:
        DataError: as in `open_training_data`, and for class folders that the model does not know.
    """
    if split not in (*TRAIN_NAMES, *EVALUATION_NAMES):
        raise DataError(f"unknown split {split!r}; give train, validation or test")
    folder = (root or Path()) / data
    if folder.is_dir() and not any((folder / name).is_dir() for name in (*TRAIN_NAMES, *EVALUATION_NAMES)):
        source: ImageSource = FolderSource(folder)
    else:
        source = _open(data, root, split, download)
    if isinstance(source, FolderSource) and class_names is not None:
        source.use_classes(class_names)
    return source


def _open(data: str, root: Path | None, split: str, download: bool) -> ImageSource:
    folder = (root or Path()) / data
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


def _split_folder(folder: Path, split: str) -> Path:
    names = _split_names(split)
    for name in names:
        if (folder / name).is_dir():
            return folder / name
    raise DataError(f"{folder} has no sub-folder {' or '.join(names)}; images lie in {folder}/{names[0]}/CLASS/")


def _split_names(split: str) -> tuple[str, ...]:
    """Names that a split goes by, in the order they are tried."""
    if split in TRAIN_NAMES:
        return TRAIN_NAMES
    return ("test",) if split == "test" else EVALUATION_NAMES


def _index(number: int, path: Path) -> Iterator[_Member]:
    """Pair the images and classes of one shard; neighbours in the archive, as the format says."""
    try:
        with tarfile.open(path) as archive:
            images: dict[str, tarfile.TarInfo] = {}
            labels: dict[str, int] = {}
            for member in archive:
                key, _, extension = member.name.rpartition(".")
                if extension.lower() in ("jpg", "jpeg", "png", "webp"):
                    images[key] = member
                elif extension == "cls" and (file := archive.extractfile(member)):
                    labels[key] = int(file.read())
    except (tarfile.TarError, OSError, ValueError) as error:
        raise DataError(f"cannot read shard {path}: {_first_line(error)}") from error
    for key, member in images.items():
        if key in labels:
            yield _Member(number, key, member.offset_data, member.size, labels[key])


def _words(path: Path) -> list[str]:
    return "".join(letter if letter.isalnum() else " " for letter in str(path.with_suffix(""))).split()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Keep Hugging Face's libraries from the network; their switches are read from the environment only once."""
    settings = [
        (require("huggingface_hub.constants", extra="hfds"), "HF_HUB_OFFLINE"),
        (require("datasets.config", extra="hfds"), "HF_HUB_OFFLINE"),
    ]
    before = [vars(module).get(name, False) for module, name in settings]
    for module, name in settings:
        setattr(module, name, True)
    try:
        yield
    finally:
        for (module, name), value in zip(settings, before, strict=True):
            setattr(module, name, value)
