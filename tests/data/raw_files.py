"""PNG and TIFF files of kinds that Pillow reads but does not write."""

import struct
import zlib
from pathlib import Path

import numpy as np

GREY, COLOUR, GREY_ALPHA = 0, 2, 4
"""Colour types of PNG."""


def write_png(path: Path, samples: np.ndarray, *, bits: int, colour: int, transparent: tuple[int, ...] = ()) -> None:
    """Samples (H, W, C) of 1, 2, 4, 8 or 16 bits; ``transparent`` is a colour as stored, for tRNS."""
    rows = samples.reshape(len(samples), -1)
    if bits == 16:
        lines = rows.astype(">u2").view(np.uint8)
    else:
        planes = np.unpackbits(rows.astype(np.uint8)[..., None], axis=-1)[..., 8 - bits :]
        lines = np.packbits(planes.reshape(len(rows), -1), axis=1)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", samples.shape[1], len(samples), bits, colour, 0, 0, 0))]
    if transparent:
        chunks.append((b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)))
    chunks.append((b"IDAT", zlib.compress(b"".join(b"\0" + line.tobytes() for line in lines))))
    chunks.append((b"IEND", b""))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks
        )
    )


def write_tiff(
    path: Path, samples: np.ndarray, *, bits: int = 0, white_is_zero: bool = False, big_endian: bool = False
) -> None:
    """Grey (H, W) or colour (H, W, 3), of the array's type and depth; ``bits`` 12 packs two samples in three bytes."""
    order = ">" if big_endian else "<"
    height, width, channels = *samples.shape[:2], samples.shape[2] if samples.ndim == 3 else 1
    if bits == 12:
        high, low = samples.reshape(-1, 2).astype(np.int64).T
        data = np.stack([high >> 4, (high & 15) << 4 | low >> 8, low & 255], axis=1).astype(np.uint8).tobytes()
    else:
        bits = samples.itemsize * 8
        data = samples.astype(samples.dtype.newbyteorder(order)).tobytes()
    kind = {"u": 1, "i": 2, "f": 3}[samples.dtype.kind]
    photometric = 2 if channels == 3 else int(not white_is_zero)
    # tag, type (3: 16-bit, 4: 32-bit), values
    entries = [
        (256, 4, [width]),
        (257, 4, [height]),
        (258, 3, [bits] * channels),
        (259, 3, [1]),
        (262, 3, [photometric]),
        (273, 4, [8]),
        (277, 3, [channels]),
        (278, 4, [height]),
        (279, 4, [len(data)]),
        (339, 3, [kind] * channels),
    ]
    start = 8 + len(data)
    spill_at = start + 2 + 12 * len(entries) + 4
    directory, spill = struct.pack(order + "H", len(entries)), b""
    for tag, type_, values in entries:
        packed = struct.pack(order + {3: "H", 4: "I"}[type_] * len(values), *values)
        if len(packed) > 4:
            field = struct.pack(order + "I", spill_at + len(spill))
            spill += packed
        else:
            field = packed.ljust(4, b"\0")
        directory += struct.pack(order + "HHI", tag, type_, len(values)) + field
    header = (b"MM" if big_endian else b"II") + struct.pack(order + "HI", 42, start)
    path.write_bytes(header + data + directory + b"\0\0\0\0" + spill)
