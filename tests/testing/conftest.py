import pytest

from tests.testing.glm4v import CONVENTIONS


@pytest.fixture(params=CONVENTIONS)
def convention(request):
    return CONVENTIONS[request.param]
