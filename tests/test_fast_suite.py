"""What `-m "not slow"` leaves: every public function is still called."""

import re
from pathlib import Path

import pytest

import vecrope
import vecrope.testing
from tests.conftest import SLOW

TESTS = Path(__file__).parent
LEFT_OUT = [TESTS / path for path in SLOW]
SOURCES = {
    path: path.read_text(encoding="utf-8")
    for path in TESTS.rglob("test_*.py")
    if not any(path == slow or slow in path.parents for slow in LEFT_OUT)
}


def test_every_slow_path_exists():
    assert [path for path in LEFT_OUT if not path.exists()] == []


@pytest.mark.parametrize("name", [*vecrope.__all__, *vecrope.testing.__all__])
def test_a_public_name_is_used_by_a_test_that_is_not_slow(name):
    assert [path for path, source in SOURCES.items() if re.search(rf"\b{name}\b", source)]
