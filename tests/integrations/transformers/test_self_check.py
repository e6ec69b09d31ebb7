"""The self-check: it passes what answers alike, for every family, and finds what does not."""

import functools
import random
import warnings
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from oracles import NOT_YET_IN_TRANSFORMERS
from tiny_models import LAYOUTS

from tests.integrations.transformers.answers import RULES, module_of
from tests.integrations.transformers.test_omni import CLASSES
from tests.integrations.transformers.test_omni import bare as omni
from tests.integrations.transformers.test_own_rules import bare, glm_image, hunyuan, minicpm
from vecrope import MRopeSpec
from vecrope.families import FAMILIES
from vecrope.integrations.transformers import admission, patch, patched, unpatch
from vecrope.integrations.transformers.rules import rules_of
from vecrope.integrations.transformers.self_check_prompts import DRAWN, self_check_prompts

OWN = {
    "hunyuan_vl": hunyuan,
    "glm_image": glm_image,
    "minicpmv4_7": minicpm,
    **{name: functools.partial(omni, name) for name in CLASSES},
}
MODULES = {**{name: functools.partial(module_of, name) for name in LAYOUTS}, **OWN}


@pytest.fixture(autouse=True)
def _nothing_was_checked_before(monkeypatch):
    monkeypatch.setattr(admission, "_CHECKED", set())


@pytest.fixture
def unknown(monkeypatch):
    monkeypatch.setattr(admission, "known", lambda *_: None)


each_rule = pytest.mark.parametrize("model_type", [*RULES, *OWN])


def global_state():
    return (
        torch.get_rng_state().tolist(),
        random.getstate(),
        torch.get_default_device(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
    )


def spec_of(model_type):
    rules = next(iter(rules_of(model_type).values()))
    return rules.spec_of(MODULES[model_type]().config)


def test_there_is_a_module_of_every_family():
    wholes = {"qwen2_5_omni", "qwen3_omni_moe"}
    known = {name for name, family in FAMILIES.items() if "transformers" in family.rules}
    known -= NOT_YET_IN_TRANSFORMERS.keys()
    assert known - wholes == MODULES.keys()


@each_rule
@pytest.mark.usefixtures("unknown")
def test_a_method_that_is_not_known_and_agrees_is_replaced_with_one_warning(model_type):
    module = MODULES[model_type]()
    kept = dict(vars(module))
    own = module.get_rope_index
    with torch.device("meta"), torch.enable_grad():
        before = global_state()
        with pytest.warns(UserWarning, match="agreed with it on all prompts of a check") as seen:
            patch(module)
        assert global_state() == before
    assert len(seen) == 1
    try:
        assert vars(module).keys() - kept.keys() <= {"get_rope_index"}
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            patch(module)
    finally:
        unpatch(module)
    assert module.get_rope_index == own
    assert vars(module).keys() == kept.keys()


# Faults, each in what one family alone has


def of_positions(change):
    def fault(own, self, *args, **kwargs):
        positions, deltas = own(self, *args, **kwargs)
        return change(positions, kwargs), deltas

    return fault


def last_axis_of_wide_images(positions, arguments):
    grids = arguments.get("image_grid_thw")
    return positions + (0 if grids is None else (grids[:, 2] == grids[:, 2].max()).sum() - 1)


def prefill_length(own, self, *args, **kwargs):
    answer = own(self, *args, **kwargs)
    self._prefill_len += 1
    return answer


def targets_of_the_first_row(own, self, *args, **kwargs):
    answer = own(self, *args, **kwargs)
    if self._cached_decode_position_ids is not None:
        self._cached_decode_position_ids = self._cached_decode_position_ids[:1]
    return answer


def without(name):
    def fault(own, self, *args, **kwargs):
        return own(self, *args, **{**kwargs, name: None})

    return fault


def window_of_40(own, self, *args, **kwargs):
    window, self.config.audio_config.n_window = self.config.audio_config.n_window, 40
    try:
        return own(self, *args, **kwargs)
    finally:
        self.config.audio_config.n_window = window


def in_a_batch_alone(own, self, *args, **kwargs):
    positions, deltas = own(self, *args, **kwargs)
    return positions, deltas + (deltas.shape[0] > 2)


def whole_seconds(own, self, *args, **kwargs):
    if kwargs.get("second_per_grids") is not None:
        kwargs["second_per_grids"] = kwargs["second_per_grids"].floor()
    return own(self, *args, **kwargs)


@pytest.mark.parametrize(
    ("model_type", "fault"),
    [
        pytest.param("hunyuan_vl", of_positions(last_axis_of_wide_images), id="hunyuan grids"),
        pytest.param("hunyuan_vl", without("attention_mask"), id="hunyuan mask"),
        pytest.param("glm_image", prefill_length, id="glm_image prefill length"),
        pytest.param("glm_image", targets_of_the_first_row, id="glm_image targets"),
        pytest.param("minicpmv4_7", without("target_sizes_videos"), id="minicpm videos"),
        pytest.param("minicpmv4_7", in_a_batch_alone, id="minicpm batches"),
        pytest.param("qwen2_5_omni_thinker", whole_seconds, id="omni seconds"),
        pytest.param("qwen3_omni_moe_thinker", whole_seconds, id="qwen3_omni seconds"),
        pytest.param("qwen2_5_omni_talker", without("use_audio_in_video"), id="omni sound"),
        pytest.param("qwen3_omni_moe_thinker", window_of_40, id="qwen3_omni windows"),
        pytest.param("qwen2_vl", in_a_batch_alone, id="qwen2_vl batches"),
    ],
)
def test_a_method_that_differs_is_refused_with_the_prompt(model_type, fault):
    module = MODULES[model_type]()
    if model_type == "qwen3_omni_moe_thinker":
        module.config.audio_config.n_window = 13
    own = type(module).get_rope_index
    get_rope_index = functools.wraps(own)(lambda self, *a, **k: fault(own, self, *a, **k))
    module.get_rope_index = get_rope_index.__get__(module)
    with pytest.raises(RuntimeError, match=r"(differ|raises|refuses).*input_ids=\[\["):
        patch(module, check="always")
    assert vars(module)["get_rope_index"].__func__ is get_rope_index
    del module.get_rope_index


# Prompts


@each_rule
def test_prompts_are_those_of_their_seed_and_hold_the_edge_cases(model_type):
    spec = spec_of(model_type)
    prompts = list(self_check_prompts(spec, 1))
    few = len(prompts) - DRAWN + 5  # behind the edge cases, which no seed draws
    again, others = (list(islice(self_check_prompts(spec, seed), few)) for seed in (1, 2))
    assert repr(prompts[:few]) == repr(again)
    assert repr(prompts[:few]) != repr(others)
    found = set()
    for prompt in prompts:
        mask = prompt["attention_mask"]
        if mask is not None:
            both_sides = (mask[:, 0] == 0) & (mask[:, -1] == 0)
            found |= {"both sides"} if both_sides.any() else set()
        else:
            found.add("no mask")
        for name in ("image_grid_thw", "video_grid_thw", "target_sizes", "target_sizes_videos"):
            grids = prompt.get(name)
            if grids is None:
                continue
            sides = grids[:, -2:] // (spec.spatial_merge_size or 1)
            found |= {f"{name} of one side"} if (sides == sides.min()).any() else set()
            found |= {f"{name} of frames"} if (grids[:, 0] > 1).any() else set()
        for name in ("second_per_grid_ts", "second_per_grids"):
            seconds = prompt.get(name)
            if seconds is not None and any(float(each) % 1 for each in seconds):
                found.add(f"{name} as {type(seconds).__name__}")
        if not (prompt["input_ids"] == spec.image_token_id).any():
            found.add("no image")
        if prompt.get("audio_seqlens") is not None:
            found |= {("audio", int(length)) for length in prompt["audio_seqlens"]}
            found |= {"sound"} if prompt["use_audio_in_video"] else set()
        found |= {"samples"} if prompt.get("images_per_sample") is not None else set()
    expected = {"both sides", "no image"}
    if "omni" not in model_type or "cosmos" in model_type:
        expected.add("no mask")
    if model_type == "minicpmv4_7":
        expected |= {"target_sizes of one side", "target_sizes_videos of one side"}
    else:
        expected.add("image_grid_thw of one side")
    if "video_grid_thw" in prompts[0] and model_type != "glm_image":
        expected |= {"video_grid_thw of frames", "video_grid_thw of one side"}
    if model_type == "glm_image":
        expected.add("samples")
    if model_type == "qwen2_5_vl":
        expected |= {f"second_per_grid_ts as {name}" for name in ("list", "Tensor")}
    if model_type in CLASSES:
        window = 2 * (spec.own_rule.n_window or 20)
        expected |= {("audio", window + step) for step in (-1, 0, 1)}
        expected |= {"second_per_grids as Tensor", "sound"}
    assert expected <= found


@pytest.mark.parametrize("changes", [{"spatial_merge_size": 3}, {"image_token_id": 0}])
def test_prompts_are_made_for_the_configuration(changes):
    plain = MRopeSpec.for_model("qwen2_vl", convention="transformers")
    spec = MRopeSpec.for_model("qwen2_vl", convention="transformers", **changes)
    assert repr(list(self_check_prompts(spec, 0))) != repr(list(self_check_prompts(plain, 0)))


def test_a_known_method_is_compared_if_asked_for():
    module = module_of("qwen2_vl")
    with patched(module, check="always"):
        assert len(admission._CHECKED) == 1
    with patched(module):
        pass


def test_a_method_without_source_is_not_known_and_compared():
    module = module_of("qwen2_vl")
    own = type(module).get_rope_index
    names = {"__name__": own.__module__, "own": own}
    exec(
        "def get_rope_index(self, input_ids, mm_token_type_ids, image_grid_thw=None, "
        "video_grid_thw=None, attention_mask=None, **kwargs):\n"
        "    return own(self, input_ids, mm_token_type_ids, image_grid_thw, video_grid_thw, "
        "attention_mask)",
        names,
    )
    module.get_rope_index = names["get_rope_index"].__get__(module)
    try:
        with pytest.raises(RuntimeError, match="fingerprint None"):
            patch(module, check="known")
        with pytest.warns(UserWarning, match="agreed with it on all prompts of a check"):
            patch(module)
        unpatch(module)
    finally:
        del module.get_rope_index


def test_hy_v4_vl_is_refused_for_its_newline_column():
    reason = "this release of transformers has no hy_v4_vl"
    modeling = pytest.importorskip("transformers.models.hy_v4_vl.modeling_hy_v4_vl", reason=reason)

    module = bare(
        modeling.HYV4VLModel,
        model_type="hy_v4_vl",
        vision_config=SimpleNamespace(spatial_merge_size=2),
    )
    with pytest.raises(ValueError, match="each row of an image ends with a newline token"):
        patch(module)
    # Two lines of two tokens and a newline.
    types = torch.tensor([[0, 1, 1, 1, 1, 1, 1, 0]])
    positions, _ = module.get_rope_index(types, types, torch.tensor([[1, 4, 4]]))
    assert positions[:, 0].tolist() == [
        [0, 1, 1, 1, 1, 1, 1, 4],
        [0, 1, 1, 1, 2, 2, 2, 4],
        [0, 1, 2, 3, 1, 2, 3, 4],
    ]
