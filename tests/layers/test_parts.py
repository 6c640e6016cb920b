"""What eager inference computes in parts equals what it computes at once."""

import pytest
import torch

import visionmlp
from tests.randomise import randomise
from visionmlp.layers import channel_mlp, token_mixing
from visionmlp.models import stage


@pytest.mark.parametrize("name", visionmlp.list_models(test=True))
@torch.inference_mode()
def test_parts_of_batches_and_maps(name, monkeypatch):
    deployed = visionmlp.reparameterize(randomise(visionmlp.create_model(name)).eval())
    images = torch.randn(5, 3, 32, 32)
    whole = deployed(images)
    calls = []
    monkeypatch.setattr(channel_mlp, "_HIDDEN_PART", 1000)
    monkeypatch.setattr(stage, "_PART", 4000)
    monkeypatch.setattr(token_mixing, "images_at_once", lambda x: calls.append(x.shape) or 2)
    torch.testing.assert_close(deployed(images), whole, rtol=1e-4, atol=1e-5)
    assert bool(calls) == name.startswith(("resmlp", "mlpmixer", "sparsemlp"))
    # the last part is an image alone
    assert all(len(shape) == 4 and shape[2] == 5 for shape in calls)
