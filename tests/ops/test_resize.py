import pytest
import torch

from visionmlp.ops.fold import conv_matrix
from visionmlp.ops.resize import resize_grid, resize_token_inputs, resize_token_matrix, resize_token_outputs


def test_same_grid_changes_nothing():
    weight = torch.randn(2, 12, 12)
    assert torch.equal(resize_token_matrix(weight, (3, 4), (3, 4)), weight)


@pytest.mark.parametrize("new", [(5, 6), (2, 9), (7, 7)])
def test_an_average_over_tokens_stays_an_average(new):
    average = torch.full((12, 12), 1 / 12)
    count = new[0] * new[1]
    torch.testing.assert_close(resize_token_matrix(average, (3, 4), new), torch.full((count, count), 1 / count))


def test_a_smooth_field_is_sampled_where_it_should_be():
    rows, _ = torch.meshgrid(torch.arange(6.0), torch.arange(8.0), indexing="ij")
    resized = resize_grid((rows + 0.5).flatten(), (6, 8), (12, 16)).view(12, 16)
    inner = slice(3, -3)
    torch.testing.assert_close(resized[inner, 5], ((torch.arange(12) + 0.5) / 2)[inner])


def test_both_sides_are_resized_separately():
    weight = torch.randn(5, 12)
    assert resize_token_inputs(weight, (3, 4), (6, 8)).shape == (5, 48)
    assert resize_token_outputs(weight.t(), (3, 4), (6, 8)).shape == (48, 5)
    torch.testing.assert_close(
        resize_token_outputs(weight.t().contiguous(), (3, 4), (6, 8)) * 12 / 48,
        resize_token_inputs(weight, (3, 4), (6, 8)).t(),
    )


def test_a_local_pattern_stays_local():
    blur = conv_matrix(torch.full((1, 1, 3, 3), 1 / 9), (6, 6))[0]
    resized = resize_token_matrix(blur, (6, 6), (12, 12)).view(12, 12, 12, 12)
    row = resized[6, 6].abs()
    assert row[3:10, 3:10].sum() > 0.85 * row.sum()
    assert row[6, 6] > 5 * row[0, 0]


def test_wrong_token_count_is_named():
    with pytest.raises(ValueError, match="3x4 grid has 12 tokens, the tensor 10"):
        resize_grid(torch.randn(10), (3, 4), (6, 8))
