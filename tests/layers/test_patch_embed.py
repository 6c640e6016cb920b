"""Deploy forms of embeddings keep the geometry of their convolution."""

import pytest
import torch
from torch import nn

from tests.randomise import randomise
from visionmlp.layers.fusible import reparameterize
from visionmlp.layers.patch_embed import ConvEmbed


@pytest.mark.parametrize("layout", ["BCHW", "BHWC"])
@pytest.mark.parametrize("geometry", [{"dilation": 2}, {"padding_mode": "reflect"}, {"padding_mode": "circular"}])
def test_a_convolution_that_a_user_put_in(layout, geometry):
    embed = ConvEmbed(3, 8, 3, stride=2, padding=1, layout=layout, batch_norm=True)
    embed.proj = nn.Conv2d(3, 8, 3, stride=2, padding=1, **geometry)
    randomise(embed).eval()
    images = torch.randn(2, 3, 17, 17)
    torch.testing.assert_close(reparameterize(embed)(images), embed(images), rtol=1e-4, atol=1e-5)
