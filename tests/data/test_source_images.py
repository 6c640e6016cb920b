"""Whatever a dataset is kept in, its images are decoded by the same rules."""

import io
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from visionmlp.data import named
from visionmlp.data.decode import decode
from visionmlp.data.sources import open_evaluation_data

UPRIGHT = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5


def stored() -> bytes:
    """A 16-bit PNG on its side, which reads as white lying if its depth and EXIF are not heeded."""
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(np.rot90(UPRIGHT).astype(np.uint16) * 257).save(file, "PNG", exif=exif)
    return file.getvalue()


def folder(root: Path) -> dict[str, Any]:
    (root / "a").mkdir()
    (root / "a" / "0.png").write_bytes(stored())
    return {"data": str(root)}


def shard(root: Path) -> dict[str, Any]:
    with tarfile.open(root / "tiny-val-0.tar", "w") as archive:
        for name, content in (("0.png", stored()), ("0.cls", b"0")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return {"data": "wds/tiny", "root": root}


def imagenet(root: Path) -> dict[str, Any]:
    torch.save(({"n01440764": ("tench",)}, []), root / "meta.bin")
    (root / "val" / "n01440764").mkdir(parents=True)
    (root / "val" / "n01440764" / "0.JPEG").write_bytes(stored())
    return {"data": "torch/imagenet", "root": root}


def places(root: Path) -> dict[str, Any]:
    (root / "val_256").mkdir()
    (root / "val_256" / "0.jpg").write_bytes(stored())
    return {"data": "torch/places365", "root": root}


def hugging_face(_: Path) -> dict[str, Any]:
    return {"data": "hfds/pets", "download": True}


SOURCES = [folder, shard, imagenet, places, hugging_face]


class Reader:
    """What timm's reader of Hugging Face's datasets gives."""

    class_to_idx = {"cat": 0}  # noqa: RUF012

    def iter_targets(self) -> list[int]:
        return [0]

    def __getitem__(self, index: int) -> tuple[io.BytesIO, int]:
        return io.BytesIO(stored()), index


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_keeps_depth_and_orientation(source: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if source is hugging_face:
        monkeypatch.setattr(named, "require", lambda *_, **__: None)
        monkeypatch.setattr(named, "create_dataset", lambda *_, **__: SimpleNamespace(reader=Reader()))
    if source is places:  # its lists of files have to be of the published content
        from torchvision.datasets import Places365

        monkeypatch.setattr(Places365, "load_categories", lambda *_: (["/a/abbey"], {"/a/abbey": 0}))
        monkeypatch.setattr(Places365, "load_file_list", lambda *_: ([(str(tmp_path / "val_256" / "0.jpg"), 0)], [0]))
    images = open_evaluation_data(**source(tmp_path))
    for _ in range(2):
        assert np.array_equal(decode(images.read(0), "L", warn=pytest.fail), UPRIGHT)
