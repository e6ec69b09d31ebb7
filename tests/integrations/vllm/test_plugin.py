"""The plugin: how it is registered, and who answers."""

import inspect
import logging
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.integrations.vllm.models import ALL, ANSWER, GROUP, answer
from vecrope.integrations import vllm as plugin

MODELS = "vllm.model_executor.models"

MODULE = '''
class {name}:
    def get_mrope_input_positions(self, input_tokens, mm_features):
        """What vLLM says."""
        return "vLLM's own", len(input_tokens)

    def iter_mm_grid_thw(self, mm_features):
        return iter(mm_features)
'''


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Lay a tree of modules out that looks like vLLM 0.33.0, of which nothing is imported yet."""
    before = {name for name in sys.modules if name.partition(".")[0] == "vllm"}
    assert not before
    folder = tmp_path / "vllm" / "model_executor" / "models"
    folder.mkdir(parents=True)
    for package in (folder, folder.parent, folder.parent.parent):
        (package / "__init__.py").write_text("")
    (tmp_path / "vllm" / "__init__.py").write_text("__version__ = '0.33.0'\n")
    for module, name in ALL:
        (folder / f"{module.rpartition('.')[2]}.py").write_text(MODULE.format(name=name))
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


@pytest.mark.parametrize("version", ["0.32.1", "0.34.0", "0.330.0", "dev"])
def test_another_version_is_left_as_it_is(installed, caplog, version):
    import_module("vllm").__version__ = version
    with caplog.at_level(logging.WARNING):
        plugin.register()
    assert f"leaves vLLM {version} as it is" in caplog.text
    assert "Install vllm==0.33.*, or a vecrope whose changelog names your version" in caplog.text
    assert installed.exists()
    assert class_of(*GLM)().get_mrope_input_positions([1], []) == ("vLLM's own", 1)


@pytest.mark.parametrize("source", ["", "class Glm4vForConditionalGeneration: pass\n"])
def test_a_class_or_method_that_is_missing_is_warned_about(installed, caplog, source):
    (installed / "glm4_1v.py").write_text(source)
    plugin.register()
    import_module(GLM[0])
    assert f"finds no {GLM[1]}.get_mrope_input_positions in {GLM[0]}" in caplog.text


# Answers


@pytest.mark.usefixtures("installed")
def test_what_vecrope_refuses_vllm_answers():
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
        found = model.get_mrope_input_positions(tokens, groups)
        assert found == ("vLLM's own", len(tokens))


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
def test_the_function_answers_for_models_of_known_classes():
    known = class_of(*GLM)
    derived = type("Derived", (known,), {})
    assert answer(
        lambda: SimpleNamespace(
            get_mrope_input_positions=lambda *given: plugin.get_mrope_input_positions(
                derived(), *given
            )
        ),
        [7] * 4,
        GROUP,
    ) == (ANSWER, 0)
    with pytest.raises(ValueError, match="must lie between tokens 0 and 2"):
        plugin.get_mrope_input_positions(derived(), [7] * 2, GROUP)
    with pytest.raises(TypeError, match=r"model must be one of .*Glm4v.* of vLLM, got str"):
        plugin.get_mrope_input_positions("", [7], [])
