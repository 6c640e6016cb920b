"""Networks of feature levels, their images, and how levels are compared."""

import torch

import visionmlp
from tests.randomise import randomise
from visionmlp.models.dense import BackboneLevels, Tiled

STRIDES = [4, 8, 16, 32]


def image(batch=2, size=(32, 32), dtype=torch.float64, seed=1):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def tiny(name, **fields):
    return randomise(visionmlp.create_model(name, **fields)).double().eval()


def dense(name, **options):
    return randomise(visionmlp.dense_features(name, **options)).double().eval()


def windows_net(name, **options):
    return Tiled(BackboneLevels(tiny(name, img_size=64)), **options).double().eval()


def assert_levels(got, expected, tolerance=1e-12):
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
