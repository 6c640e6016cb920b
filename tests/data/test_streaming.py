"""Shards over processes and workers: each image once an epoch, from anywhere in it, in little memory."""

import os
import pickle
import tracemalloc
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import torch

from visionmlp.data import Augmentation, BadImageLog, EvaluationBatches, Preprocessing, TrainingBatches
from visionmlp.data.batches import EpochOrder
from visionmlp.data.packed import INDEX, PackedSource
from visionmlp.data.packing import pack
from visionmlp.data.shards import ShardSource
from visionmlp.data.sources import ImageSource, open_training_data
from visionmlp.data.texts import Texts

from .test_sources import write_images

PREPROCESSING = Preprocessing(input_size=(3, 8, 8), mean=(0.5,) * 3, std=(0.5,) * 3)
HEAVY = Augmentation(auto_augment="rand-m9-mstd0.5-inc1", erasing=0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images to train, 11 held out, with a grey value each."""
    root = tmp_path_factory.mktemp("streaming") / "images"
    return write_images(root, {"train/a": 13, "train/b": 11, "val/a": 5, "val/b": 6})


@pytest.fixture(scope="module")
def packed(folder: Path) -> Path:
    pack(folder, folder.with_name("shards"), images_per_shard=5)
    return folder.with_name("shards")


def training(source: ImageSource, *, workers: int, rank: int = 0, ranks: int = 1) -> TrainingBatches:
    return TrainingBatches(
        source,
        HEAVY.transform(PREPROCESSING),
        EpochOrder(len(source), 4 // ranks, seed=5, rank=rank, ranks=ranks),
        mode="RGB",
        bad_images=BadImageLog("stop"),
        num_workers=workers,
    )


def sources(packed: Path) -> dict[str, tuple[ImageSource, ImageSource]]:
    """As the first process opens them and the others get them."""
    opened = {"pack": open_training_data(str(packed)), "wds": open_training_data("wds/images", root=packed)}
    return {name: pickle.loads(pickle.dumps(pair)) for name, pair in opened.items()}


@pytest.mark.parametrize("kind", ["pack", "wds"])
def test_two_processes_with_two_workers_see_each_image_once(packed: Path, kind: str) -> None:
    train, evaluation = sources(packed)[kind]
    with ExitStack() as stack:
        parts = [training(train, workers=2, rank=rank, ranks=2) for rank in (0, 1)]
        held_out = [
            EvaluationBatches(
                evaluation,
                PREPROCESSING.transform(),
                batch_size=2,
                mode="RGB",
                bad_images=BadImageLog("stop"),
                rank=rank,
                ranks=2,
                num_workers=2,
            )
            for rank in (0, 1)
        ]
        for batches in (*parts, *held_out):
            stack.callback(batches.close)
        orders = []
        alone = list(training(train, workers=0).epoch(1))
        for epoch in (0, 1):
            batches = [list(part.epoch(epoch)) for part in parts]
            seen = torch.cat([batch.keys[:, 2] for part in batches for batch in part])
            assert sorted(seen.tolist()) == list(range(24))
            orders.append(seen.tolist())
        assert orders[0] != orders[1]
        # the two halves of a step are the batch that one process has, to the bit
        for whole, first, second in zip(alone, *batches, strict=True):
            for name in ("images", "labels", "keys"):
                both = torch.stack([getattr(first, name), getattr(second, name)], dim=1).flatten(0, 1)
                assert torch.equal(both, getattr(whole, name))
        greys = [image[0, 0, 0].item() for part in held_out for batch in part for image in batch.images]
        assert len(greys) == len(set(greys)) == 11


@pytest.mark.parametrize("kind", ["pack", "wds"])
def test_an_epoch_goes_on_anywhere_to_the_bit(packed: Path, kind: str) -> None:
    train, _ = sources(packed)[kind]
    whole = list(training(train, workers=0).epoch(3))
    with closing(training(train, workers=2)) as resumed:
        rest = list(resumed.epoch(3, skip=2))
    assert len(whole) == len(rest) + 2 == 6
    for before, after in zip(whole[2:], rest, strict=True):
        assert torch.equal(before.images, after.images)
        assert torch.equal(before.labels, after.labels)


def test_shards_give_the_batches_of_their_folder(folder: Path, packed: Path) -> None:
    pairs = zip(
        training(open_training_data(str(folder))[0], workers=0).epoch(0),
        training(open_training_data(str(packed))[0], workers=0).epoch(0),
        strict=True,
    )
    for ours, theirs in pairs:
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.labels, theirs.labels)


def test_what_is_kept_of_each_image_is_no_object(packed: Path) -> None:
    for source in (PackedSource(packed, "train"), ShardSource("wds/images", packed, "train")):
        kept = {name: value for name, value in vars(source).items() if isinstance(value, list | tuple | dict | set)}
        assert all(len(value) <= 5 for value in kept.values()), kept
        assert isinstance(source.label(3), int)
    assert INDEX.itemsize <= 36


def test_an_epoch_of_a_million_images_makes_no_million_objects() -> None:
    order = EpochOrder(1_000_000, 128, seed=0)
    evaluation = EvaluationBatches(
        range(1_000_000),  # type: ignore[arg-type]
        PREPROCESSING.transform(),
        batch_size=1000,
        mode="RGB",
        bad_images=BadImageLog("stop"),
    )
    tracemalloc.start()
    first = next(iter(order))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(first) == 128
    assert peak < 2**20
    assert len(evaluation) == 1000
    assert all(isinstance(batch, range) for batch in evaluation.loader.batch_sampler)  # type: ignore[union-attr]


def test_texts_come_back_as_they_were() -> None:
    texts = ["", "a/b.png", "größe", os.fsdecode(b"\xff.png"), ""]
    kept = Texts.of(texts)
    assert list(kept) == texts
    assert (kept[2], len(kept)) == ("größe", 5)
    assert list(Texts.of([])) == []
