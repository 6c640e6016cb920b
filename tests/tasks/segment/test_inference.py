"""Rows at a time give what is computed at once; windows cover every pixel; nothing of the padding remains."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from visionmlp.errors import InvalidConfig
from visionmlp.tasks.segment import inference as module
from visionmlp.tasks.segment.inference import Inference, window_starts

SIZES = [(1, 1), (63, 65), (64, 64), (65, 200), (199, 63), (20, 130)]


def constant(images: Tensor) -> Tensor:
    """Logits 0, 1, 2 everywhere, at a fourth of the size."""
    height, width = (max(1, side // 4) for side in images.shape[2:])
    return torch.arange(3.0, dtype=images.dtype).view(1, 3, 1, 1).expand(len(images), 3, height, width)


def convolution(stride: int = 4) -> Any:
    """A network whose logits depend on where it looks."""
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(3, 5, 7, padding=3, stride=stride).double()
    return lambda images: layer(images).detach()


def answer(inference: Inference, logits: Any, views: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """All log-probabilities (K, H, W); predictions are checked on the way."""
    chunks = list(inference(logits, views, size))
    for chunk in chunks:
        assert torch.equal(chunk.predicted, chunk.log_probabilities.argmax(0))
    assert [chunk.rows.start for chunk in chunks] == [0, *(chunk.rows.stop for chunk in chunks[:-1])]
    assert chunks[-1].rows.stop == size[0]
    return torch.cat([chunk.log_probabilities for chunk in chunks], 1)


@pytest.fixture(autouse=True)
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that every answer has several parts."""
    monkeypatch.setattr(module, "_CHUNK", 5 * 200 * 7)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stride", [43, 64])
@pytest.mark.parametrize("mode", ["whole", "slide"])
@pytest.mark.parametrize("original", [None, (31, 47)])
def test_a_constant_network_gives_the_constant(size: tuple[int, int], stride: int, mode: Any, original: Any) -> None:
    inference = Inference(mode=mode, window=(64, 64), stride=(stride, stride), flip=True, least=32)
    seen: list[tuple[int, int]] = []

    def logits(images: Tensor) -> Tensor:
        seen.append((images.shape[2], images.shape[3]))
        return constant(images)

    result = answer(inference, logits, [torch.zeros(1, 3, *size, dtype=torch.float64)], original or size)
    expected = torch.arange(3.0, dtype=torch.float64).log_softmax(0)[:, None, None].expand(3, *(original or size))
    torch.testing.assert_close(result, expected)
    if mode == "slide":
        assert set(seen) == {(64, 64)}
    else:
        assert set(seen) == {(max(32, size[0]), max(32, size[1]))}


@pytest.mark.parametrize("stride", [(65, 64), (64, 100)])
def test_windows_with_holes_between_them_are_refused(stride: tuple[int, int]) -> None:
    with pytest.raises(InvalidConfig, match="pixels between windows would have no class"):
        Inference(mode="slide", window=(64, 64), stride=stride)
    with pytest.raises(InvalidConfig, match="at least 1 pixel"):
        Inference(mode="slide", window=(64, 64), stride=(0, 64))


@pytest.mark.parametrize("side", [1, 63, 64, 65, 107, 108, 199])
@pytest.mark.parametrize("stride", [1, 43, 64])
def test_windows_cover_every_pixel(side: int, stride: int) -> None:
    starts = window_starts(side, 64, stride)
    assert {pixel for start in starts for pixel in range(start, start + 64)} >= set(range(side))
    assert max(starts) + 64 == max(side, 64)
    assert min(starts) == 0
    assert len(starts) == max(side - 64 + stride - 1, 0) // stride + 1


@pytest.mark.parametrize("size", [(40, 56), (41, 57)])
def test_a_whole_image_is_resized_as_at_once(size: tuple[int, int]) -> None:
    logits = convolution()
    view = torch.randn(1, 3, *size, dtype=torch.float64)
    result = answer(Inference(least=8), logits, [view], (77, 90))
    own = F.interpolate(logits(view), size=size, mode="bilinear", align_corners=False)
    expected = F.interpolate(own, size=(77, 90), mode="bilinear", align_corners=False)[0].log_softmax(0)
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)


def test_windows_average_their_logits() -> None:
    """mmsegmentation's way, at once: sums over counts, then the original size."""
    logits = convolution()
    view = torch.randn(1, 3, 50, 75, dtype=torch.float64)
    inference = Inference(mode="slide", window=(32, 40), stride=(20, 25))
    total, counts = torch.zeros(1, 5, 50, 75, dtype=torch.float64), torch.zeros(50, 75, dtype=torch.float64)
    for top in window_starts(50, 32, 20):
        for left in window_starts(75, 40, 25):
            part = logits(view[..., top : top + 32, left : left + 40])
            part = F.interpolate(part, size=(32, 40), mode="bilinear", align_corners=False)
            total[..., top : top + 32, left : left + 40] += part
            counts[top : top + 32, left : left + 40] += 1
    assert counts.max() >= 4
    expected = F.interpolate(total / counts, size=(61, 60), mode="bilinear", align_corners=False)[0].log_softmax(0)
    torch.testing.assert_close(answer(inference, logits, [view], (61, 60)), expected, rtol=1e-12, atol=1e-12)


def test_scales_and_flips_average_their_probabilities() -> None:
    logits = convolution()
    views = [torch.randn(1, 3, *size, dtype=torch.float64) for size in ((24, 32), (36, 48))]
    result = answer(Inference(flip=True), logits, views, (30, 40))
    passes = []
    for view in views:
        for turn in (lambda x: x, lambda x: x.flip(3)):
            given = F.interpolate(logits(turn(view)), size=view.shape[2:], mode="bilinear", align_corners=False)
            given = F.interpolate(given, size=(30, 40), mode="bilinear", align_corners=False)
            passes.append(turn(given.softmax(1)))
    expected = torch.stack(passes).mean(0)[0]
    torch.testing.assert_close(result.exp(), expected, rtol=1e-12, atol=1e-12)
    # neither the mean of logits nor a forgotten mirror image
    single = answer(Inference(flip=False), logits, views, (30, 40)).exp()
    assert (single - expected).abs().max() > 1e-3


def test_memory_does_not_grow_with_classes_times_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """What exists at a time: no tensor as large as all probabilities."""
    from torch.utils._python_dispatch import TorchDispatchMode

    monkeypatch.setattr(module, "_CHUNK", 2**19)
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for value in result if isinstance(result, (tuple, list)) else [result]:
                if isinstance(value, Tensor):
                    largest = max(largest, value.numel())
            return result

    classes, size = 150, (128, 256)
    view = torch.zeros(1, 3, *size)
    inference = Inference(mode="slide", window=(64, 64), stride=(43, 43))
    with Watch():
        for chunk in inference(lambda images: images.new_zeros(len(images), classes, 16, 16), [view], size):
            assert chunk.predicted.shape[1] == 256
    assert largest <= 2**19 + 4 * 150 * 16 * 16 < classes * size[0] * size[1] / 5
