import ast
import re
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import vecrope

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(vecrope.__file__).parent
FILES = {
    path.relative_to(PACKAGE.parent).as_posix()
    for path in PACKAGE.rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
}


def run(code, *options, **settings):
    command = [sys.executable, *options, "-c", textwrap.dedent(code)]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, **settings
    ).stdout.split()


def module_name(file):
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


SOURCES = {
    module_name(file): (PACKAGE.parent / file).read_text(encoding="utf-8")
    for file in sorted(FILES)
    if file.endswith(".py")
}


def imports(source, *, only_at_import=False):
    """Return the modules that a source imports; in a function body, too, unless told otherwise."""
    found, pending = set(), [ast.parse(source)]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not followed"
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & SOURCES.keys()
            found |= submodules or {node.module}
        elif only_at_import and isinstance(node, (ast.FunctionDef, ast.Lambda)):
            continue
        pending += ast.iter_child_nodes(node)
    return found


def tops(modules):
    return {module.partition(".")[0] for module in modules}


# What is imported


STEPS = (
    "vecrope",
    "vecrope.integrations.sglang, vecrope.integrations.transformers, vecrope.integrations.vllm",
    "vecrope.__main__",
    "vecrope.testing",
    "vecrope.testing.strategies",
)
# One process for all, since each would import torch anew.
LOADED = """
    import contextlib, io, json, sys, torch
    before = set(sys.modules)
    for step in {steps}:
        exec(f"import {{step}}")
        if step == "vecrope.__main__":
            with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
                vecrope.__main__.main(["--help"])
        print(*sorted(set(sys.modules) - before), end=";")
"""


def foreign(modules):
    return tops(modules) - sys.stdlib_module_names


@pytest.fixture(scope="module")
def loaded():
    """Return the modules that are loaded after each step, besides torch and what it imports."""
    printed = " ".join(run(LOADED.format(steps=STEPS)))
    return [set(modules.split()) for modules in printed.split(";")[: len(STEPS)]]


def test_importing_the_library_loads_nothing_but_torch_and_itself(loaded):
    used = ("vecrope.testing", "vecrope.cli", "vecrope.integrations", "vecrope.forms.triton.kern")
    assert foreign(loaded[0]) == {"vecrope"}
    assert not [module for module in loaded[0] if module.startswith(used)]


UPSTREAMS = {"transformers", "sglang", "vllm", "matplotlib", "hypothesis"}


def test_importing_the_integrations_loads_no_upstream(loaded):
    assert not foreign(loaded[1]) & UPSTREAMS
    assert "vecrope.integrations.sglang" in loaded[1]
    assert "vecrope.testing" not in loaded[1]


def test_the_help_of_the_command_line_loads_nothing_that_it_has_no_need_of(loaded):
    assert not foreign(loaded[2]) & UPSTREAMS
    assert "vecrope.rope_index" in loaded[2]
    assert "vecrope.testing" not in loaded[2]


def test_the_strategies_alone_load_hypothesis(loaded):
    assert "vecrope.testing.reference" in loaded[3]
    assert [("hypothesis" in modules) for modules in loaded] == [False] * 4 + [True]


@pytest.mark.parametrize(
    ("source", "at_import", "anywhere"),
    [
        ("import vecrope.testing, os.path", {"vecrope.testing", "os.path"}, set()),
        ("from vecrope.testing import Prompt", {"vecrope.testing"}, set()),
        ("from vecrope.testing import reference", {"vecrope.testing.reference"}, set()),
        ("try:\n    import numpy\nexcept ImportError:\n    pass", {"numpy"}, set()),
        ("class C:\n    import numpy", {"numpy"}, set()),
        ("def f():\n    import numpy", set(), {"numpy"}),
    ],
)
def test_imports_in_a_source_are_seen(source, at_import, anywhere):
    assert imports(source, only_at_import=True) == at_import
    assert imports(source) == at_import | anywhere


ABOVE_THE_LIBRARY = ("vecrope.testing", "vecrope.cli", "vecrope.__main__")
# The self-check is a test that runs where a method of transformers is not known.
USERS_OF_TESTING = (*ABOVE_THE_LIBRARY, "vecrope.integrations.transformers.self_check")


@pytest.mark.parametrize(
    "name", [name for name in SOURCES if not name.startswith(USERS_OF_TESTING)]
)
def test_the_library_does_not_import_its_testing_or_command_line(name):
    used = imports(SOURCES[name])
    assert not [module for module in used if module.startswith(ABOVE_THE_LIBRARY)]


@pytest.mark.parametrize(
    "name", [name for name in SOURCES if name.startswith("vecrope.testing.reference")]
)
def test_the_references_are_plain_python(name):
    used = imports(SOURCES[name])
    assert used
    others = {other for other in used if not other.startswith("vecrope.testing.reference")}
    assert foreign(others) == set()


KERNELS = Path(vecrope.__file__).parent / "forms" / "triton" / "kernels"
# Imported on request only: by a test that uses hypothesis, by a call on a device that has Triton.
ON_REQUEST = {
    "vecrope.testing.strategies": "hypothesis",
    **{
        f"vecrope.testing.strategies.{name}": "hypothesis"
        for name in ("layout", "minicpmv4_7", "omni", "own_rules", "shared")
    },
    **{
        f"vecrope.forms.triton.{name}": "triton"
        for name in (
            "launch",
            *(f"kernels.{path.stem}" for path in KERNELS.glob("[a-z]*.py")),
        )
    },
}


@pytest.mark.parametrize("name", ON_REQUEST)
def test_what_is_imported_on_request_needs_one_package_more(name):
    used = imports(SOURCES[name], only_at_import=True)
    assert foreign(used) - {"torch", "vecrope"} == {ON_REQUEST[name]}


@pytest.mark.parametrize("name", [name for name in SOURCES if name not in ON_REQUEST])
def test_torch_is_the_only_dependency(name):
    used = imports(SOURCES[name], only_at_import=True)
    assert foreign(used) <= {"torch", "vecrope"}


def test_imports_run_one_way():
    graph = {name: imports(source) & SOURCES.keys() for name, source in SOURCES.items()}
    order = list(TopologicalSorter(graph).static_order())
    assert order.index("vecrope.spec") < order.index("vecrope.rope_index") < order.index("vecrope")


# What is exported


@pytest.mark.parametrize(
    "name", [name for name, source in SOURCES.items() if "__all__ = " in source]
)
def test_every_name_of_all_exists(name):
    module = import_module(name)
    assert len(module.__all__) == len(set(module.__all__))
    assert not [exported for exported in module.__all__ if not hasattr(module, exported)]


def test_all_is_what_the_package_holds():
    public = {
        name
        for name, value in vars(vecrope).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert public == set(vecrope.__all__)
    assert {"Convention", "MRopeSpec", "get_rope_index"} <= public


# What is distributed


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Build an sdist, and from it a wheel; return the two."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, cwd=out, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(built):
    _, wheel = built
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    package = {name for name in names if name.startswith("vecrope/")}
    assert package == FILES
    assert "vecrope/py.typed" in package
    (info,) = {name.partition("/")[0] for name in names - package}
    assert re.fullmatch(r"vecrope-[\d.]+\.dist-info", info)
    assert f"{info}/licenses/LICENSE" in names


@pytest.mark.slow
def test_the_wheel_needs_torch_alone(built):
    _, wheel = built
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
        lines = archive.read(metadata).decode().splitlines()
    always = [line for line in lines if line.startswith("Requires-Dist: ") and ";" not in line]
    assert [re.split(r"[: <>=]+", line)[1] for line in always] == ["torch"]


@pytest.mark.slow
def test_the_description_has_whole_addresses_of_files_that_exist(built):
    _, wheel = built
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
        fields, _, description = archive.read(metadata).decode().partition("\n\n")
    (source,) = re.findall(r"^Project-URL: Source, (.*)$", fields, re.MULTILINE)
    raw = source.replace("github.com", "raw.githubusercontent.com")
    ours = {"": f"{source}/blob/v{vecrope.__version__}/", "!": f"{raw}/v{vecrope.__version__}/"}
    found = re.findall(r"(!?)\[[^]]*]\(([^)#][^)]*)\)", description)
    files = [target.removeprefix(ours[kind]).partition("#")[0] for kind, target in found]
    assert "Content-Type: text/markdown" in fields
    assert [file for file in files if not (ROOT / file).exists()] == []
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(found) == len(re.findall(r"]\((?!#)", readme)) > 9
    assert "<img" not in description


@pytest.mark.slow
def test_the_sdist_holds_what_the_tests_need(built):
    sdist, _ = built
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    assert {f"src/{file}" for file in FILES} <= names
    here = Path(__file__).name
    assert {f"tests/{here}", "bench/__main__.py", "pyproject.toml", "CHANGELOG.md"} <= names
    folders = {name.partition("/")[0] for name in names if "/" in name}
    assert folders == {"src", "tests", "bench"}


@pytest.mark.slow
def test_the_wheel_answers_where_torch_alone_can_be_imported(built, tmp_path):
    _, wheel = built
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        for name in ("transformers", "hypothesis", "matplotlib", "PIL", "pytest"):
            sys.modules[name] = None
        import torch, vecrope
        spec = vecrope.MRopeSpec.for_model("glm4v", convention="sglang")
        ids = torch.tensor([[7, spec.image_token_id, spec.image_token_id, 8]])
        answer = vecrope.get_rope_index(ids, spec, image_grid_thw=torch.tensor([[1, 2, 4]]))
        print(vecrope.__file__, *answer[0].flatten().tolist(), *answer[1].flatten().tolist())
    """
    file, *numbers = run(code, "-I", cwd=tmp_path)
    assert Path(file) == tmp_path / "vecrope" / "__init__.py"
    assert list(map(int, numbers)) == [0, 1, 1, 3, 0, 1, 1, 3, 0, 1, 2, 3, 0]
