"""Models of transformers, patched and not: the same logits and the same tokens."""

import pytest
import torch
from oracles import NOT_YET_IN_TRANSFORMERS
from tiny_models import FIRST_TEXT_ID, LAYOUTS, inputs_of, tiny_model
from tiny_own_models import MODELS, WITH_SOUND, own_inputs_of, tiny_own_model

from vecrope.families import FAMILIES
from vecrope.integrations.transformers import patched

WAYS = {"without a cache": {"use_cache": False}, "beams": {"num_beams": 2}}
EACH = pytest.mark.parametrize(
    ("model_type", "layout"),
    [(model_type, layout) for model_type, layouts in LAYOUTS.items() for layout in layouts]
    + [(model_type, "own rule") for model_type in MODELS]
    + [(model_type, "with sound") for model_type in WITH_SOUND],
)


@pytest.fixture(autouse=True)
def _quiet():
    import transformers

    transformers.logging.set_verbosity_error()
    with torch.no_grad():
        yield


def model_and_inputs(model_type, layout):
    if model_type in MODELS:
        return tiny_own_model(model_type), own_inputs_of(model_type, layout)
    return tiny_model(model_type), inputs_of(model_type, layout)


def parts_of(model):
    """Return the modules with the method: an omni model's thinker is one, and so is its model."""
    return [part for part in model.modules() if hasattr(type(part), "get_rope_index")]


def outputs(model, inputs, ways):
    """Return all that positions can change: logits, and what is generated in several ways.

    Args:
        model: of transformers.
        inputs: what it is called with.
        ways: to generate besides greedily, from a cache: some of `WAYS`.
    """
    for part in parts_of(model):
        part.rope_deltas = None
    answers = {"logits": model(**inputs).logits, "deltas": parts_of(model)[-1].rope_deltas}
    options = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True}
    options |= {"output_scores": True, "suppress_tokens": list(range(3, FIRST_TEXT_ID))}
    ways = dict(ways)
    model_type = model.config.model_type
    if model_type == "glm_image" or (model_type.startswith("glm") and "video_grid_thw" in inputs):
        # To repeat images for the beams these count tokens that no prompt holds, or not as many.
        ways.pop("beams", None)
    for name, more in {"greedy": {}, **ways}.items():
        generated = model.generate(**inputs, **options, **more)
        answers[name] = generated.sequences
        answers[f"{name}: scores"] = torch.stack(generated.scores)
        if name == "greedy":
            cache = generated.cache
    answers["from a cache"] = resumed(model, inputs, answers["greedy"], cache, options)
    return answers


def resumed(model, inputs, tokens, cache, options):
    """Generate on from an answer and its cache, as the next turn of a conversation does."""
    added = tokens.shape[1] - inputs["input_ids"].shape[1]
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, added), value=1)
    return model.generate(tokens, attention_mask=mask, cache=cache, **options).sequences


def must_not_be_called(*_, **_unused):
    raise AssertionError("transformers' own get_rope_index was called")


@EACH
def test_logits_and_tokens_are_the_same_when_patched(model_type, layout, monkeypatch):
    model, inputs = model_and_inputs(model_type, layout)
    # All ways for one layout of each model.
    ways = WAYS if layout in (next(iter(LAYOUTS.get(model_type, [layout]))), "with sound") else {}
    expected = outputs(model, inputs, ways)
    with patched(model):
        for part in parts_of(model):
            monkeypatch.setattr(type(part), "get_rope_index", must_not_be_called)
        got = outputs(model, inputs, ways)
        monkeypatch.undo()
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(got[name], value), name


@EACH
def test_other_positions_give_other_logits(model_type, layout, monkeypatch):
    """The comparison above would show a wrong position."""
    model, inputs = model_and_inputs(model_type, layout)
    expected = model(**inputs).logits
    part = parts_of(model)[-1]
    own = part.get_rope_index

    def with_plain_positions(*args, **kwargs):
        positions, deltas = own(*args, **kwargs)
        return torch.arange(positions.shape[2]).expand_as(positions), deltas

    monkeypatch.setattr(part, "get_rope_index", with_plain_positions)
    assert not torch.equal(model(**inputs).logits, expected)


def test_every_family_is_among_them():
    known = {name for name, family in FAMILIES.items() if "transformers" in family.rules}
    known -= NOT_YET_IN_TRANSFORMERS.keys()
    # Of an omni model its parts have the method; the talker starts from what a thinker has found.
    wholes = {"qwen2_5_omni", "qwen3_omni_moe", "qwen2_5_omni_talker"}
    assert known - wholes == {*LAYOUTS, *MODELS}
