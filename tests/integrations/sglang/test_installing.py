"""`install` and `uninstall`, on stand-ins of SGLang's trees and on the wheel's own module."""

import ast
import logging
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from own_support import SGLANG_WHEEL, needs_sglang

from bench.wheels import Wheel, load
from vecrope.integrations import sglang as ours
from vecrope.integrations.fingerprint import fingerprint, fingerprint_of
from vecrope.integrations.sglang import installing, qwen
from vecrope.integrations.sglang.known import FINGERPRINTS, HELPERS, MODEL_TYPES

PACKAGE = "sglang.srt.layers.rotary_embedding"
HOME = f"{PACKAGE}.mrope_rope_index"
MEMBER = f"{HOME.replace('.', '/')}.py"
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


def function(name):
    def stand_in(*_, **__):
        return name

    return stand_in


@pytest.fixture(params=["functions", "static methods"])
def tree(request, monkeypatch):
    """A stand-in: the functions where they are from 0.5.10 on, or before, and users of them."""
    add_module(monkeypatch, "sglang")
    originals = {name: function(name) for name in NAMES}
    if request.param == "functions":
        owner = add_module(monkeypatch, HOME, **originals)
    else:
        owner = type("MRotaryEmbedding", (), {k: staticmethod(f) for k, f in originals.items()})
        add_module(monkeypatch, PACKAGE, MRotaryEmbedding=owner)
        del sys.modules[PACKAGE].__path__
    by_name = add_module(
        monkeypatch,
        "sglang.srt.multimodal.processors.some_model",
        rope_index=vars(owner)["get_rope_index"],
        get_rope_index_glm4v=vars(owner)["get_rope_index_glm4v"],
        unrelated=function("unrelated"),
    )
    other = add_module(monkeypatch, "sglang_like", get_rope_index=originals["get_rope_index"])
    monkeypatch.setitem(sys.modules, "sglang.not_a_module", None)
    known = {name: {fingerprint(stand_in): None} for name, stand_in in originals.items()}
    monkeypatch.setattr(installing, "FINGERPRINTS", known)
    yield SimpleNamespace(owner=owner, by_name=by_name, other=other, originals=originals)
    ours.uninstall()


def at_home(tree):
    return {name: getattr(tree.owner, name) for name in NAMES}


def is_installed(tree):
    return all(
        function.__wrapped__ is tree.originals[name] for name, function in at_home(tree).items()
    )


def test_every_name_is_swapped_and_put_back(tree):
    done = ours.install()
    assert sorted(done.replaced) == sorted(NAMES)
    assert (done.left, done.later) == ({}, (installing._PICTURES,))
    assert is_installed(tree)
    static = isinstance(tree.owner, type)
    held = vars(tree.owner) if static else at_home(tree)
    assert tree.by_name.rope_index is held["get_rope_index"]
    assert tree.by_name.get_rope_index_glm4v is held["get_rope_index_glm4v"]
    assert tree.by_name.unrelated() == "unrelated"
    assert tree.other.get_rope_index is tree.originals["get_rope_index"]

    ours.uninstall()
    assert at_home(tree) == tree.originals
    assert tree.by_name.rope_index is vars(tree.owner)["get_rope_index"]
    ours.uninstall()
    assert at_home(tree) == tree.originals


def test_a_second_call_replaces_nothing_twice(tree):
    ours.install()
    ours.install(strict=True)
    assert is_installed(tree)
    ours.uninstall()
    assert at_home(tree) == tree.originals


def test_what_is_imported_in_between_is_put_back_too(tree, monkeypatch):
    ours.install()
    name = "get_rope_index_ernie45"
    late = add_module(monkeypatch, "sglang.late", fetched=vars(tree.owner)[name])
    ours.uninstall()
    assert late.fetched is vars(tree.owner)[name]


def test_functions_that_are_not_known_or_missing_are_left_and_named(tree, monkeypatch, caplog):
    monkeypatch.setitem(installing.FINGERPRINTS, "get_rope_index_glm4v", {})
    delattr(tree.owner, "get_rope_index_ernie45")
    with caplog.at_level(logging.INFO):
        done = ours.install()
    assert done.replaced == ("get_rope_index", "get_rope_index_qwen3_omni")
    assert "none of those" in done.left["get_rope_index_glm4v"]
    assert "has none" in done.left["get_rope_index_ernie45"]
    assert tree.owner.get_rope_index_glm4v is tree.originals["get_rope_index_glm4v"]
    (record,) = caplog.records
    assert "answers for SGLang's get_rope_index, get_rope_index_qwen3_omni." in record.message
    assert "get_rope_index_ernie45 (this SGLang has none)" in record.message


def test_a_function_whose_source_cannot_be_read_is_left(tree):
    namespace = {}
    exec("def function(*arguments): return arguments", namespace)
    held = vars(tree.owner)["get_rope_index_glm4v"]
    unread = namespace["function"]
    if isinstance(held, staticmethod):
        unread = staticmethod(unread)
    tree.owner.get_rope_index_glm4v = unread
    done = ours.install()
    assert "none of those" in done.left["get_rope_index_glm4v"]
    assert vars(tree.owner)["get_rope_index_glm4v"] is unread


def test_the_log_waits_until_it_is_set_up(tree, caplog):
    ours.install()
    assert not caplog.records
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            ask(tree, [7, 8, 8, 5])
    (record,) = caplog.records
    assert record.message.startswith("vecrope answers for SGLang's get_rope_index, ")


def test_without_sglang_it_is_an_import_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "sglang", None)
    with pytest.raises(ImportError, match="sglang"):
        ours.install()
    ours.uninstall()


def test_the_entry_point_is_declared():
    project = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    _, _, entry = project.partition('[project.entry-points."sglang.srt.plugins"]\n')
    assert entry.startswith('vecrope = "vecrope.integrations.sglang:install"\n')


# Requests


def ask(tree, ids, model_type="qwen2_vl", grids=((1, 2, 4),)):
    return tree.owner.get_rope_index(
        *(2, 8, 9, 7, model_type),
        input_ids=torch.tensor([ids]),
        image_grid_thw=torch.tensor(grids),
    )


def test_what_is_refused_sglang_answers_with_one_warning_a_fault(tree, caplog):
    ours.install()
    positions, _ = ask(tree, [7, 8, 8, 5])
    assert positions[:, 0].tolist() == [[0, 1, 1, 3], [0, 1, 1, 3], [0, 1, 2, 3]]
    for ids in ([8, 5], [5, 8, 5, 5], [8, 8, 8], [7, 8, 5]):
        assert ask(tree, ids) == "get_rope_index"
    assert len(caplog.records) == len(ours.refusals())
    assert sum(ours.refusals().values()) == 4
    assert max(ours.refusals().values()) > 1
    assert all("SGLang's own function answers" in record.message for record in caplog.records)
    ours.uninstall()
    assert ours.refusals() == {}


def test_a_strict_installation_raises(tree):
    ours.install(strict=True)
    with pytest.raises(ValueError, match="image"):
        ask(tree, [8, 5])
    assert ours.refusals() == {}


def test_other_exceptions_are_raised(tree):
    ours.install()
    with pytest.raises(AttributeError):
        tree.owner.get_rope_index_glm4v(torch.tensor([[5]]), None, [[1, 2, 2]], None, None)


def test_a_model_type_that_the_function_does_not_know_is_left_to_it(tree):
    (known,) = installing.FINGERPRINTS["get_rope_index"]
    installing.FINGERPRINTS["get_rope_index"][known] = frozenset({"qwen2_vl"})
    ours.install()
    assert ask(tree, [7, 8, 8, 5], "paddleocr_vl") == "get_rope_index"
    assert tree.owner.get_rope_index(1, 2, 3, 4, model_type="x") == "get_rope_index"
    assert ask(tree, [7, 8, 8, 5]) != "get_rope_index"
    assert ours.refusals() == {}


@pytest.mark.parametrize(
    ("model_type", "tokens", "images", "videos", "left"),
    [
        pytest.param("qwen2_5_vl", 8191, None, [[2, 2, 4]], True, id="a short video"),
        pytest.param("paddleocr_vl", 40, [], [[2, 2, 4]], True, id="with an empty list of images"),
        pytest.param("qwen2_5_vl", 8192, None, [[2, 2, 4]], False, id="a long video"),
        pytest.param("qwen2_5_vl", 40, None, [[1, 2, 4]] * 2, False, id="two videos"),
        pytest.param("qwen2_5_vl", 40, [[2, 2, 4]], None, False, id="an image"),
        pytest.param("qwen2_5_vl", 40, None, None, False, id="text"),
        pytest.param("qwen2_vl", 40, None, [[2, 2, 4]], False, id="a video without seconds"),
    ],
)
def test_what_sglang_is_faster_at_is_left_to_it(tree, model_type, tokens, images, videos, left):
    (known,) = installing.FINGERPRINTS["get_rope_index"]
    installing.FINGERPRINTS["get_rope_index"][known] = frozenset({model_type})
    ours.install()
    ids = torch.ones((1, tokens), dtype=torch.int64)
    token = 9 if videos else 8
    if images or videos:
        ids[0, :6] = torch.tensor([7, token, token, 7, token, token])
        if len(images or videos) == 1:
            ids[0, 1:6] = torch.tensor([token] * 4 + [1])
    arguments = {"input_ids": ids, "image_grid_thw": images, "video_grid_thw": videos}
    answer = tree.owner.get_rope_index(2, 8, 9, 7, model_type, 2, **arguments)
    assert (answer == "get_rope_index") if left else answer[0].shape == (3, 1, tokens)
    assert ours.refusals() == {}


@needs_sglang
@pytest.mark.parametrize("tree", ["functions"], indirect=True)
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
        setattr(tree.owner, name, lambda *_, called=name, **__: calls.append(called))
        number = 4 if name == "get_rope_index_ernie45" else 5
        method(*range(number))
    assert calls == list(NAMES)
    for name, original in tree.originals.items():
        setattr(tree.owner, name, original)


@needs_sglang
def test_the_wheels_functions_are_known():
    wheel = Wheel(Path(SGLANG_WHEEL), "sglang")
    defined = {
        node.name: node for node in ast.parse(wheel.source(MEMBER)).body if hasattr(node, "name")
    }
    for name in NAMES:
        nodes = [defined[each] for each in (name, *HELPERS[name])]
        assert fingerprint_of(nodes) in FINGERPRINTS[name]
    model_types = MODEL_TYPES[fingerprint_of([defined["get_rope_index"]])]
    assert model_types == {*qwen.MODEL_TYPES, "qwen3_omni_moe"}
