"""Batches for training and evaluation.

Nothing here has a state to save: the order of an epoch is a function of (seed, epoch), the augmentation of a sample a
function of (seed, epoch, position). To resume an epoch in its middle is to skip batches, with any number of workers.
"""

import signal
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from PIL.Image import Image
from timm.data.distributed_sampler import RepeatAugSampler
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from visionmlp.data.decode import decode, reason
from visionmlp.data.policy import BadImage, BadImageLog, ImageNote
from visionmlp.data.seeding import derive_seed, seeded
from visionmlp.data.sources import ImageSource
from visionmlp.data.transforms import Transform
from visionmlp.data.views import Views
from visionmlp.errors import DataError


class Batch(NamedTuple):
    """Images (B, C, H, W) and class numbers (B,), with the images met on the way that cannot be read or are odd.

    ``keys`` (B, 3), int64, say what each sample depends on beside seed and transform: the epoch, the position there,
    and the index in the source of the image that was read. In evaluation the epoch is 0, and the position the index.
    """

    images: Tensor
    labels: Tensor
    bad: tuple[BadImage, ...] = ()
    notes: tuple[ImageNote, ...] = ()
    keys: Tensor | None = None


class ViewBatch(NamedTuple):
    """The same for several views of each image, each (B, C, H, W) and of its own size."""

    views: tuple[Tensor, ...]
    labels: Tensor
    bad: tuple[BadImage, ...] = ()
    notes: tuple[ImageNote, ...] = ()


class _Key(NamedTuple):
    """All that a sample depends on."""

    epoch: int
    position: int
    image: int


class _Sample(NamedTuple):
    image: Tensor | tuple[Tensor, ...] | None
    label: int
    bad: tuple[BadImage, ...]
    notes: tuple[ImageNote, ...] = ()
    key: _Key | None = None


class _TrainingSamples(Dataset[_Sample]):
    """A bad image is replaced by the next good one in the source's order."""

    def __init__(self, images: "_Images", transform: Transform | Views, *, seed: int, stop: bool) -> None:
        self.images, self.transform, self.seed, self.stop = images, transform, seed, stop

    def __getitem__(self, key: _Key) -> _Sample:
        bad: list[BadImage] = []
        source = self.images.source
        for offset in range(len(source)):
            index = (key.image + offset) % len(source)
            image, notes = self.images.read(index)
            if not isinstance(image, BadImage):
                with seeded(self.seed, key.epoch, key.position):
                    view = self.transform(image)
                return _Sample(view, source.label(index), tuple(bad), notes, key._replace(image=index))
            bad.append(image)
            if self.stop:
                break
        return _Sample(None, -1, tuple(bad))


class _EvaluationSamples(Dataset[_Sample]):
    """A bad image is left out."""

    def __init__(self, images: "_Images", transform: Transform) -> None:
        self.images, self.transform = images, transform

    def __getitem__(self, index: int) -> _Sample:
        image, notes = self.images.read(index)
        if isinstance(image, BadImage):
            return _Sample(None, -1, (image,))
        return _Sample(self.transform(image), self.images.source.label(index), (), notes, _Key(0, index, index))


class EpochOrder(Sampler[list[_Key]]):
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

    def __iter__(self) -> Iterator[list[_Key]]:
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
                _Key(self.epoch, turn * self.ranks + self.rank, image)
                for turn, image in zip(turns, images, strict=True)
            ]


class TrainingBatches:
    """Augmented batches of one rank, epoch by epoch.

    Args:
        source: images.
        transform: from `Augmentation.transform` or `visionmlp.data.views.Views`.
        order: which images, when.
        mode: Pillow's mode that images are decoded to.
        exif_orientation: whether images are turned as their EXIF says.
        bad_images: the policy.
        num_workers: processes that load; 0 loads in this one.
        pin_memory: for copies to a GPU.
    """

    def __init__(
        self,
        source: ImageSource,
        transform: Transform | Views,
        order: EpochOrder,
        *,
        mode: Literal["L", "RGB"],
        exif_orientation: bool = True,
        bad_images: BadImageLog,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.order, self.bad_images = order, bad_images
        images = _Images(source, mode, exif_orientation)
        samples = _TrainingSamples(images, transform, seed=order.seed, stop=bad_images.policy == "stop")
        self.loader = _loader(samples, order, num_workers, pin_memory)

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self.order)

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Any]:
        """The batches of an epoch behind the first ``skip``: a `ViewBatch` where the transform gives several views.

        Raises:
            DataError: for a bad image if the policy is to stop, or if no image is good.
        """
        self.order.epoch, self.order.skip = epoch, skip
        for batch in _checked(self.loader, self.bad_images):
            if len(batch.labels) < self.order.batch_size:
                raise DataError("no image of the training data can be read")
            yield batch

    def close(self) -> None:
        """End the workers."""
        _close(self.loader)


class EvaluationBatches:
    """All images of a source in order, each once; rank r takes every image = r mod ranks.

    Arguments are those of `TrainingBatches`.
    """

    def __init__(
        self,
        source: ImageSource,
        transform: Transform,
        *,
        batch_size: int,
        mode: Literal["L", "RGB"],
        exif_orientation: bool = True,
        bad_images: BadImageLog,
        rank: int = 0,
        ranks: int = 1,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.bad_images = bad_images
        indices = range(rank, len(source), ranks)
        batches = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
        samples = _EvaluationSamples(_Images(source, mode, exif_orientation), transform)
        self.loader = _loader(samples, batches, num_workers, pin_memory)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        return (batch for batch in _checked(self.loader, self.bad_images) if len(batch.labels))

    def close(self) -> None:
        """End the workers."""
        _close(self.loader)


class _Images(NamedTuple):
    """Decoded images of a source."""

    source: ImageSource
    mode: Literal["L", "RGB"]
    exif_orientation: bool

    def read(self, index: int) -> tuple[Image | BadImage, tuple[ImageNote, ...]]:
        texts: list[str] = []
        try:
            file = self.source.read(index)
            image = decode(file, self.mode, warn=texts.append, exif_orientation=self.exif_orientation)
        except Exception as error:  # a source may read from a disk or a library
            return BadImage(self.source.name(index), reason(error)), ()
        return image, tuple(ImageNote(self.source.name(index), text) for text in texts)


def _collate(samples: list[_Sample]) -> Batch | ViewBatch:
    good = [(sample.image, sample.label) for sample in samples if sample.image is not None]
    labels = torch.tensor([label for _, label in good])
    bad = tuple(bad for sample in samples for bad in sample.bad)
    notes = tuple(note for sample in samples for note in sample.notes)
    if good and isinstance(good[0][0], tuple):
        views = tuple(torch.stack(view) for view in zip(*[image for image, _ in good], strict=True))
        return ViewBatch(views, labels, bad, notes)
    images = torch.stack([image for image, _ in good if isinstance(image, Tensor)]) if good else torch.empty(0)
    keys = [sample.key for sample in samples if sample.key is not None]
    return Batch(images, labels, bad, notes, torch.tensor(keys) if keys else None)


def _loader(samples: Dataset[_Sample], batches: Any, num_workers: int, pin_memory: bool) -> DataLoader[Any]:
    return DataLoader(
        samples,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=_collate,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        worker_init_fn=_leave_signals_to_main,
        generator=torch.Generator(),  # workers' base seed; without it a draw from the global generator
    )


def _leave_signals_to_main(_worker: int) -> None:
    # Ctrl-C and timeout(1) signal the whole process group, but the main process needs its batches to stop in good
    # order; a second SIGTERM is the loader's own
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def _checked(loader: DataLoader[Any], bad_images: BadImageLog) -> Iterator[Any]:
    """Report bad images in the main process, and a worker's failure as one line."""
    iterator = iter(loader)
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except Exception as error:
            if loader.num_workers == 0:
                raise
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise DataError(f"a data worker failed: {lines[-1]}; num_workers 0 shows where") from error
        bad_images.report(batch.bad)
        bad_images.note(batch.notes)
        yield batch


def _close(loader: DataLoader[Any]) -> None:
    # if left to the garbage collector, each worker may be waited for in vain, for seconds
    if (iterator := loader._iterator) is not None:
        iterator._shutdown_workers()  # type: ignore[attr-defined]
        loader._iterator = None
