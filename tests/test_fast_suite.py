"""What `-m "not slow"` leaves: every public function, and every method, is still used."""

import ast
from importlib import import_module
from inspect import isclass, isfunction
from pathlib import Path

import pytest

from tests.conftest import SLOW

TESTS = Path(__file__).parent
# These are slow, or skipped where there is no GPU, engine or wheel.
LEFT_OUT = {"slow", "gpu", "engines", "wheels", "releases"}
MODULES = (
    "vecrope",
    "vecrope.integrations.sglang",
    "vecrope.integrations.transformers",
    "vecrope.integrations.vllm",
    "vecrope.testing",
    "vecrope.testing.reference",
)


def is_slow(path, test=None):
    """Say whether a file's tests, or one of them, are among the slow ones."""
    names = [path, *path.parents] if test is None else [f"{path}::{test}"]
    return any(str(name) in SLOW for name in names)


def is_marked(statement):
    """Say whether a test is marked as slow, or as one that needs more than this machine has."""
    nodes = [node for mark in statement.decorator_list for node in ast.walk(mark)]
    return any(getattr(node, "attr", None) in LEFT_OUT for node in nodes)


def names_used(path, source):
    """Return the names that the file's tests use where they are not slow; imports do not count."""
    used = set()
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.FunctionDef) and (
            is_slow(path, statement.name) or is_marked(statement)
        ):
            continue
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "pytestmark":
            marks = {getattr(node, "attr", None) for node in ast.walk(statement.value)}
            if marks & LEFT_OUT:
                return set()
        for node in ast.walk(statement):
            used.add(getattr(node, "id", None) or getattr(node, "attr", None))
    return used


def public_functions():
    """Yield the name of each public function and, behind its class's, of each public method."""
    for module in map(import_module, MODULES):
        for name in module.__all__:
            value = getattr(module, name)
            if isfunction(value):
                yield name
            elif isclass(value) and value.__module__.startswith("vecrope."):
                members = (member for member in vars(value) if not member.startswith("_"))
                yield from (
                    f"{name}.{member}" for member in members if callable(getattr(value, member))
                )


FILES = {path.relative_to(TESTS): path for path in TESTS.rglob("test_*.py")}
USED = set().union(
    *(
        names_used(path, file.read_text(encoding="utf-8"))
        for path, file in FILES.items()
        if not is_slow(path)
    )
)


@pytest.mark.parametrize("name", dict.fromkeys(public_functions()))
def test_a_public_function_is_used_by_a_test_that_is_not_slow(name):
    assert name.rpartition(".")[2] in USED


def test_names_in_imports_slow_tests_and_those_that_need_a_gpu_do_not_count(monkeypatch):
    path = Path("test_x.py")
    source = """
from vecrope import imported
def test_fast():
    called(plan.method)
def test_slow():
    timed()
@pytest.mark.gpu
def test_on_a_card():
    launched()
"""
    monkeypatch.setattr(f"{__name__}.SLOW", ("test_x.py::test_slow", "folder"))
    assert {"called", "method"} <= names_used(path, source)
    assert not {"imported", "timed", "launched"} & names_used(path, source)
    assert names_used(path, f"{source}\npytestmark = pytest.mark.gpu\n") == set()
    assert is_slow(Path("folder/test_y.py"))
    assert not is_slow(path)


def test_every_slow_path_exists():
    for path, _, test in (name.partition("::") for name in SLOW):
        assert (TESTS / path).exists()
        assert not test or f"def {test}(" in (TESTS / path).read_text(encoding="utf-8")
