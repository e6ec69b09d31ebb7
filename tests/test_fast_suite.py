"""What `-m "not slow"` leaves: every public function is still called."""

import re
from inspect import isfunction
from pathlib import Path

import pytest

import vecrope
import vecrope.testing
from tests.conftest import SLOW

TESTS = Path(__file__).parent
# What names one test leaves the rest of its file.
LEFT_OUT = [TESTS / path for path in SLOW if "::" not in path]
SOURCES = {
    path: path.read_text(encoding="utf-8")
    for path in TESTS.rglob("test_*.py")
    if not any(path == slow or slow in path.parents for slow in LEFT_OUT)
}


def test_every_slow_path_exists():
    assert [path for path in LEFT_OUT if not path.exists()] == []
    for path, test in (name.split("::") for name in SLOW if "::" in name):
        assert f"def {test}(" in (TESTS / path).read_text(encoding="utf-8")


FUNCTIONS = [
    name
    for module in (vecrope, vecrope.testing)
    for name in module.__all__
    if isfunction(getattr(module, name))
]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_public_function_is_used_by_a_test_that_is_not_slow(name):
    assert [path for path, source in SOURCES.items() if re.search(rf"\b{name}\b", source)]
