import numpy as np
import pytest

from visionmlp.deploy.graphs import ExportError
from visionmlp.deploy.in_openvino import _right_requests


class _Stream:
    """A request whose stream adds ``error`` to what it computes."""

    def __init__(self, error: float) -> None:
        self.error = error

    def start_async(self, inputs: list[np.ndarray], *, share_inputs: bool) -> None:
        assert share_inputs
        self.data = inputs[0] + self.error

    def wait(self) -> None: ...

    def get_output_tensor(self, index: int) -> "_Stream":
        assert index == 0
        return self


@pytest.mark.parametrize("known", [True, False])
def test_streams_that_disagree_are_compiled_again(known: bool) -> None:
    part = np.ones((2, 3), np.float32)
    expected = part if known else None
    right, wrong = [_Stream(0), _Stream(1e-6)], [_Stream(0), _Stream(0.8)]
    assert _right_requests(right, pytest.fail, part, expected) is right
    # the model's fault, which no compilation mends
    broken, nothing = [_Stream(np.nan), _Stream(np.nan)], part * np.nan
    assert _right_requests(broken, pytest.fail, part, nothing if known else None) is broken
    compilations = iter([wrong, right])
    assert _right_requests(wrong, lambda: next(compilations), part, expected) is right
    with pytest.raises(ExportError, match="different results"):
        _right_requests(wrong, lambda: wrong, part, expected)


def test_streams_that_are_wrong_alike_are_compiled_again() -> None:
    part = np.ones((2, 3), np.float32)
    right, wrong = [_Stream(0), _Stream(0)], [_Stream(0.8), _Stream(0.8)]
    assert _right_requests(wrong, lambda: right, part, part) is right
