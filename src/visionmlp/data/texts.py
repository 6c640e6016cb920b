"""Many short texts in little memory, such as the names of a million images."""

import os
from collections.abc import Iterable, Iterator

import numpy as np


class Texts:
    """Texts by index, kept as one string of bytes and where each ends.

    Loader processes share it: reading writes to no counter of references, as it would in a list of a million strings.
    File names that are not UTF-8 come back as they were.

    Args:
        joined: all texts one behind the other, as bytes of the file system's encoding.
        ends: where each ends, uint64.
    """

    def __init__(self, joined: bytes, ends: np.ndarray) -> None:
        self.joined, self.ends = joined, ends

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Texts":
        """Take texts one by one."""
        joined, ends = bytearray(), []
        for text in texts:
            joined += os.fsencode(text)
            ends.append(len(joined))
        return cls(bytes(joined), np.array(ends, dtype=np.uint64))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        start = int(self.ends[index - 1]) if index else 0
        return os.fsdecode(self.joined[start : int(self.ends[index])])

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))
