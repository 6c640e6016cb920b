"""A dataset as it comes from a bad disk and many hands: every kind of bad file, odd but good ones, and litter."""

import dataclasses
import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageChops

UMLAUT, CAT = "gr\u00fcn", "\u732b"
CLASSES = (UMLAUT, CAT)
LATIN_1, BAD_LATIN_1 = os.fsdecode(b"caf\xe9.png"), os.fsdecode(b"cass\xe9.png")
PLAIN = 7
"""Ordinary images of each class to train on; two to evaluate on."""
BOMB_SIDE = 60_000


@dataclasses.dataclass(frozen=True)
class Hostile:
    """What a correct reader finds."""

    root: Path
    bad: dict[str, str]
    """Part of the reason, by path below the root."""
    good: dict[str, dict[str, int]]
    """Images that can be read, by split and class."""
    leak: tuple[str, str]
    """Two paths with the same pixels, in training and evaluation."""
    twins: tuple[str, str]
    """Two paths with the same pixels, in training."""

    @property
    def bad_paths(self) -> list[str]:
        return sorted(str(self.root / name) for name in self.bad)


def pixels(seed: int, side: int = 36) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def bomb() -> bytes:
    """A PNG of a few hundred bytes that says it has 3.6 thousand million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", BOMB_SIDE, BOMB_SIDE, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(100_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def _odd_but_good(seed: int) -> dict[str, bytes]:
    image = Image.fromarray(pixels(seed))
    inks = image.convert("CMYK")
    others = Image.fromarray(pixels(seed + 6)).convert("CMYK")
    inverted = encoded(ImageChops.invert(others), "JPEG")  # Pillow inverts too, and says so in Adobe's marker
    marker = inverted.index(b"\xff\xee\x00\x0eAdobe")
    frames = {"save_all": True, "append_images": [Image.fromarray(pixels(seed + 1))]}
    return {
        "cmyk adobe.jpg": encoded(inks, "JPEG"),
        "cmyk plain.jpg": inverted[:marker] + inverted[marker + 16 :],
        "16 bit.png": encoded(Image.fromarray(pixels(seed)[..., 0].astype(np.uint16) * 257), "PNG"),
        "palette.png": encoded(image.quantize(16), "PNG", transparency=3),
        "grey.png": encoded(image.convert("L"), "PNG"),
        "animated.gif": encoded(image, "GIF", **frames),
        "animated.webp": encoded(image, "WEBP", lossless=True, **frames),
        LATIN_1: encoded(Image.fromarray(pixels(seed + 2)), "PNG"),
        "\u5199\u771f \U0001f408.png": encoded(Image.fromarray(pixels(seed + 3)), "PNG"),
        # two files, but on disks of macOS and Windows
        "case.png": encoded(Image.fromarray(pixels(seed + 4)), "PNG"),
        "CASE.png": encoded(Image.fromarray(pixels(seed + 5)), "PNG"),
    }


def _bad() -> dict[str, tuple[bytes, str]]:
    image = Image.fromarray(pixels(1000))
    png, jpeg = bytearray(encoded(image, "PNG")), encoded(image, "JPEG")
    middle = png.index(b"IDAT") + 200
    png[middle : middle + 40] = bytes(40)
    return {
        "corrupt.png": (bytes(png), "broken|Decompress|incorrect|truncated|unrecognized"),
        "truncated.jpg": (jpeg[: -len(jpeg) // 3], "truncated"),
        "zero.png": (b"", "not an image, or of an unknown format"),
        "page.jpg": (b"<html>404 Not Found</html>", "not an image, or of an unknown format"),
        "bomb.png": (bomb(), "3600000000 pixels"),
        BAD_LATIN_1: (bytes(300), "not an image, or of an unknown format"),
    }


def _litter(folder: Path) -> None:
    picture = encoded(Image.fromarray(pixels(2000)), "PNG")
    (folder / "__MACOSX").mkdir()
    (folder / "folder.png").mkdir()
    for name in (".hidden.png", "._case.png", "__MACOSX/._case.png", "__MACOSX/case.png", "Thumbs.db", "notes.txt"):
        (folder / name).write_bytes(picture)
    (folder / "around").symlink_to(folder.parent)  # the split again, without end


def write_hostile(root: Path) -> Hostile:
    """Write the dataset; bad files lie in class UMLAUT, of training and of evaluation."""
    good = {split: dict.fromkeys(CLASSES, count) for split, count in (("train", PLAIN), ("val", 2))}
    bad: dict[str, str] = {}
    for place, split in enumerate(good):
        for number, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for image in range(good[split][name]):
                seed = 500 * place + 100 * number + image
                Image.fromarray(pixels(seed)).save(folder / f"{image}.png")
        folder = root / split / UMLAUT
        odd = _odd_but_good(3000 + 100 * place)
        for name, data in odd.items():
            (folder / name).write_bytes(data)
        good[split][UMLAUT] += len(odd)
        for name, (data, reason) in _bad().items():
            (folder / name).write_bytes(data)
            bad[f"{split}/{UMLAUT}/{name}"] = reason
        (folder / "dangling.png").symlink_to(root / "nowhere.png")
        bad[f"{split}/{UMLAUT}/dangling.png"] = "no such file"
        (folder / "loop.png").symlink_to("loop.png")
        bad[f"{split}/{UMLAUT}/loop.png"] = "symbolic links"
        locked = folder / "locked.png"
        if os.getuid():
            locked.touch(mode=0)
        else:  # root may read everything
            locked.symlink_to("/dev/null/nothing.png")
        bad[f"{split}/{UMLAUT}/locked.png"] = "Permission denied|Not a directory"
        _litter(folder)
    leak = (f"train/{CAT}/0.png", f"val/{CAT}/leak.png")
    twins = (f"train/{CAT}/0 twin.bmp", f"train/{CAT}/1.png")
    Image.open(root / leak[0]).save(root / leak[1])
    Image.open(root / twins[1]).save(root / twins[0])
    good["val"][CAT] += 1
    good["train"][CAT] += 1
    return Hostile(root, bad, good, leak, twins)
