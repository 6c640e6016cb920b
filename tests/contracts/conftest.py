import pytest

import visionmlp
from tests.randomise import randomise

TINY = tuple(visionmlp.list_models(test=True))


@pytest.fixture(params=TINY)
def name(request):
    return request.param


@pytest.fixture
def model(name):
    return randomise(visionmlp.create_model(name)).eval()
