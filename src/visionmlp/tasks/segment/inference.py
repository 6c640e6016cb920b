"""From images to a class for each pixel: whole or by sliding windows, at several scales, mirrored; rows at a time.

Logits stay at the network's own resolution. What an image of its original size needs beyond that, resized logits,
probabilities and their means, exists for a few rows only, so memory does not grow with classes x pixels.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionmlp.deploy.session import SessionModel
from visionmlp.errors import InvalidConfig

_CHUNK = 2**24
"""Numbers in the rows that are computed at a time."""
_BATCH = 4
"""Windows that go through the network at a time."""

Logits = Callable[[Tensor], Tensor]
"""Images (B, C, H, W) to logits (B, K, h, w), of any resolution, which stand for all of the image."""


class Chunk(NamedTuple):
    """Some rows of an answer."""

    rows: slice
    log_probabilities: Tensor
    """(K, rows, W)."""
    predicted: Tensor
    """(rows, W), class numbers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inference:
    """How logits of an image are obtained."""

    mode: Literal["whole", "slide"] = "whole"
    window: tuple[int, int] = (512, 512)
    """Height and width of sliding windows."""
    stride: tuple[int, int] = (341, 341)
    """Pixels from one to the next."""
    flip: bool = False
    """Whether the mirrored image is looked at too."""
    least: int = 1
    """Pixels of the least side that the network takes; smaller images are padded."""

    def __post_init__(self) -> None:
        if min(*self.window, *self.stride) < 1:
            raise InvalidConfig(f"window and stride must be at least 1 pixel, got {self.window} and {self.stride}")
        if any(step > side for step, side in zip(self.stride, self.window, strict=True)):
            raise InvalidConfig(
                f"stride {self.stride} exceeds the window {self.window}, so pixels between windows would have no class"
            )

    def __call__(self, logits: Logits, views: Sequence[Tensor], size: tuple[int, int]) -> Iterator[Chunk]:
        """Classes of an image, some rows at a time, from the first to the last.

        The probabilities of all views, and of their mirror images, are averaged.

        Args:
            logits: the network.
            views: the image in each of the sizes that the network shall see, (1, C, H, W) each.
            size: height and width of the answer.
        """
        passes: list[Rows] = []
        for view in views:
            passes.append(_Resized(self._logits(logits, view), size))
            if self.flip:
                passes.append(_Mirrored(_Resized(self._logits(logits, view.flip(3)), size)))
        classes = passes[0].classes
        step = max(1, _CHUNK // (classes * size[1]))
        for start in range(0, size[0], step):
            end = min(start + step, size[0])
            if len(passes) == 1:
                log_probabilities = passes[0].rows(start, end).log_softmax(0)
            else:
                mean = sum(one.rows(start, end).softmax(0) for one in passes) / len(passes)
                assert isinstance(mean, Tensor)
                log_probabilities = mean.clamp(min=torch.finfo(mean.dtype).tiny).log()
            yield Chunk(slice(start, end), log_probabilities, log_probabilities.argmax(0))

    def _logits(self, logits: Logits, view: Tensor) -> "Rows":
        height, width = view.shape[2:]
        if self.mode == "whole":
            return self._of_windows(logits, [view], [(0, 0)], (max(height, self.least), max(width, self.least)))[0][2]
        tops, lefts = (
            window_starts(side, *sizes) for side, *sizes in zip((height, width), self.window, self.stride, strict=True)
        )
        corners = [(top, left) for top in tops for left in lefts]
        parts = [view[..., top : top + self.window[0], left : left + self.window[1]] for top, left in corners]
        return _Stitched(self._of_windows(logits, parts, corners, self.window), (height, width))

    @staticmethod
    def _of_windows(
        logits: Logits, parts: Sequence[Tensor], corners: Sequence[tuple[int, int]], size: tuple[int, int]
    ) -> "list[tuple[int, int, Rows]]":
        """Of parts of an image, each padded to a size by zeros on the right and at the bottom."""
        windows: list[tuple[int, int, Rows]] = []
        for first in range(0, len(parts), _BATCH):
            some = parts[first : first + _BATCH]
            padded = [F.pad(part, (0, size[1] - part.shape[3], 0, size[0] - part.shape[2])) for part in some]
            answers = logits(torch.cat(padded))
            answers = answers if answers.dtype == torch.float64 else answers.float()
            for part, answer, corner in zip(some, answers, corners[first : first + _BATCH], strict=True):
                whole = _Resized(_Plain(answer), size)
                windows.append((*corner, _Cropped(whole, (part.shape[2], part.shape[3]))))
        return windows


def segmenter_logits(network: nn.Module) -> Logits:
    """The logits of a `visionmlp.models.segmenter.Segmenter` at the head's own stride, or of an exported file.

    A file that takes multiples of a side only gets zeros on the right and at the bottom.
    """
    if not isinstance(network, SessionModel):
        return lambda images: network(images, auxiliary=True)[0]
    sides = network.session.metadata.sides

    def of_file(images: Tensor) -> Tensor:
        if sides is None:
            return network(images)
        height, width = images.shape[2:]
        padding = (0, sides.fitting(width) - width, 0, sides.fitting(height) - height)
        return network(F.pad(images, padding))[..., :height, :width]

    return of_file


def window_starts(side: int, window: int, stride: int) -> list[int]:
    """Where windows begin along a side: every ``stride`` pixels, the last one moved inwards to end with the side.

    mmsegmentation's grid.
    """
    count = max(side - window + stride - 1, 0) // stride + 1
    return [max(min(number * stride + window, side) - window, 0) for number in range(count)]


# ---- maps of logits, computed rows at a time


class Rows(Protocol):
    """Logits (K, H, W) of which any rows can be had."""

    classes: int
    size: tuple[int, int]

    def rows(self, start: int, end: int) -> Tensor:
        """(K, end - start, W)."""
        ...


class _Plain:
    """A tensor."""

    def __init__(self, logits: Tensor) -> None:
        self.logits, self.classes = logits, logits.shape[0]
        self.size = (logits.shape[1], logits.shape[2])

    def rows(self, start: int, end: int) -> Tensor:
        return self.logits[:, start:end]


class _Resized:
    """Bilinear to another size, corners not aligned, as ``F.interpolate`` does it at once."""

    def __init__(self, source: Rows, size: tuple[int, int]) -> None:
        self.source, self.classes, self.size = source, source.classes, size

    def rows(self, start: int, end: int) -> Tensor:
        if self.source.size == self.size:
            return self.source.rows(start, end)
        height = self.source.size[0]
        places = (torch.arange(start, end, dtype=torch.float64) + 0.5) * (height / self.size[0]) - 0.5
        places = places.clamp(min=0)
        upper = places.floor().long().clamp(max=height - 1)
        lower = (upper + 1).clamp(max=height - 1)
        first = int(upper[0])
        given = self.source.rows(first, int(lower[-1]) + 1)
        share = (places - upper).to(given)[:, None]
        upper, lower = ((index - first).to(given.device) for index in (upper, lower))
        between = given[:, upper] * (1 - share) + given[:, lower] * share
        if self.source.size[1] == self.size[1]:
            return between
        return F.interpolate(between[None], size=(end - start, self.size[1]), mode="bilinear", align_corners=False)[0]


class _Cropped:
    """The upper left part."""

    def __init__(self, source: Rows, size: tuple[int, int]) -> None:
        self.source, self.classes, self.size = source, source.classes, size

    def rows(self, start: int, end: int) -> Tensor:
        return self.source.rows(start, end)[..., : self.size[1]]


class _Mirrored:
    """Left and right exchanged."""

    def __init__(self, source: Rows) -> None:
        self.source, self.classes, self.size = source, source.classes, source.size

    def rows(self, start: int, end: int) -> Tensor:
        return self.source.rows(start, end).flip(2)


class _Stitched:
    """The mean of the windows that see a pixel.

    Args:
        windows: top, left and logits of each; together they cover all.
        size: of the map.
    """

    def __init__(self, windows: Sequence[tuple[int, int, Rows]], size: tuple[int, int]) -> None:
        self.windows, self.classes, self.size = windows, windows[0][2].classes, size

    def rows(self, start: int, end: int) -> Tensor:
        total: Tensor | None = None
        counts: Tensor | None = None
        for top, left, window in self.windows:
            first, last = max(start, top), min(end, top + window.size[0])
            if first >= last:
                continue
            part = window.rows(first - top, last - top)
            if total is None or counts is None:
                total = part.new_zeros(self.classes, end - start, self.size[1])
                counts = part.new_zeros(end - start, self.size[1])
            place = (slice(first - start, last - start), slice(left, left + window.size[1]))
            total[(slice(None), *place)] += part
            counts[place] += 1
        assert total is not None
        assert counts is not None
        return total / counts
