"""Algebra of folding, by property: for any shapes, not for the ones we use."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from tests.randomise import randomise
from visionmlp.ops.fold import affine_of_linear, batchnorm_affine, conv_matrix, linear_of_affine


@settings(max_examples=40, deadline=None)
@given(
    groups=st.integers(1, 4),
    per_group=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    kernel=st.tuples(st.sampled_from([1, 3, 5, 7]), st.sampled_from([1, 3, 5])),
    size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
)
def test_matrix_equals_convolution_that_keeps_the_map(groups, per_group, kernel, size):
    out_channels, in_channels = groups * per_group[0], groups * per_group[1]
    weight = torch.randn(out_channels, per_group[1], *kernel, dtype=torch.float64)
    x = torch.randn(2, in_channels, *size, dtype=torch.float64)
    expected = F.conv2d(x, weight, padding=(kernel[0] // 2, kernel[1] // 2), groups=groups)
    matrix = conv_matrix(weight, size, groups=groups)
    assert matrix.shape == (groups, per_group[0] * size[0] * size[1], per_group[1] * size[0] * size[1])
    got = (torch.block_diag(*matrix) @ x.flatten(1).t()).t().view_as(expected)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(kernel=st.integers(1, 4), padding=st.integers(0, 4), size=st.tuples(st.integers(2, 6), st.integers(2, 6)))
def test_matrix_equals_convolution_of_any_padding(kernel, padding, size):
    weight = torch.randn(2, 3, kernel, kernel, dtype=torch.float64)
    x = torch.randn(1, 3, *size, dtype=torch.float64)
    if min(size) + 2 * padding < kernel:
        with pytest.raises(ValueError, match="leaves nothing"):
            conv_matrix(weight, size, padding=padding)
        return
    expected = F.conv2d(x, weight, padding=padding)
    got = conv_matrix(weight, size, padding=padding)[0] @ x.flatten()
    torch.testing.assert_close(got, expected.flatten(), rtol=0, atol=1e-12)


def test_matrix_is_differentiable():
    weight = torch.randn(2, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: conv_matrix(w, (3, 4), groups=2), weight)


def test_even_kernels_and_wrong_groups_are_named():
    with pytest.raises(ValueError, match="2x3 kernel cannot keep"):
        conv_matrix(torch.randn(1, 1, 2, 3), (4, 4))
    with pytest.raises(ValueError, match="2 groups do not divide 3"):
        conv_matrix(torch.randn(3, 1, 3, 3), (4, 4), groups=2)


@pytest.mark.parametrize("affine", [True, False])
def test_batchnorm_is_an_affine_map(affine):
    norm = randomise(nn.BatchNorm2d(5, affine=affine).double()).eval()
    x = torch.randn(2, 5, 3, 3, dtype=torch.float64)
    scale, shift = batchnorm_affine(norm)
    torch.testing.assert_close(norm(x), x * scale[:, None, None] + shift[:, None, None])
    with pytest.raises(ValueError, match="running statistics"):
        batchnorm_affine(nn.BatchNorm2d(5, track_running_stats=False))


@pytest.mark.parametrize("bias", [True, False])
def test_affines_fold_into_linear_layers(bias):
    layer = nn.Linear(4, 6, bias=bias).double()
    x, scale, shift = torch.randn(3, 4).double(), torch.randn(4).double(), torch.randn(4).double()
    weight, folded = linear_of_affine(layer.weight, layer.bias, scale, shift)
    torch.testing.assert_close(F.linear(x, weight, folded), layer(x * scale + shift))
    post, offset = torch.randn(6).double(), torch.randn(6).double()
    weight, folded = affine_of_linear(layer.weight, layer.bias, post, offset)
    torch.testing.assert_close(F.linear(x, weight, folded), layer(x) * post + offset)
