"""The plugin of vLLM: on stand-ins of its modules, and on the classes of its wheel."""

import inspect
import logging
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import families_of, spec_of, vllm_class, vllm_function, vllm_rope_index
from own_support import VLLM_WHEEL, needs_vllm
from support import assert_same

from bench.wheels import Wheel
from vecrope.integrations import vllm as plugin
from vecrope.integrations.vllm import features as features_of
from vecrope.integrations.vllm import models, positions_of_groups
from vecrope.integrations.vllm.plugin import _method
from vecrope.testing import conversations, token_soup

MODELS = "vllm.model_executor.models"
ALL = [(module, name) for module, classes in models.CLASSES.items() for name in classes]

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
GROUP = [(1, 1, 1, 2)]
ANSWER = [[0, 1, 1, 3], [0, 1, 1, 3], [0, 1, 2, 3]]


def answer(owner, *arguments):
    position_ids, delta = owner().get_mrope_input_positions(*arguments)
    return position_ids.tolist(), delta


# Registration


def test_the_entry_point_is_declared():
    project = (Path(__file__).parent.parent / "pyproject.toml").read_text()
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


def images(*grids, offset=1):
    for grid in grids:
        yield SimpleNamespace(
            modality="image",
            data={"image_grid_thw": SimpleNamespace(data=torch.tensor(grid))},
            mm_position=SimpleNamespace(offset=offset),
        )
        offset += grid[1] * grid[2] // 4


def test_groups_of_bailing():
    model = SimpleNamespace(
        config=SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=2))
    )
    features = [*images((1, 2, 4), (1, 4, 4))]
    groups = [*features_of.images(model, [], features[::-1])]
    assert groups == [(1, 1, 1, 2), (3, 1, 2, 2)]
    for feature, message in (
        (SimpleNamespace(**{**vars(features[0]), "modality": "video"}), "got a video"),
        (SimpleNamespace(**{**vars(features[0]), "data": None}), "an image with data"),
        (*images((2, 2, 4)), "one frame, got 2"),
    ):
        with pytest.raises(ValueError, match=message):
            [*features_of.images(model, [], [feature])]


def test_groups_of_openpangu():
    grids = [("image", 1, 1, 1, 2), ("video", 5, 2, 1, 2), ("video", 30, 0, 1, 2)]
    model = SimpleNamespace(iter_mm_grid_thw=lambda _: iter(grids))
    groups = [*features_of.with_separators(model, [], [])]
    assert groups == [(1, 1, 1, 2), (5, 1, 1, 2), (9, 1, 1, 2), (30, 0, 1, 2)]


def test_groups_of_qwen3_vl(monkeypatch):
    """Frames of no token are left out, one of several frames' tokens is cut."""
    frames = []
    owner = SimpleNamespace(_iter_mm_grid_hw=lambda *_, **__: iter(frames))
    module = ModuleType("qwen3_vl")
    module.Qwen3VLForConditionalGeneration = owner
    monkeypatch.setattr(features_of, "import_module", lambda _: module)
    names = ("video_token_id", "vision_start_token_id", "vision_end_token_id")
    vision = SimpleNamespace(spatial_merge_size=2)
    config = SimpleNamespace(**dict.fromkeys(names, 0), vision_config=vision)
    model = SimpleNamespace(config=config)
    frames[:] = [(1, 1, 2, 2), (9, 1, 2, 0), (20, 1, 2, 4), (30, 0, 2, 0)]
    groups = [*features_of.between_markers(model, [], [])]
    assert groups == [(1, 1, 1, 2), (20, 1, 1, 2), (22, 1, 1, 2)]
    for odd in ((1, 2, 2, 3), (1, 2, 2, 5)):
        frames[:] = [odd]
        with pytest.raises(ValueError, match=r"which is no multiple of the 4 .* pruned"):
            [*features_of.between_markers(model, [], [])]


# Groups, worked by hand


@pytest.mark.parametrize(
    ("num_tokens", "groups", "positions", "delta"),
    [
        pytest.param(3, [], [[0, 1, 2]] * 3, 0, id="text"),
        pytest.param(4, GROUP, ANSWER, 0, id="an image"),
        pytest.param(
            5,
            [(1, 1, 1, 2), (3, 1, 1, 2)],
            [[0, 1, 1, 3, 3], [0, 1, 1, 3, 3], [0, 1, 2, 3, 4]],
            0,
            id="two that touch",
        ),
        pytest.param(
            4, [(0, 3, 1, 1)], [[0, 1, 2, 3], [0, 0, 0, 3], [0, 0, 0, 3]], 0, id="a block"
        ),
        pytest.param(
            4,
            [(0, 3, 1, 1, 2.6)],
            [[0, 2, 5, 6], [0, 0, 0, 6], [0, 0, 0, 6]],
            3,
            id="a block in time, rounded down",
        ),
        pytest.param(
            5,
            [(0, 1, 1, 1, 1.0), (1, 2, 1, 1, 3.0), (3, 2, 1, 1, 1.0)],
            [[0, 1, 4, 5, 6], [0, 1, 1, 5, 5], [0, 1, 1, 5, 5]],
            2,
            id="in time and not",
        ),
        # qwen2_5_vl, 2 positions a second, 2 / 0.3 seconds a step, as float32: 39 and not 40.
        pytest.param(
            4,
            [(0, 4, 1, 1, torch.tensor(2 / 0.3).item() * 2)],
            [[0, 13, 26, 39], [0] * 4, [0] * 4],
            36,
            id="in float64",
        ),
    ],
)
def test_groups(num_tokens, groups, positions, delta):
    found = positions_of_groups(num_tokens, groups)
    assert_same(found[:1], (torch.tensor(positions),))
    assert found[1] == delta
    assert type(found[1]) is int


def test_a_prompt_without_tokens_is_refused():
    with pytest.raises(ValueError, match="one token at least, got 0"):
        positions_of_groups(0, [])


# vLLM itself

FAMILIES = [
    *(name for name in families_of("vllm") if name not in ("qwen3_asr", "minicpmv4_6")),
    "bailing_moe_v3_vl",
]
# vLLM looks for frames, and for videos of a temporal merge size, where its processors put them.
WHOLE = ("qwen2_vl", "qwen2_5_vl", "paddleocr_vl", "bailing_moe_v3_vl")
PROMPTS = [
    *((model_type, conversations) for model_type in FAMILIES),
    *((model_type, token_soup) for model_type in WHOLE),
]


@pytest.fixture
def with_qwen3_vl(monkeypatch):
    name = "Qwen3VLForConditionalGeneration"
    module = SimpleNamespace(**{name: vllm_class("qwen3_vl")})
    monkeypatch.setattr(features_of, "import_module", lambda _: module)


def assert_equal_answers(model, tokens, features):
    """Compare what the function answers with what vLLM does, and return it."""
    ours = plugin.get_mrope_input_positions(model, tokens, features)
    theirs = vllm_function(model, tokens, features)
    assert_same(ours[:1], theirs[:1])
    assert (type(ours[1]), ours[1]) == (type(theirs[1]), theirs[1])
    return ours


@needs_vllm
@pytest.mark.parametrize(
    ("model_type", "strategy"), PROMPTS, ids=lambda value: getattr(value, "__name__", value)
)
@pytest.mark.usefixtures("with_qwen3_vl")
def test_prompts_get_vllms_answer(model_type, strategy):
    spec = spec_of(model_type, "vllm")

    @given(strategy(spec))
    def check(prompt):
        if prompt.attention_mask is not None and not prompt.attention_mask.any(1).all():
            return  # a row without tokens, at which vLLM fails
        vllm_rope_index(prompt, assert_equal_answers)

    check()


COUNTS = st.lists(st.sampled_from([0, 4, 4, 8, 12, 3, 5]), min_size=1, max_size=4)


@needs_vllm
@given(counts=COUNTS)
def test_pruned_videos_get_vllms_answer(counts):
    """Frames may have lost all of their tokens, or hold those of others; in part is an accident."""
    config = SimpleNamespace(
        video_token_id=5,
        vision_start_token_id=6,
        vision_end_token_id=7,
        vision_config=SimpleNamespace(spatial_merge_size=2),
    )
    tokens = [1, *(token for count in counts for token in (2, 6, *[5] * count, 7)), 1]
    grid = SimpleNamespace(data=torch.tensor([len(counts), 4, 4]))
    place = SimpleNamespace(offset=1)
    features = [SimpleNamespace(modality="video", data={"video_grid_thw": grid}, mm_position=place)]
    owner = vllm_class("qwen3_vl")
    model = owner()
    model.config = config
    module = SimpleNamespace(Qwen3VLForConditionalGeneration=owner)
    answer = models.answer_by_groups(features_of.between_markers)
    method = _method(owner.get_mrope_input_positions, answer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features_of, "import_module", lambda _: module)
        ours = method(model, tokens, features)
        if all(count % 4 == 0 for count in counts):
            assert_equal_answers(model, tokens, features)
    theirs = vllm_function(model, tokens, features)
    assert_same(ours[:1], theirs[:1])
    assert ours[1] == theirs[1]


@needs_vllm
def test_the_wheel_has_the_classes_and_methods_with_this_signature():
    wheel = Wheel(Path(VLLM_WHEEL), "vllm")
    assert wheel.version.startswith("0.33.")
    assert '"vllm.general_plugins"' in wheel.source("vllm/plugins/__init__.py")
    for module, name in ALL:
        source = wheel.source(module.replace(".", "/") + ".py")
        _, _, body = source.partition(f"\nclass {name}(")
        _, _, method = body.partition("\n    def get_mrope_input_positions(")
        names = [line.strip().partition(":")[0].rstrip(",") for line in method.splitlines()[1:4]]
        assert names == ["self", "input_tokens", "mm_features"], name
