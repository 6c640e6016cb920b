"""A packed folder is the folder: bytes, order, names, classes. What is not as it was packed is noticed."""

import errno
import hashlib
import os
import shutil
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visionmlp.data import packing
from visionmlp.data.check import LabelledSplit, check_data
from visionmlp.data.packed import META, PackedMeta, PackedSource
from visionmlp.data.packed_check import require_faultless
from visionmlp.data.packing import open_folders, pack
from visionmlp.data.sources import ImageSource, open_evaluation_data, open_splits, open_training_data
from visionmlp.data.subset import Subset
from visionmlp.errors import DataError, InvalidConfig
from visionmlp.files import OutputError

from .test_sources import write_images


def noise(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 7, 3), dtype=np.uint8)).save(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """31 + 5 + 3 images under names of all kinds; val lacks a class, test has another one's absence."""
    root = tmp_path_factory.mktemp("packing") / "photos"
    for number in range(26):
        noise(root / f"train/{('cat', 'Dog', 'c10')[number % 3]}/{number}.png", number)
    # two of one stem, dots, an upper-case suffix, deeper, not ASCII
    odd = ("cat/0.jpg", "cat/a.b.png", "cat/a.c.png", "Dog/IMG.JPEG", "c10/deeper/größe x.png")
    for number, name in enumerate(odd):
        noise(root / "train" / name, 100 + number)
    for number, name in enumerate(("cat/1.png", "cat/2.png", "c10/1.png", "c10/2.png", "c10/10.png")):
        noise(root / "val" / name, 200 + number)
    for number, name in enumerate(("Dog/1.png", "Dog/2.png", "cat/1.png")):
        noise(root / "test" / name, 300 + number)
    (root / "train/cat/.hidden.png").write_bytes(b"litter")
    (root / "train/cat/notes.txt").write_bytes(b"notes")
    return root


@pytest.fixture(scope="module")
def packed(folder: Path) -> Path:
    output = folder.with_name("shards")
    with warnings.catch_warnings(record=True):
        pack(folder, output, images_per_shard=7)
    return output


@pytest.fixture
def copy(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "copy"))


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of the folder's hidden and deeper names


def contents(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


def everything(source: ImageSource) -> list[tuple[bytes, int]]:
    files = [source.read(index) for index in range(len(source))]
    read = [file.read_bytes() if isinstance(file, Path) else file.read() for file in files]  # type: ignore[union-attr]
    return [(content, source.label(index)) for index, content in enumerate(read)]


def test_a_pack_is_its_folder_to_training_and_evaluation(folder: Path, packed: Path) -> None:
    for ours, theirs in zip(open_training_data(str(packed)), open_training_data(str(folder)), strict=True):
        assert everything(ours) == everything(theirs)
        assert ours.class_names == theirs.class_names == ["c10", "cat", "Dog"]
        assert ours.summary() == theirs.summary()
    for split in ("train", "validation", "test"):
        for class_names in (None, ["Dog", "bird", "c10", "cat"]):
            ours, theirs = (
                open_evaluation_data(str(root), split=split, class_names=class_names) for root in (packed, folder)
            )
            assert isinstance(ours, PackedSource)
            assert (everything(ours), ours.class_names) == (everything(theirs), theirs.class_names)
    assert "train-00000" in ours.name(0) or "test-00000" in ours.name(0)
    assert "Dog/1.png" in open_evaluation_data(str(packed), split="test").name(1)


def test_parts_and_checks_of_a_pack_are_those_of_the_folder(folder: Path, packed: Path) -> None:
    subsets = [open_training_data(str(root), max_images=5)[0] for root in (packed, folder)]
    assert isinstance(subsets[0], Subset)
    assert everything(subsets[0]) == everything(subsets[1])
    assert subsets[0].summary() == subsets[1].summary()
    ours, theirs = (
        check_data({name: LabelledSplit(split) for name, split in open_splits(str(root)).items()})
        for root in (packed, folder)
    )
    assert {name: split.per_class for name, split in ours.splits.items()}["train"] == theirs.splits["train"].per_class
    assert [split.images for split in ours.splits.values()] == [31, 5, 3]


def test_the_shards_follow_webdatasets_conventions(folder: Path, packed: Path) -> None:
    """As its tar reader groups them: neighbours with one key, which ends at the first dot of the name."""
    training = open_training_data(str(folder))[0]
    expected = sorted(everything(training))
    samples: list[tuple[str, dict[str, bytes]]] = []
    for shard in sorted(packed.glob("train-*.tar")):
        with tarfile.open(shard) as archive:
            for member in archive:
                file = archive.extractfile(member)
                assert file is not None
                key, suffix = member.name.split(".", 1)
                if not samples or samples[-1][0] != key:
                    samples.append((key, {}))
                assert suffix not in samples[-1][1]
                samples[-1][1][suffix] = file.read()
    assert len({key for key, _ in samples}) == len(samples) == 31
    found = []
    for _, sample in samples:
        label = int(sample.pop("cls"))
        ((suffix, content),) = sample.items()
        assert suffix in ("png", "jpg", "jpeg")
        found.append((content, label))
    assert sorted(found) == expected
    labels = [label for _, label in found]
    assert labels != sorted(labels)
    assert len(set(labels[:7])) > 1  # of the first shard
    by_number = open_training_data("wds/photos", root=packed)[0]
    assert sorted(everything(by_number)) == expected


def test_the_meta_file_says_classes_counts_and_hashes(packed: Path) -> None:
    meta, files = PackedMeta.read(packed), contents(packed)
    assert list(meta.splits) == ["train", "val", "test"]
    assert [list(split.images_per_class) for split in meta.splits.values()] == [[9, 12, 10], [3, 2, 0], [0, 1, 2]]
    named = {META}
    for split in meta.splits.values():
        assert list(split.class_names) == ["c10", "cat", "Dog"]
        for file in (*split.shards, split.index, split.names):
            assert files[file.name] == file.sha256
            named.add(file.name)
    assert named == set(files)


def test_a_pack_is_a_function_of_images_seed_and_size(folder: Path, packed: Path, tmp_path: Path) -> None:
    elsewhere = shutil.copytree(folder, tmp_path / "moved")
    for path in elsewhere.rglob("*"):
        os.utime(path, (1, 1))
    assert pack(elsewhere, tmp_path / "again", images_per_shard=7).new
    assert contents(tmp_path / "again") == contents(packed)
    pack(elsewhere, tmp_path / "seed", images_per_shard=7, seed=1)
    assert contents(tmp_path / "seed").keys() == contents(packed).keys()
    assert contents(tmp_path / "seed")["train-000000.tar"] != contents(packed)["train-000000.tar"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "moved", "seed"]


def test_a_pack_that_was_killed_goes_on(
    folder: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, write, written = tmp_path / "shards", packing._write_shard, []

    def write_and_die(path: Path, *arguments: object) -> object:
        if len(written) == 3:
            path.with_name(f".{path.name}.partial").write_bytes(b"half")
            raise KeyboardInterrupt
        written.append(path.name)
        return write(path, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(packing, "_write_shard", write_and_die)
    with pytest.raises(KeyboardInterrupt):
        pack(folder, output, images_per_shard=7)
    staging = tmp_path / ".shards.packing"
    assert [path.name for path in tmp_path.iterdir()] == [staging.name]
    with (staging / "progress.jsonl").open("a") as lines:
        lines.write('{"name": "train-0000')  # cut off by the kill
    with pytest.raises(OutputError, match=r"unfinished pack of other images or options; remove it"):
        pack(folder, output, images_per_shard=8)
    (staging / written[1]).write_bytes(b"")  # of a length that it did not have
    first, written[:] = written[:], ["", ""]
    monkeypatch.setattr(packing, "_write_shard", write)
    result = pack(folder, output, images_per_shard=7)
    assert (result.resumed, first) == (2, [f"train-{number:06d}.tar" for number in range(3)])
    assert contents(output) == contents(packed)
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


def test_a_full_disk_is_one_line_and_what_is_done_stays(
    folder: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from visionmlp import files

    calls = []

    def sync(path: Path) -> None:
        calls.append(path)
        if len(calls) == 5:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "sync", sync)
    with pytest.raises(
        OutputError, match=r"cannot write .*train-00000\d.tar: No space left .* the same command goes on"
    ):
        pack(folder, tmp_path / "shards", images_per_shard=7)
    monkeypatch.undo()
    assert pack(folder, tmp_path / "shards", images_per_shard=7).resumed == 3
    assert contents(tmp_path / "shards") == contents(packed)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(10, 5, 5))  # type: ignore[attr-defined]
    with pytest.raises(OutputError, match=r"needs 0 MiB more, but its disk has 0 MiB left"):
        pack(folder, tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


def test_what_does_not_read_back_is_packed_again(
    folder: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = packing._write_shard

    def write_badly(path: Path, *arguments: object) -> object:
        file = write(path, *arguments)  # type: ignore[arg-type]
        if path.name == "val-000000.tar":
            damage(path, 600)
        return file

    monkeypatch.setattr(packing, "_write_shard", write_badly)
    with pytest.raises(DataError, match=r"val-000000.tar .*; the same command packs them again"):
        pack(folder, tmp_path / "shards", images_per_shard=7)
    assert not (tmp_path / "shards").exists()
    monkeypatch.undo()
    assert pack(folder, tmp_path / "shards", images_per_shard=7).resumed == 6
    assert contents(tmp_path / "shards") == contents(packed)


def damage(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_every_damage_is_found(folder: Path, packed: Path, copy: Path) -> None:
    meta = PackedMeta.read(copy)

    def fault(sources: bool = False) -> str:
        with pytest.raises(DataError, match=r"not as packed|damaged") as caught:
            require_faultless(copy, meta, open_folders(folder) if sources else None)
        return str(caught.value)

    require_faultless(copy, meta, open_folders(folder))
    shard = copy / "train-000001.tar"
    for position in (600, 20, -1, 512 * 5 + 3):  # in an image, a header, the end, anywhere
        damage(shard, position)
        text = fault()
        assert text.startswith(f"1 of 7 shards of {copy} are not as packed: train-000001.tar")
        damage(shard, position)
    shutil.copy(copy / "train-000002.tar", shard)
    assert "train-000001.tar" in fault()
    shard.unlink()
    damage(copy / "val-000000.tar", 600)
    assert "2 of 7" in (text := fault())
    assert "train-000001.tar is missing; and 1 more: val-000000.tar" in text
    shutil.copy(packed / "train-000001.tar", shard)
    shutil.copy(packed / "val-000000.tar", copy)
    require_faultless(copy, meta)
    damage(copy / "train.index.npy", -3)
    assert "train.index.npy is damaged" in fault()


def test_a_shard_with_a_right_hash_is_compared_with_the_folder(folder: Path, packed: Path, tmp_path: Path) -> None:
    changed = Path(shutil.copytree(folder, tmp_path / "photos"))
    name = changed / "val/cat/1.png"
    damage(name, 40)
    with pytest.raises(DataError, match=rf"val-000000.tar has other bytes than {name}"):
        require_faultless(packed, PackedMeta.read(packed), open_folders(changed))
    (changed / "val/cat/3.png").write_bytes(name.read_bytes())
    with pytest.raises(DataError, match=r"other images than were packed into .*: 1 more, such as cat/3.png"):
        require_faultless(packed, PackedMeta.read(packed), open_folders(changed))


def test_training_notices_shards_that_are_not_those_of_the_index(packed: Path, copy: Path) -> None:
    source = PackedSource(copy, "train")
    first, second = ((copy / f"train-00000{number}.tar") for number in (0, 1))
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    expected = everything(PackedSource(packed, "train"))
    exchanged = {index for index in range(len(source)) if "train-000000.tar" in source.name(index)}
    assert len(exchanged) == 7
    for index in range(len(source)):
        if index in exchanged:
            with pytest.raises(DataError, match="the shard is not the one that was packed; visionmlp pack --verify"):
                source.read(index)
        else:
            assert source.read(index).read() == expected[index][0]
    first.write_bytes(content[:-512])
    with pytest.raises(DataError, match=r"train-000000.tar has \d+ bytes and had \d+; copy it again"):
        PackedSource(copy, "train")
    first.unlink()
    with pytest.raises(DataError, match=r"train-000000.tar is missing"):
        open_training_data(str(copy))
    (copy / META).write_text("{}")
    with pytest.raises(DataError, match=r"cannot read .*shards.json: it is damaged"):
        open_training_data(str(copy))


def test_a_pack_opens_without_reading_a_shard(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tarfile, "open", lambda *_, **__: pytest.fail("a shard is read"))
    opened: list[Path] = []
    original = Path.open
    monkeypatch.setattr(
        Path, "open", lambda path, *rest, **more: (opened.append(path), original(path, *rest, **more))[1]
    )
    train, _ = open_training_data(str(packed))
    train.summary()
    assert [path for path in opened if path.suffix == ".tar"] == []
    train.read(3)
    assert len([path for path in opened if path.suffix == ".tar"]) == 1


@pytest.mark.parametrize(
    ("output", "error", "message"),
    [
        ("photos/train/shards", InvalidConfig, "lies in .*, which it would change"),
        ("photos", InvalidConfig, "lies in .*, which it would change"),
        (".", InvalidConfig, "lies in the output"),
        ("full", OutputError, "full exists and is no pack"),
        ("file", OutputError, "file exists and is no pack"),
        ("file/shards", OutputError, "cannot write .*: File exists"),
    ],
)
def test_outputs_that_would_cost_something_are_refused(
    folder: Path, tmp_path: Path, output: str, error: type[Exception], message: str
) -> None:
    photos = shutil.copytree(folder, tmp_path / "photos")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(error, match=message):
        pack(photos, tmp_path / output)
    assert contents(tmp_path) == before


def test_another_pack_is_not_replaced_and_the_same_is_checked(folder: Path, copy: Path) -> None:
    before = contents(copy)
    for options in ({"images_per_shard": 8}, {"images_per_shard": 7, "seed": 1}):
        with pytest.raises(OutputError, match="holds a pack of other images or options"):
            pack(folder, copy, **options)
    assert not pack(folder, copy, images_per_shard=7).new
    assert contents(copy) == before
    damage(copy / "train-000000.tar", 600)
    with pytest.raises(DataError, match="not as packed"):
        pack(folder, copy, images_per_shard=7)
    with pytest.raises(DataError, match="is packed already"):
        pack(copy, copy.with_name("twice"))


def test_folders_that_training_refuses_are_not_packed(tmp_path: Path) -> None:
    root = write_images(tmp_path / "data", {"train/a": 2, "train/b": 2, "train/c": 0, "val/a": 1})
    with pytest.raises(DataError, match="no image in class folder 'c'"):
        pack(root, tmp_path / "shards")
    (root / "train/c").rmdir()
    write_images(root, {"val/zebra": 1})
    with pytest.raises(DataError, match="class folder 'zebra', which is none of the 2 classes"):
        pack(root, tmp_path / "shards")
    shutil.rmtree(root / "val/zebra")
    (root / "train/a/dead.png").symlink_to("nowhere.png")
    with pytest.raises(DataError, match=r"cannot read .*dead.png: No such file .*; repair or remove it"):
        pack(root, tmp_path / "shards")
    for options in ({"images_per_shard": 0}, {"seed": -1}):
        with pytest.raises(InvalidConfig, match="must"):
            pack(root, tmp_path / "shards", **options)
    with pytest.raises(DataError, match="is no folder"):
        pack(tmp_path / "nowhere", tmp_path / "shards")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_class_folders_alone_are_evaluated_as_a_whole(tmp_path: Path) -> None:
    root = write_images(tmp_path / "data", {"a": 2, "b": 3})
    pack(root, tmp_path / "shards")
    ours, theirs = (open_evaluation_data(str(tmp_path / name), class_names=["b", "a"]) for name in ("shards", "data"))
    assert everything(ours) == everything(theirs)
    with pytest.raises(DataError, match="has no split train or training, but images"):
        open_training_data(str(tmp_path / "shards"))


def test_names_that_are_not_utf8_come_back(tmp_path: Path) -> None:
    root = write_images(tmp_path / "data", {"train/a": 1, "train/b": 1, "val/a": 1})
    os.rename(root / "train/a/000.png", os.fsencode(root / "train/a") + b"/\xff.png")
    pack(root, tmp_path / "shards")
    (ours, _), (theirs, _) = (open_training_data(str(tmp_path / name)) for name in ("shards", "data"))
    assert list(ours.keys()) == list(theirs.keys())  # type: ignore[attr-defined]
    assert ours.summary() == theirs.summary()
