"""Imports run one way: from the public face down to plain data."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import vecrope

PACKAGE = Path(vecrope.__file__).parent
# Each may import from those above it and from itself. The longest name that fits a module counts.
LAYERS = (
    ("vecrope.families", "vecrope.spec", "vecrope.inputs", "vecrope.registration"),
    ("vecrope.core", "vecrope.checks", "vecrope.prepare", "vecrope.sequences"),
    ("vecrope.forms",),
    ("vecrope.own_rules",),
    ("vecrope.plans",),
    ("vecrope.rope_index",),
    ("vecrope.collate", "vecrope.runner"),
    ("vecrope",),
    ("vecrope.integrations", "vecrope.testing", "vecrope.cli", "vecrope.__main__"),
)


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {
    module_name(path): path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))
}


def imported(source, known):
    """Return the known modules that a source imports, at its top or in a function."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & known
            found |= submodules or {node.module}
    return found & known


GRAPH = {name: imported(source, SOURCES.keys()) for name, source in SOURCES.items()}


def is_part(module, package):
    return module == package or module.startswith(f"{package}.")


def layer_of(module):
    """Return the number of a module's layer, 0 for plain data."""
    fits = [
        (len(name), number)
        for number, names in enumerate(LAYERS)
        for name in names
        if (module == name if name == "vecrope" else is_part(module, name))
    ]
    assert fits, f"{module} is in no layer"
    return max(fits)[1]


def reached(start, graph):
    """Return all modules that importing one loads."""
    found, pending = set(), [start]
    while pending:
        module = pending.pop()
        if module not in found:
            found.add(module)
            pending += graph[module]
    return found


def upwards(graph):
    return {
        (module, target)
        for module, targets in graph.items()
        for target in targets
        if layer_of(target) > layer_of(module)
    }


def between(graph, first, second):
    """Return the imports from one package to another, or to a part of one."""
    return {
        (module, target)
        for module, targets in graph.items()
        for target in targets
        if is_part(module, first) and is_part(target, second)
    }


def test_no_modules_import_each_other():
    TopologicalSorter(GRAPH).prepare()


def test_every_module_has_a_layer():
    assert {layer_of(module) for module in GRAPH} == set(range(len(LAYERS)))


def test_imports_run_down():
    assert upwards(GRAPH) == set()


def test_an_import_that_runs_up_is_seen():
    planted = {"vecrope.core.items": {"vecrope.plans.plan", "vecrope.spec"}}
    assert upwards(planted) == {("vecrope.core.items", "vecrope.plans.plan")}


def test_families_are_data_and_know_no_form():
    for module in GRAPH:
        if is_part(module, "vecrope.families"):
            outside = {name for name in reached(module, GRAPH) if name != "vecrope"}
            assert all(is_part(name, "vecrope.families") for name in outside), module
            assert "torch" not in imported(SOURCES[module], {"torch"})


TENSOR_CODE = ("core", "forms", "own_rules", "plans", "rope_index", "collate", "runner")


@pytest.mark.parametrize("name", TENSOR_CODE)
def test_tensor_code_imports_no_testing(name):
    assert between(GRAPH, f"vecrope.{name}", "vecrope.testing") == set()


@pytest.mark.parametrize(
    "name", [name for name in SOURCES if is_part(name, "vecrope.testing.reference")]
)
def test_a_reference_imports_no_tensor_code(name):
    loaded = reached(name, GRAPH)
    assert not [
        module
        for module in loaded
        if any(is_part(module, f"vecrope.{package}") for package in TENSOR_CODE)
    ]


def test_the_integrations_do_not_import_each_other():
    upstreams = ("sglang", "transformers", "vllm")
    for one in upstreams:
        for other in upstreams:
            if one != other:
                packages = (f"vecrope.integrations.{name}" for name in (one, other))
                assert between(GRAPH, *packages) == set()
