"""Images of any size in windows: exact where a window is the model's own, averages where windows overlap."""

import pytest
import torch

from tests.contracts.conftest import TINY
from tests.models.levels import assert_levels, dense, image, tiny, windows_net
from visionmlp.models.dense import BackboneLevels, Tiled


@pytest.fixture(params=TINY)
def name(request):
    return request.param


def test_one_window_is_the_plain_model(name):
    net = Tiled(BackboneLevels(tiny(name)))
    with torch.no_grad():
        assert_levels(net(image()), net.net(image()), 0.0)


def test_tiles_are_their_windows_alone(name):
    net = Tiled(BackboneLevels(tiny(name)))
    x = image(2, (64, 96))
    with torch.no_grad():
        levels = net(x)
        for row in (0, 1):
            for column in (0, 1, 2):
                alone = net.net(x[..., 32 * row : 32 * (row + 1), 32 * column : 32 * (column + 1)])
                for level, one, stride in zip(levels, alone, net.feature_info.reduction(), strict=True):
                    size = 32 // stride
                    part = level[..., size * row : size * (row + 1), size * column : size * (column + 1)]
                    torch.testing.assert_close(part, one, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("taper", [False, True])
def test_overlaps_are_weighted_averages(taper):
    """Against a loop over windows and positions."""
    net = windows_net("mlpmixer_test", overlap=32, taper=taper)
    x = image(2, (64, 128))
    levels = net(x)
    windows = [net.net(x[..., left : left + 64]) for left in (0, 32, 64)]
    for level, *parts in zip(levels, *windows, strict=True):
        total, weights = torch.zeros_like(level), torch.zeros(16, dtype=torch.float64)
        for k, part in enumerate(parts):
            for i in range(8):
                weight = min(i + 1, 8 - i, 5) / 5 if taper else 1.0
                total[..., 4 * k + i] += weight * part[..., i]
                weights[4 * k + i] += weight
        # the vertical weights are the same for all windows and cancel
        torch.testing.assert_close(level, total / weights, rtol=1e-6, atol=1e-6)


def test_taper_makes_neighbours_meet():
    """Where a second window begins, the first still decides; without taper it decides by half."""
    x = image(1, (64, 96))
    for taper, share in ((False, 1 / 2), (True, 4 / 5)):
        net = windows_net("mlpmixer_test", overlap=32, taper=taper)
        first, second = (net.net(x[..., left : left + 64])[0] for left in (0, 32))
        expected = share * first[..., 4] + (1 - share) * second[..., 0]
        torch.testing.assert_close(net(x)[0][..., 4], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("overlap", [0, 16])
def test_shifts_by_a_step_shift_the_features(overlap):
    net = windows_net("resmlp_test", overlap=overlap)
    step = 64 - overlap
    x = image(1, (64, 64 + 3 * step))
    cells = step // 8
    with torch.no_grad():
        levels, shifted = net(x), net(x[..., step:])
    for level, moved in zip(levels, shifted, strict=True):
        # the first overlap of the shifted image has lost its left-hand window
        skip = overlap // 8
        torch.testing.assert_close(moved[..., skip:], level[..., cells + skip :], rtol=1e-12, atol=1e-12)


def test_any_size_at_most_one_position_beyond(name):
    net = Tiled(BackboneLevels(tiny(name)))
    for size in ((1, 1), (32, 33), (45, 70)):
        with torch.no_grad():
            levels = net(image(1, size))
        for level, stride, channels in zip(
            levels, net.feature_info.reduction(), net.feature_info.channels(), strict=True
        ):
            assert level.shape == (1, channels, -(-size[0] // stride), -(-size[1] // stride))


def test_zeros_fill_the_last_windows(name):
    net = Tiled(BackboneLevels(tiny(name)))
    x = image(1, (40, 50))
    filled = torch.zeros(1, 3, 64, 64, dtype=torch.float64)
    filled[..., :40, :50] = x
    with torch.no_grad():
        for cut, whole in zip(net(x), net(filled), strict=True):
            torch.testing.assert_close(cut, whole[..., : cut.shape[2], : cut.shape[3]], rtol=1e-12, atol=1e-12)


def test_windows_at_a_time_change_nothing_but_how_many_are_run():
    x = image(2, (64, 160))
    whole = windows_net("resmlp_test", overlap=32)
    few = windows_net("resmlp_test", overlap=32, max_windows=3)
    seen = []
    few.net.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[0]))
    assert_levels(few(x), whole(x))
    assert seen == [3, 3, 2]


def test_rows_of_a_batch_are_independent(name):
    net = dense(name, tile_overlap=0)
    x = image(3, (40, 50))
    with torch.no_grad():
        levels = net(x)
        x[1] = 7.0
        changed = net(x)
    for a, b in zip(levels, changed, strict=True):
        torch.testing.assert_close(a[[0, 2]], b[[0, 2]])
        assert (a[1] - b[1]).abs().max() > 1e-3


def test_no_images():
    levels = dense("resmlp_test", tile_overlap=0)(image(0, (40, 50)))
    assert [tuple(level.shape) for level in levels] == [(0, 16, 10, 13), (0, 16, 5, 7), (0, 16, 3, 4), (0, 16, 2, 2)]
