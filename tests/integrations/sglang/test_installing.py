"""`install` and `uninstall`, on a stand-in of SGLang's tree and on the wheel's own module."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from own_support import SGLANG_WHEEL, needs_sglang

from bench.wheels import Wheel, load
from vecrope.integrations import sglang as ours

HOME = "sglang.srt.layers.rotary_embedding.mrope_rope_index"
NAMES = (
    *("get_rope_index", "get_rope_index_glm4v"),
    *("get_rope_index_ernie45", "get_rope_index_qwen3_omni"),
)


def add_module(monkeypatch, name, **contents):
    """Put a module into `sys.modules`, and its packages, each an attribute of the one above."""
    parent, _, last = name.rpartition(".")
    if parent and parent not in sys.modules:
        add_module(monkeypatch, parent)
    module = ModuleType(name)
    module.__path__ = []
    vars(module).update(contents)
    monkeypatch.setitem(sys.modules, name, module)
    if parent:
        setattr(sys.modules[parent], last, module)
    return module


@pytest.fixture
def tree(monkeypatch):
    """A stand-in: the module of the functions, two users of them, and a module of another."""

    def function(name):
        def stand_in(*_):
            return name

        return stand_in

    package = add_module(monkeypatch, "sglang", __version__="0.5.23")
    originals = {name: function(name) for name in NAMES}
    home = add_module(monkeypatch, HOME, **originals)
    by_name = add_module(
        monkeypatch,
        "sglang.srt.multimodal.processors.some_model",
        rope_index=originals["get_rope_index"],
        get_rope_index_glm4v=originals["get_rope_index_glm4v"],
        unrelated=function("unrelated"),
    )
    other = add_module(monkeypatch, "sglang_like", get_rope_index=originals["get_rope_index"])
    monkeypatch.setitem(sys.modules, "sglang.not_a_module", None)
    yield SimpleNamespace(
        package=package, home=home, by_name=by_name, other=other, originals=originals
    )
    ours.uninstall()


def at_home(tree):
    return {name: getattr(tree.home, name) for name in NAMES}


def test_every_name_is_swapped_and_put_back(tree):
    ours.install()
    assert at_home(tree) == {name: getattr(ours, name) for name in NAMES}
    assert tree.by_name.rope_index is ours.get_rope_index
    assert tree.by_name.get_rope_index_glm4v is ours.get_rope_index_glm4v
    assert tree.by_name.unrelated() == "unrelated"
    assert tree.other.get_rope_index is tree.originals["get_rope_index"]

    ours.uninstall()
    assert at_home(tree) == tree.originals
    assert tree.by_name.rope_index is tree.originals["get_rope_index"]
    assert tree.by_name.get_rope_index_glm4v is tree.originals["get_rope_index_glm4v"]


def test_a_second_call_does_nothing(tree):
    ours.install()
    ours.install()
    ours.uninstall()
    assert at_home(tree) == tree.originals
    ours.uninstall()
    assert at_home(tree) == tree.originals


def test_what_is_imported_in_between_is_put_back_too(tree, monkeypatch):
    ours.install()
    late = add_module(monkeypatch, "sglang.late", fetched=tree.home.get_rope_index_ernie45)
    ours.uninstall()
    assert late.fetched is tree.originals["get_rope_index_ernie45"]


@pytest.mark.parametrize("version", ["0.5.22", "0.5.24", "0.5.23.post1", "0.0.0.dev0"])
def test_another_version_is_refused(tree, version):
    tree.package.__version__ = version
    message = rf"SGLang {version} is installed, .* 0\.5\.23 alone: install sglang==0\.5\.23"
    with pytest.raises(RuntimeError, match=message):
        ours.install()
    assert at_home(tree) == tree.originals


def test_without_sglang_it_is_an_import_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "sglang", None)
    with pytest.raises(ImportError, match="sglang"):
        ours.install()
    ours.uninstall()


@needs_sglang
def test_the_wheels_static_methods_call_ours(tree):
    """`MRotaryEmbedding`, whose module needs a GPU's libraries, fetches them at every call."""
    methods = load(
        Wheel(Path(SGLANG_WHEEL), "sglang"),
        "sglang/srt/layers/rotary_embedding/mrope.py",
        *(f"MRotaryEmbedding.{name}" for name in NAMES),
    )
    calls = []
    ours.install()
    for name, method in methods.items():
        assert getattr(tree.home, name) is getattr(ours, name)
        setattr(tree.home, name, lambda *_, called=name, **__: calls.append(called))
        number = 4 if name == "get_rope_index_ernie45" else 5
        method(*range(number))
        setattr(tree.home, name, getattr(ours, name))
    assert calls == list(NAMES)


@needs_sglang
def test_the_wheel_says_its_version_and_defines_the_functions_in_their_home():
    wheel = Wheel(Path(SGLANG_WHEEL), "sglang")
    assert wheel.version == "0.5.23"
    assert "from sglang.version import __version__" in wheel.source("sglang/__init__.py")
    source = wheel.source(HOME.replace(".", "/") + ".py")
    assert all(f"\ndef {name}(" in source for name in NAMES)
