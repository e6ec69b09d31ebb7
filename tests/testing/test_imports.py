"""Without hypothesis."""

import sys

import pytest


def without(monkeypatch, module):
    """Make a module impossible to import, and the strategies not imported yet."""
    import vecrope.testing

    monkeypatch.setitem(sys.modules, module, None)
    for name in [name for name in sys.modules if name.startswith("vecrope.testing.strategies")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(vecrope.testing, "strategies", raising=False)
    return vecrope.testing


def test_a_missing_hypothesis_is_named(monkeypatch):
    testing = without(monkeypatch, "hypothesis")
    message = r"testing\.conversations needs hypothesis: pip install 'vecrope\[testing\]'$"
    with pytest.raises(ImportError, match=message):
        testing.conversations  # noqa: B018


def test_another_missing_module_is_passed_on(monkeypatch):
    testing = without(monkeypatch, "vecrope.testing.reference")
    with pytest.raises(ModuleNotFoundError, match=r"vecrope\.testing\.reference"):
        testing.conversations  # noqa: B018


def test_an_unknown_name_is_an_attribute_error():
    import vecrope.testing

    with pytest.raises(AttributeError, match=r"module 'vecrope\.testing' has no attribute 'soup'"):
        vecrope.testing.soup  # noqa: B018
