import pytest
import torch

from visionmlp.ops.partition import (
    gather_windows,
    interleave_gathered_windows,
    interleave_windows,
    partition,
    scatter_windows,
    unpartition,
)
from visionmlp.ops.share_sets import mix_channels_first, mix_positions_first


@pytest.mark.parametrize(("size", "window"), [((8, 18), (4, 6)), ((6, 6), (6, 6)), ((9, 4), (3, 4))])
def test_windows_round_trip(size, window):
    x = torch.randn(2, 3, *size)
    windows = partition(x, window)
    assert torch.equal(unpartition(windows, size), x)
    assert torch.equal(
        windows[1], x[0, :, : window[0], window[1] : 2 * window[1]] if size[1] > window[1] else windows[1]
    )
    positions = x.permute(2, 3, 0, 1)
    assert torch.equal(scatter_windows(gather_windows(positions, window), size), positions)


def test_windows_must_tile():
    with pytest.raises(ValueError, match="4x5 windows do not tile a 8x18 map"):
        partition(torch.randn(1, 1, 8, 18), (4, 5))


def test_both_memory_orders_interleave_alike():
    x = torch.randn(2, 8, 8, 18)
    expected = unpartition(interleave_windows(partition(x, (4, 6)), 6, 4), (8, 18))
    gathered = gather_windows(x.permute(2, 3, 0, 1), (4, 6))
    got = scatter_windows(interleave_gathered_windows(gathered, 6, 4), (8, 18)).permute(2, 3, 0, 1)
    assert torch.equal(got, expected)
    assert not torch.equal(expected, x)
    for untouched in (interleave_windows(x, 1, 4), interleave_windows(x, 2, 8)):
        assert torch.equal(untouched, x)


@pytest.mark.parametrize("sets", [1, 2, 6])
def test_share_sets_are_interleaved_over_channels(sets):
    weight, x = torch.randn(sets, 5, 5).double(), torch.randn(3, 6, 5).double()
    expected = torch.stack([x[:, c] @ weight[c % sets].t() for c in range(6)], dim=1)
    torch.testing.assert_close(mix_channels_first(x, weight), expected)
    torch.testing.assert_close(mix_positions_first(x.permute(2, 0, 1), weight).permute(1, 2, 0), expected)
