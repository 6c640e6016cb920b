"""Samples of any task in batches, for training and evaluation.

Nothing here has a state to save: the order of an epoch is a function of (seed, epoch), the augmentation of a sample a
function of (seed, epoch, position). To resume an epoch in its middle is to skip batches, with any number of workers.
"""

import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, Protocol

import torch
from PIL import Image
from timm.data.distributed_sampler import RepeatAugSampler
from torch.utils.data import DataLoader, Dataset, Sampler

from visionmlp.data.decode import decode, reason
from visionmlp.data.policy import BadImage, BadImageLog, ImageNote
from visionmlp.data.seeding import derive_seed, seeded
from visionmlp.errors import DataError


class Key(NamedTuple):
    """All that a sample depends on, beside seed and transform. In evaluation the epoch is 0, the position the index."""

    epoch: int
    position: int
    image: int


class Reading(NamedTuple):
    """What lies at an index: an item that can be used, or a `BadImage`; with what is odd about it."""

    item: Any
    notes: tuple[ImageNote, ...] = ()


class Reader(Protocol):
    """Items by index, such as an image with its class, its mask or its boxes."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> Reading:
        """The item; what cannot be read is no exception but a `BadImage`."""
        ...


def read_image(
    file: Callable[[], Path | BinaryIO | Image.Image], name: str, mode: Literal["L", "RGB"], *, exif_orientation: bool
) -> Reading:
    """A decoded image.

    Args:
        file: gives what `visionmlp.data.decode.decode` takes; any exception means that it cannot be read.
        name: what to call the image in a message.
        mode: Pillow's mode that it is decoded to.
        exif_orientation: whether it is turned as its EXIF says.
    """
    texts: list[str] = []
    try:
        image = decode(file(), mode, warn=texts.append, exif_orientation=exif_orientation)
    except Exception as error:  # a source may read from a disk or a library
        return Reading(BadImage(name, reason(error)))
    return Reading(image, tuple(ImageNote(name, text) for text in texts))


class Sample(NamedTuple):
    """One part of a batch: an item behind its transform."""

    item: Any
    key: Key


Transform = Callable[[Any], Any]
"""An item to what `Collate` takes; draws from the global generators."""
Collate = Callable[[Sequence[Sample]], Any]
"""Samples to a batch; there may be none."""


class _Loaded(NamedTuple):
    """What a worker hands over."""

    batch: Any
    size: int
    bad: tuple[BadImage, ...]
    notes: tuple[ImageNote, ...]


class _Read(NamedTuple):
    sample: Sample | None
    bad: tuple[BadImage, ...] = ()
    notes: tuple[ImageNote, ...] = ()


class _TrainingSamples(Dataset[_Read]):
    """A bad image is replaced by the next good one in the reader's order."""

    def __init__(self, reader: Reader, transform: Transform, *, seed: int, stop: bool) -> None:
        self.reader, self.transform, self.seed, self.stop = reader, transform, seed, stop

    def __getitem__(self, key: Key) -> _Read:
        bad: list[BadImage] = []
        for offset in range(len(self.reader)):
            index = (key.image + offset) % len(self.reader)
            item, notes = self.reader.read(index)
            if not isinstance(item, BadImage):
                with seeded(self.seed, key.epoch, key.position):
                    item = self.transform(item)
                return _Read(Sample(item, key._replace(image=index)), tuple(bad), notes)
            bad.append(item)
            if self.stop:
                break
        return _Read(None, tuple(bad))


class _EvaluationSamples(Dataset[_Read]):
    """A bad image is left out."""

    def __init__(self, reader: Reader, transform: Transform) -> None:
        self.reader, self.transform = reader, transform

    def __getitem__(self, index: int) -> _Read:
        item, notes = self.reader.read(index)
        if isinstance(item, BadImage):
            return _Read(None, (item,))
        return _Read(Sample(self.transform(item), Key(0, index, index)), (), notes)


class EpochOrder(Sampler[list[Key]]):
    """Batches of one rank: of a permutation drawn from (seed, epoch), rank r takes every position = r mod ranks.

    The last, incomplete batch is dropped. Position p of the epoch is the same image for any number of ranks.

    Args:
        size: images in the source.
        batch_size: images of one batch on one rank.
        seed: of the run.
        rank: of this process.
        ranks: processes.
        repeats: augmented views of each image within an epoch, as timm's RepeatAugSampler makes them; an epoch keeps
            its length, so it sees a part of the images only.
    """

    def __init__(
        self, size: int, batch_size: int, *, seed: int, rank: int = 0, ranks: int = 1, repeats: int = 1
    ) -> None:
        self.batch_size, self.seed, self.rank, self.ranks = batch_size, seed, rank, ranks
        self.size = size
        # an epoch is as long as without repeats, not rounded to a multiple of 256 as DeiT's was
        self.repeated = (
            RepeatAugSampler(range(size), ranks, rank, num_repeats=repeats, selected_round=0) if repeats > 1 else None
        )
        self.epoch, self.skip = 0, 0
        if batch_size * ranks > size:
            raise DataError(f"a batch of {batch_size * ranks} images is larger than the dataset of {size}")

    def __len__(self) -> int:
        return self.size // self.ranks // self.batch_size

    def __iter__(self) -> Iterator[list[Key]]:
        seed = derive_seed(self.seed, self.epoch)
        if self.repeated is None:
            order = torch.randperm(self.size, generator=torch.Generator().manual_seed(seed))
            indices = order[self.rank :: self.ranks]
        else:
            self.repeated.set_epoch(seed)
            indices = torch.tensor(list(self.repeated))
        for batch in range(self.skip, len(self)):
            turns = range(batch * self.batch_size, (batch + 1) * self.batch_size)
            images = indices[turns.start : turns.stop].tolist()
            yield [
                Key(self.epoch, turn * self.ranks + self.rank, image) for turn, image in zip(turns, images, strict=True)
            ]


class TrainingLoader:
    """Augmented batches of one rank, epoch by epoch.

    Args:
        reader: items.
        transform: augmentation.
        order: which items, when.
        collate: makes a batch.
        bad_images: the policy.
        num_workers: processes that load; 0 loads in this one.
        pin_memory: for copies to a GPU.
    """

    def __init__(
        self,
        reader: Reader,
        transform: Transform,
        order: EpochOrder,
        *,
        collate: Collate,
        bad_images: BadImageLog,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.order, self.bad_images = order, bad_images
        samples = _TrainingSamples(reader, transform, seed=order.seed, stop=bad_images.policy == "stop")
        self.loader = _loader(samples, order, collate, num_workers, pin_memory)

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self.order)

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Any]:
        """The batches of an epoch behind the first ``skip``.

        Raises:
            DataError: for a bad image if the policy is to stop, or if no image is good.
        """
        self.order.epoch, self.order.skip = epoch, skip
        for loaded in _checked(self.loader, self.bad_images):
            if loaded.size < self.order.batch_size:
                raise DataError("no image of the training data can be read")
            yield loaded.batch

    def close(self) -> None:
        """End the workers."""
        _close(self.loader)


class EvaluationLoader:
    """All items of a reader in order, each once; rank r takes every item = r mod ranks.

    Arguments are those of `TrainingLoader`.
    """

    def __init__(
        self,
        reader: Reader,
        transform: Transform,
        *,
        batch_size: int,
        collate: Collate,
        bad_images: BadImageLog,
        rank: int = 0,
        ranks: int = 1,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.bad_images = bad_images
        indices = range(rank, len(reader), ranks)
        batches = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
        samples = _EvaluationSamples(reader, transform)
        self.loader = _loader(samples, batches, collate, num_workers, pin_memory)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        return (loaded.batch for loaded in _checked(self.loader, self.bad_images) if loaded.size)

    def close(self) -> None:
        """End the workers."""
        _close(self.loader)


class _Collated:
    """A function that workers can be sent."""

    def __init__(self, collate: Collate) -> None:
        self.collate = collate

    def __call__(self, read: Sequence[_Read]) -> _Loaded:
        samples = [one.sample for one in read if one.sample is not None]
        bad = tuple(bad for one in read for bad in one.bad)
        notes = tuple(note for one in read for note in one.notes)
        return _Loaded(self.collate(samples) if samples else None, len(samples), bad, notes)


def _loader(
    samples: Dataset[_Read], batches: Any, collate: Collate, num_workers: int, pin_memory: bool
) -> DataLoader[Any]:
    return DataLoader(
        samples,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=_Collated(collate),
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        worker_init_fn=leave_signals_to_main,
        generator=torch.Generator(),  # workers' base seed; without it a draw from the global generator
    )


def leave_signals_to_main(_worker: int) -> None:
    """What workers begin with."""
    # Ctrl-C and timeout(1) signal the whole process group, but the main process needs its batches to stop in good
    # order; a second SIGTERM is the loader's own
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def loaded_by(loader: DataLoader[Any]) -> Iterator[Any]:
    """What a loader gives.

    Raises:
        DataError: in one line, if a worker fails or is killed.
    """
    iterator = iter(loader)
    while True:
        try:
            loaded = next(iterator)
        except StopIteration:
            return
        except Exception as error:
            if loader.num_workers == 0:
                raise
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise DataError(f"a data worker failed: {lines[-1]}; num_workers 0 shows where") from error
        yield loaded


def _checked(loader: DataLoader[Any], bad_images: BadImageLog) -> Iterator[_Loaded]:
    """Report bad images in the main process."""
    for loaded in loaded_by(loader):
        bad_images.report(loaded.bad)
        bad_images.note(loaded.notes)
        yield loaded


def _close(loader: DataLoader[Any]) -> None:
    # if left to the garbage collector, each worker may be waited for in vain, for seconds
    if (iterator := loader._iterator) is not None:
        iterator._shutdown_workers()  # type: ignore[attr-defined]
        loader._iterator = None
