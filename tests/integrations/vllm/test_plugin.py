"""The plugin: how it is registered, and who answers."""

import ast
import inspect
import logging
import sys
from importlib import import_module, invalidate_caches
from pathlib import Path
from textwrap import indent
from types import SimpleNamespace

import pytest
import torch

from tests.integrations.vllm.models import ALL, ANSWER, GROUP, answer
from vecrope.integrations import vllm as plugin
from vecrope.integrations.fingerprint import fingerprint_of
from vecrope.integrations.vllm import features
from vecrope.integrations.vllm.models import CLASSES

MODELS = "vllm.model_executor.models"

METHOD = '''
def get_mrope_input_positions(self, input_tokens, mm_features):
    """What vLLM says."""
    return "vLLM's own", len(input_tokens)
'''
MODULE = f"""
class {{name}}:
{indent(METHOD, "    ")}
    def iter_mm_grid_thw(self, mm_features):
        return iter(mm_features)
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Lay a tree of modules out that looks like vLLM's, of which nothing is imported yet.

    Its methods are known, and every prompt has groups enough for vecrope to answer.
    """
    before = {name for name in sys.modules if name.partition(".")[0] == "vllm"}
    assert not before
    folder = tmp_path / "vllm" / "model_executor" / "models"
    folder.mkdir(parents=True)
    for package in (folder, folder.parent, folder.parent.parent):
        (package / "__init__.py").write_text("")
    for module, name in ALL:
        (folder / f"{module.rpartition('.')[2]}.py").write_text(MODULE.format(name=name))
        known = frozenset({fingerprint_of([ast.parse(METHOD).body[0]])})
        model = CLASSES[module][name]._replace(fingerprints=known, helpers=(), min_groups=0)
        monkeypatch.setitem(CLASSES, module, {name: model})
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    plugin.unregister()
    for name in [name for name in sys.modules if name.partition(".")[0] == "vllm"]:
        del sys.modules[name]


def class_of(module, name):
    return getattr(import_module(module), name)


GLM = f"{MODELS}.glm4_1v", "Glm4vForConditionalGeneration"

# Registration


def test_the_entry_point_is_declared():
    project = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    _, _, entry = project.partition('[project.entry-points."vllm.general_plugins"]\n')
    assert entry.startswith('vecrope = "vecrope.integrations.vllm:register"\n')


@pytest.mark.parametrize("imported", ["before", "after"])
@pytest.mark.usefixtures("installed")
def test_methods_are_ours_whenever_the_models_are_imported(imported):
    if imported == "before":
        owners = [class_of(*names) for names in ALL]
    plugin.register()
    if imported == "after":
        assert not any(module in sys.modules for module, _ in ALL)
        owners = [class_of(*names) for names in ALL]
    method = "get_mrope_input_positions"
    originals = [getattr(owner, method).__wrapped__ for owner in owners]
    for owner in owners:
        assert getattr(owner, method).__doc__ == "What vLLM says."
        parameters = list(inspect.signature(getattr(owner, method)).parameters)
        assert parameters == ["self", "input_tokens", "mm_features"]
    plugin.unregister()
    assert [getattr(owner, method) for owner in owners] == originals
    plugin.unregister()


@pytest.mark.usefixtures("installed")
def test_after_unregister_imports_are_left_alone():
    plugin.register()
    plugin.unregister()
    owner = class_of(*GLM)
    assert owner().get_mrope_input_positions([1, 2], []) == ("vLLM's own", 2)


@pytest.mark.usefixtures("installed")
def test_a_second_call_does_nothing():
    owner = class_of(*GLM)
    original = owner.get_mrope_input_positions
    plugin.register()
    ours = owner.get_mrope_input_positions
    plugin.register()
    assert owner.get_mrope_input_positions is ours
    assert ours.__wrapped__ is original


@pytest.mark.usefixtures("installed")
def test_registering_imports_no_model_and_a_module_keeps_its_source():
    plugin.register()
    assert not any(name.startswith(MODELS) for name in sys.modules)
    assert inspect.getsource(import_module(GLM[0])) == MODULE.format(name=GLM[1])


@pytest.mark.usefixtures("installed")
def test_modules_that_are_not_there_are_not_found():
    plugin.register()
    name = f"{MODELS}.keye"
    (Path(import_module(MODELS).__file__).parent / "keye.py").unlink()
    with pytest.raises(ModuleNotFoundError, match="keye"):
        import_module(name)


def test_a_method_that_is_not_known_is_left(installed, caplog):
    source = MODULE.format(name=GLM[1])
    (installed / "glm4_1v.py").write_text(source.replace("len(input_tokens)", "1"))
    plugin.register()
    owner = class_of(*GLM)
    assert f"leaves {GLM[1]} as it is: its get_mrope_input_positions is none of" in caplog.text
    assert owner().get_mrope_input_positions([7] * 4, GROUP) == ("vLLM's own", 1)


def test_a_helper_that_is_missing_or_not_known_is_as_if_the_method_was_not(installed, monkeypatch):
    known = CLASSES[GLM[0]][GLM[1]]
    method = ast.parse(METHOD).body[0]
    helper = ast.parse("def helper(x):\n    return x").body[0]
    both = frozenset({fingerprint_of([method, helper])})
    model = known._replace(fingerprints=both, helpers=("helper",))
    monkeypatch.setitem(CLASSES, GLM[0], {GLM[1]: model})
    plugin.register()
    for added, ours in (
        ("", False),
        ("def helper(x):\n    return -x\n", False),
        ("def helper(x: int) -> int:\n    return x\n", True),
        ("class Other:\n    @property\n    def helper(x): return x\n", False),
    ):
        (installed / "glm4_1v.py").write_text(MODULE.format(name=GLM[1]) + added)
        invalidate_caches()
        owner = class_of(*GLM)
        assert hasattr(owner.get_mrope_input_positions, "__wrapped__") == ours
        del sys.modules[GLM[0]]


def test_a_helper_may_be_a_method_of_the_class(installed, monkeypatch):
    known = CLASSES[GLM[0]][GLM[1]]
    method = ast.parse(METHOD).body[0]
    source = MODULE.format(name=GLM[1])
    helper = ast.parse(source).body[0].body[-1]
    both = frozenset({fingerprint_of([method, helper])})
    model = known._replace(fingerprints=both, helpers=("iter_mm_grid_thw",))
    monkeypatch.setitem(CLASSES, GLM[0], {GLM[1]: model})
    (installed / "glm4_1v.py").write_text(source)
    plugin.register()
    assert hasattr(class_of(*GLM).get_mrope_input_positions, "__wrapped__")


def test_the_log_says_once_what_is_replaced(installed, caplog):
    with caplog.at_level(logging.INFO):
        plugin.register()
        class_of(*GLM)
        class_of(*GLM)
    assert installed.exists()
    (record,) = caplog.records
    assert record.name == "vllm.vecrope"
    assert record.message.startswith(f"vecrope numbers the prompts of {GLM[1]} that have ")


@pytest.mark.parametrize("source", ["", "class Glm4vForConditionalGeneration: pass\n"])
def test_a_class_or_method_that_is_missing_is_warned_about(installed, caplog, source):
    (installed / "glm4_1v.py").write_text(source)
    plugin.register()
    import_module(GLM[0])
    assert f"leaves {GLM[1]} as it is: it has no get_mrope_input_positions" in caplog.text


# Answers


@pytest.mark.usefixtures("installed")
def test_what_vecrope_refuses_vllm_answers(caplog):
    plugin.register()
    model = class_of(*GLM)()
    assert answer(class_of(*GLM), [7] * 4, GROUP) == (ANSWER, 0)
    for tokens, groups in (
        ([7] * 2, GROUP),  # longer than the prompt
        ([7] * 9, [(1, 1, 1, 2), (2, 1, 1, 2)]),  # one in the other
        ([7] * 9, [(1, 0, 1, 2)]),  # no frame
        ([7] * 9, [(1, 2, 1, 2, -1.0)]),  # backwards in time
        ([], []),
    ):
        for _ in range(2):
            found = model.get_mrope_input_positions(tokens, groups)
            assert found == ("vLLM's own", len(tokens))
    # Each fault is counted every time and warned about once.
    assert set(plugin.refusals().values()) == {2, 4}
    assert len(caplog.records) == len(plugin.refusals())
    plugin.unregister()
    assert plugin.refusals() == {}


@pytest.mark.usefixtures("installed")
def test_other_exceptions_are_passed_on():
    plugin.register()
    model = class_of(*GLM)()

    def fail(_):
        raise AssertionError("Image must have 1 frame, got 2")

    model.iter_mm_grid_thw = fail
    with pytest.raises(AssertionError, match="1 frame, got 2"):
        model.get_mrope_input_positions([1, 2], [])


@pytest.mark.usefixtures("installed")
def test_models_that_inherit_a_method_inherit_the_replacement():
    plugin.register()
    assert answer(type("Derived", (class_of(*GLM),), {}), [7] * 4, GROUP) == (ANSWER, 0)


# Which prompts are left to vLLM


@pytest.mark.usefixtures("installed")
def test_prompts_of_few_groups_are_left_to_vllm(monkeypatch):
    known = CLASSES[GLM[0]][GLM[1]]._replace(min_groups=2)
    monkeypatch.setitem(CLASSES, GLM[0], {GLM[1]: known})
    plugin.register()
    model = class_of(*GLM)()
    model.iter_mm_grid_thw = lambda _: iter(GROUP)
    picture = SimpleNamespace(modality="image")
    assert model.get_mrope_input_positions([7] * 4, [picture]) == ("vLLM's own", 4)
    positions, _ = model.get_mrope_input_positions([7] * 4, [picture] * 2)
    assert positions.tolist() == ANSWER


def clip(*grid):
    data = {"video_grid_thw": SimpleNamespace(data=torch.tensor(grid))}
    return SimpleNamespace(modality="video", data=data)


PICTURE = SimpleNamespace(modality="image")


@pytest.mark.parametrize(
    ("mm_features", "frames", "blocks"),
    [
        pytest.param([], False, False, id="text"),
        pytest.param([PICTURE] * 3, False, False, id="3 pictures"),
        pytest.param([PICTURE] * 4, True, True, id="4 pictures"),
        pytest.param([clip(3, 2, 2)], False, False, id="3 frames"),
        pytest.param([clip(4, 2, 2)], True, False, id="4 frames"),
        pytest.param([PICTURE, clip(2, 2, 2), clip(1, 2, 2)], True, False, id="two videos"),
        pytest.param([clip([2, 2, 2], [2, 2, 2])], True, False, id="a video of two grids"),
        pytest.param([clip(4, 2, 2)] * 4, True, True, id="4 blocks"),
        pytest.param(
            [SimpleNamespace(modality="video", data=None)] * 3, False, False, id="no data"
        ),
    ],
)
def test_what_is_four_groups(mm_features, frames, blocks):
    assert features.has_groups(mm_features, 4, separate_frames=True) == frames
    assert features.has_groups(mm_features, 4, separate_frames=False) == blocks


def test_rules_that_look_at_tokens_have_other_limits():
    least = {name: model.min_groups for known in CLASSES.values() for name, model in known.items()}
    assert least.pop("MiniCPMV4_7ForConditionalGeneration") == 24
    assert not any("isaac" in module for module in CLASSES)
    assert set(least.values()) == {4}
