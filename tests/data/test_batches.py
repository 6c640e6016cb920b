"""Order and augmentation are functions of (seed, epoch, position); bad images follow the policy."""

import os
import random
import signal
import warnings
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from visionmlp.data import Augmentation, BadImageLog, Batch, EvaluationBatches, Preprocessing, TrainingBatches
from visionmlp.data.batches import EpochOrder
from visionmlp.data.sources import ImageSource, open_training_data
from visionmlp.errors import DataError

from .test_sources import write_images

PREPROCESSING = Preprocessing(input_size=(3, 12, 12), mean=(0.5,) * 3, std=(0.5,) * 3)
HEAVY = Augmentation(auto_augment="rand-m9-mstd0.5-inc1", erasing=0.5, rotation=10.0, crop_scale=(0.3, 1.0))


class Noise:
    """Distinct random images in memory."""

    class_names = ("even", "odd")

    def __init__(self, count: int, bad: tuple[int, ...] = ()) -> None:
        self.pixels = np.random.default_rng(0).integers(0, 256, (count, 10, 10, 3), dtype=np.uint8)
        self.bad = bad

    def __len__(self) -> int:
        return len(self.pixels)

    def name(self, index: int) -> str:
        return f"noise[{index}]"

    def label(self, index: int) -> int:
        return index % 2

    def read(self, index: int) -> Image.Image:
        if index in self.bad:
            raise SyntaxError("broken PNG file")
        return Image.fromarray(self.pixels[index])


def training(
    source: ImageSource | Noise,
    *,
    seed: int = 0,
    num_workers: int = 0,
    batch_size: int = 4,
    log: BadImageLog | None = None,
    augmentation: Augmentation = HEAVY,
) -> TrainingBatches:
    return TrainingBatches(
        source,  # type: ignore[arg-type]
        augmentation.transform(PREPROCESSING),
        EpochOrder(len(source), batch_size, seed=seed),
        mode="RGB",
        bad_images=log or BadImageLog("stop"),
        num_workers=num_workers,
    )


def equal(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x.images, y.images) and torch.equal(x.labels, y.labels) for x, y in zip(a, b, strict=True)
    )


def test_an_epoch_does_not_depend_on_history_workers_or_global_generators() -> None:
    source = Noise(18)
    batches = training(source)
    first = list(batches.epoch(3))
    for generator in (random.seed, np.random.seed, torch.manual_seed):
        generator(123)
    list(batches.epoch(0))
    assert equal(first, list(batches.epoch(3)))
    with closing(training(source, num_workers=2)) as by_workers:
        next(by_workers.epoch(1))
        assert equal(first, list(by_workers.epoch(3)))
    assert equal(first[2:], list(batches.epoch(3, skip=2)))  # a resumed epoch
    assert not equal(first, list(batches.epoch(4)))
    assert not equal(first, list(training(source, seed=1).epoch(3)))


def draws() -> tuple[float, float, float]:
    return random.random(), np.random.random(), torch.rand(1).item()  # noqa: NPY002 (the global one)


def test_loading_leaves_the_global_generators_alone() -> None:
    for generator in (random.seed, np.random.seed, torch.manual_seed):
        generator(7)
    untouched = draws()
    for generator in (random.seed, np.random.seed, torch.manual_seed):
        generator(7)
    list(training(Noise(8)).epoch(0))
    assert untouched == draws()


@pytest.mark.parametrize("repeats", [1, 3])
def test_ranks_share_an_epoch_without_overlap(repeats: int) -> None:
    alone = [key for batch in EpochOrder(32, 4, seed=5, repeats=repeats) for key in batch]
    shards = [
        [key for batch in EpochOrder(32, 2, seed=5, rank=rank, ranks=2, repeats=repeats) for key in batch]
        for rank in (0, 1)
    ]
    assert not {key.position for key in shards[0]} & {key.position for key in shards[1]}
    assert sorted(shards[0] + shards[1], key=lambda key: key.position) == alone
    assert len(alone) == 32
    views = max([key.image for key in alone].count(image) for image in range(32))
    assert views == repeats


def test_evaluation_covers_every_image_once_over_ranks() -> None:
    seen: list[float] = []
    for rank in (0, 1, 2):
        batches = EvaluationBatches(
            Noise(10),  # type: ignore[arg-type]
            PREPROCESSING.transform(),
            batch_size=3,
            mode="RGB",
            bad_images=BadImageLog("stop"),
            rank=rank,
            ranks=3,
        )
        assert len(batches) == 2 if rank == 0 else 1
        seen += [float(image.sum()) for batch in batches for image in batch.images]
    assert len(set(seen)) == 10


def test_a_batch_larger_than_the_dataset_is_refused() -> None:
    with pytest.raises(DataError, match="a batch of 16 images is larger than the dataset of 10"):
        EpochOrder(10, 8, seed=0, ranks=2)


def broken_folder(tmp_path: Path) -> tuple[Path, Path]:
    root = write_images(tmp_path / "data", {"train/a": 4, "train/b": 4, "val/a": 2, "val/b": 2}, size=64)
    broken = root / "train" / "a" / "001.png"
    broken.write_bytes(broken.read_bytes()[:60])  # truncated
    return root, broken


@pytest.mark.parametrize("num_workers", [0, 2])
def test_stop_names_the_bad_image_in_one_line(tmp_path: Path, num_workers: int) -> None:
    root, broken = broken_folder(tmp_path)
    source, _ = open_training_data(str(root))
    batches = training(source, num_workers=num_workers)
    with closing(batches), pytest.raises(DataError, match="cannot read image") as caught:
        list(batches.epoch(0))
    assert str(broken) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_skip_takes_the_next_good_image_and_names_the_bad_one_once(tmp_path: Path) -> None:
    root, broken = broken_folder(tmp_path)
    source, _ = open_training_data(str(root))
    listing = tmp_path / "bad_images.txt"
    plain = Augmentation(crop="center", hflip=0.0)
    for _session in (0, 1):
        batches = training(source, log=BadImageLog("skip", listing), num_workers=2, batch_size=8, augmentation=plain)
        with closing(batches), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            epochs = [next(batches.epoch(epoch)) for epoch in (0, 1)]
        assert len(caught) == (1 if _session == 0 else 0)
    assert listing.read_text().count("\n") == 1
    assert str(broken) in listing.read_text()
    for batch in epochs:
        values = sorted(((image.mean() * 0.5 + 0.5) * 255).round().int().item() for image in batch.images)
        assert values == [1, 3, 3, 4, 5, 6, 7, 8]  # 2 is broken, 3 comes next


def test_skip_leaves_a_bad_image_out_of_evaluation() -> None:
    log = BadImageLog("skip")
    batches = EvaluationBatches(
        Noise(6, bad=(2, 3)),  # type: ignore[arg-type]
        PREPROCESSING.transform(),
        batch_size=2,
        mode="RGB",
        bad_images=log,
    )
    with pytest.warns(UserWarning, match=r"skipped image noise\[2\]: broken PNG file"):
        assert [len(batch.labels) for batch in batches] == [2, 2]
    assert log.names == {"noise[2]", "noise[3]"}


def test_no_good_image_at_all_is_an_error() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DataError, match="no image of the training data can be read"):
            list(training(Noise(4, bad=(0, 1, 2, 3)), log=BadImageLog("skip")).epoch(0))


def test_a_signal_to_the_process_group_leaves_the_workers_running() -> None:
    with closing(training(Noise(40), num_workers=1)) as batches:
        epoch = batches.epoch(0)
        first = next(epoch)
        (worker,) = batches.loader._iterator._workers  # type: ignore[union-attr]
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(worker.pid, number)
        assert equal([first, *epoch], list(training(Noise(40)).epoch(0)))


def test_a_workers_own_failure_is_one_line() -> None:
    def fails(_image: Image.Image) -> torch.Tensor:
        raise RuntimeError("first\nlast words")

    batches = TrainingBatches(
        Noise(4),  # type: ignore[arg-type]
        fails,
        EpochOrder(4, 2, seed=0),
        mode="RGB",
        bad_images=BadImageLog("stop"),
        num_workers=1,
    )
    with closing(batches), pytest.raises(DataError, match="a data worker failed: last words") as caught:
        list(batches.epoch(0))
    assert "\n" not in str(caught.value)


def test_keys_say_what_each_sample_is() -> None:
    source = Noise(12, bad=(7,))
    plain = Augmentation(crop="center", hflip=0.0)
    batches = training(source, log=BadImageLog("skip"), augmentation=plain)
    with pytest.warns(UserWarning, match="skipped"):
        got = list(batches.epoch(5))
    keys = torch.cat([batch.keys for batch in got if batch.keys is not None])
    assert keys[:, 0].tolist() == [5] * 12
    assert keys[:, 1].tolist() == list(range(12))
    assert 7 not in keys[:, 2]
    images = torch.cat([batch.images for batch in got])
    for key, image in zip(keys.tolist(), images, strict=True):
        assert torch.equal(image, plain.transform(PREPROCESSING)(Image.fromarray(source.pixels[key[2]])))
