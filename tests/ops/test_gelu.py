import pytest
import torch
from torch.nn import functional as F

from visionmlp.ops.gelu import gelu_


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_equals_pytorch_and_overwrites(approximate, dtype, bound):
    x = torch.cat([torch.randn(600_001, dtype=dtype) * 4, torch.tensor([-1e4, 1e4, 0.0], dtype=dtype)])
    expected = F.gelu(x, approximate=approximate)
    with torch.no_grad():
        got = gelu_(x, approximate)
    assert got.data_ptr() == x.data_ptr()
    torch.testing.assert_close(got, expected, rtol=bound, atol=bound)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_is_differentiable(approximate):
    x = torch.randn(9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: gelu_(y * 1.0, approximate), x)
