"""Without hypothesis."""

import subprocess
import sys

import pytest

from tests.testing.searching import run

WITHOUT_HYPOTHESIS = "import sys; sys.modules['hypothesis'] = None\n"


def test_only_the_strategies_load_hypothesis():
    assert run(
        """
        import sys, vecrope.testing.reference
        from vecrope.testing import Prompt, assert_matches
        print("hypothesis" in sys.modules)
        from vecrope.testing import conversations
        print("hypothesis" in sys.modules)
        """
    ).split() == ["False", "True"]


def test_the_library_does_not_load_its_testing():
    assert run("import sys, vecrope; print('vecrope.testing' in sys.modules)").split() == ["False"]


def test_a_missing_hypothesis_is_named():
    with pytest.raises(subprocess.CalledProcessError) as failure:
        run(f"{WITHOUT_HYPOTHESIS}from vecrope.testing import token_soup")
    message = "ImportError: vecrope.testing.token_soup needs hypothesis: pip install 'vecrope[testi"
    assert message in failure.value.stderr


def without(monkeypatch, module):
    """Make a module impossible to import, and the strategies not imported yet."""
    import vecrope.testing

    monkeypatch.setitem(sys.modules, module, None)
    for name in [name for name in sys.modules if name.startswith("vecrope.testing.strategies")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(vecrope.testing, "strategies", raising=False)
    return vecrope.testing


def test_a_missing_hypothesis_is_named_in_this_process(monkeypatch):
    testing = without(monkeypatch, "hypothesis")
    with pytest.raises(ImportError, match=r"needs hypothesis: pip install 'vecrope\[testing\]'"):
        testing.conversations  # noqa: B018


def test_another_missing_module_is_passed_on(monkeypatch):
    testing = without(monkeypatch, "vecrope.testing.reference")
    with pytest.raises(ModuleNotFoundError, match=r"vecrope\.testing\.reference"):
        testing.conversations  # noqa: B018


def test_an_unknown_name_is_an_attribute_error():
    import vecrope.testing

    with pytest.raises(AttributeError, match=r"module 'vecrope\.testing' has no attribute 'soup'"):
        vecrope.testing.soup  # noqa: B018
