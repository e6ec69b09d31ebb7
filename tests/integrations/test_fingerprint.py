"""Fingerprints: what changes them, and what does not."""

import ast
import functools
import inspect

import pytest

from vecrope.integrations.fingerprint import definition_of, fingerprint, fingerprint_of

FUNCTION = "def f(self, x):\n    y = x + 1\n    return self.g(y)\n"


def of(*sources):
    return fingerprint_of(ast.parse(source).body[0] for source in sources)


@pytest.mark.parametrize(
    "same",
    [
        pytest.param(FUNCTION.replace("x + 1", "(x  +  1)  # one more"), id="formatting"),
        pytest.param(
            FUNCTION.replace(":\n", ':\n    """Say what it does."""\n', 1), id="docstring"
        ),
        pytest.param(FUNCTION.replace("self, x)", "self, x: int) -> list[int]"), id="annotations"),
        pytest.param(FUNCTION.replace("y =", "y: int ="), id="an annotated variable"),
    ],
)
def test_what_does_not_count(same):
    assert of(same) == of(FUNCTION)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(FUNCTION.replace("1", "2"), id="a number"),
        pytest.param(FUNCTION.replace("1", "1.0"), id="its type"),
        pytest.param(FUNCTION.replace("1", "True"), id="a number that is equal"),
        pytest.param(FUNCTION.replace("+", "-"), id="an operator"),
        pytest.param(FUNCTION.replace("self.g", "self.h"), id="a name"),
        pytest.param(FUNCTION.replace("x):", "x=0):"), id="a default"),
        pytest.param("@decorate\n" + FUNCTION, id="a decorator"),
    ],
)
def test_what_counts(other):
    assert of(other) != of(FUNCTION)


def test_helpers_and_their_order_count():
    helper = "def g(self, y): return y\n"
    assert len({of(FUNCTION), of(FUNCTION, helper), of(helper, FUNCTION)}) == 3


def outer(x):
    return x + 1


@functools.wraps(outer)
def wrapper(x):
    return outer(x)


class Owner:
    def method(self):
        """Be the same wherever it is defined."""
        return self


def test_functions_are_read_where_they_are_defined():
    assert fingerprint(outer) == of("def outer(x): return x + 1")
    assert fingerprint(wrapper) == fingerprint(outer)
    assert fingerprint(Owner.method, outer) == of(
        "def method(self): return self", "def outer(x):\n  return x + 1"
    )


def test_a_function_whose_source_cannot_be_read_has_none(monkeypatch):
    scope = {}
    exec(FUNCTION, scope)
    for function in (scope["f"], len):
        assert fingerprint(outer, function) is None
    monkeypatch.setattr(inspect, "getsource", lambda _: "def f(:")
    assert fingerprint(outer) is None


def test_a_source_that_is_not_that_of_a_function_is_not_taken(monkeypatch):
    """Python 3.13 takes what follows `-c` for the source of what `exec` has made."""
    monkeypatch.setattr(inspect, "getsource", lambda _: "print(1)")
    assert fingerprint(of) is None
    with pytest.raises(OSError, match=r"the source of .* is not that of a function"):
        definition_of(of)
