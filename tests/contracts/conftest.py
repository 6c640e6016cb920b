import pytest

import visionmlp
from tests.randomise import randomise

TINY = ("repmlpnet_test", "resmlp_test", "mlpmixer_test")


@pytest.fixture(params=TINY)
def name(request):
    return request.param


@pytest.fixture
def model(name):
    return randomise(visionmlp.create_model(name)).eval()
