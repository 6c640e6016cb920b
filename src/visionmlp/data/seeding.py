"""Random draws as functions of where they happen, so that nothing about them has to be saved."""

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


def derive_seed(*parts: int) -> int:
    """One 32-bit seed from several non-negative integers, independent for any two different tuples."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


@contextlib.contextmanager
def seeded(*parts: int) -> Iterator[None]:
    """Seed the generators of Python, NumPy and PyTorch (CPU) inside the block and restore them behind it.

    timm's transforms draw from all three.
    """
    seed = derive_seed(*parts)
    python, numpy, pytorch = random.getstate(), np.random.get_state(), torch.default_generator.get_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (the transforms use this one)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.default_generator.set_state(pytorch)
