"""Models of transformers, patched and not: the same logits and the same tokens."""

import pytest
import torch
from tiny_models import IDS, LAYOUTS, inputs_of, tiny_model

from vecrope.families import FAMILIES
from vecrope.integrations.transformers import patched

EACH = pytest.mark.parametrize(
    ("model_type", "layout"),
    [(model_type, layout) for model_type, layouts in LAYOUTS.items() for layout in layouts],
)


@pytest.fixture(autouse=True)
def _quiet():
    import transformers

    transformers.logging.set_verbosity_error()
    with torch.no_grad():
        yield


def outputs(model, inputs):
    """Return all that positions can change: logits, and what is generated in several ways."""
    model.model.rope_deltas = None
    answers = {"logits": model(**inputs).logits, "deltas": model.model.rope_deltas}
    options = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True}
    options |= {"output_scores": True, "suppress_tokens": list(IDS.values())}
    ways = {"greedy": {}, "without a cache": {"use_cache": False}, "beams": {"num_beams": 2}}
    if model.config.model_type.startswith("glm") and "video_grid_thw" in inputs:
        # GLM's models count a token that no prompt holds when they repeat clips for the beams.
        del ways["beams"]
    for name, more in ways.items():
        generated = model.generate(**inputs, **options, **more)
        answers[name] = generated.sequences
        answers[f"{name}: scores"] = torch.stack(generated.scores)
        if name == "greedy":
            cache = generated.past_key_values
    answers["from a cache"] = resumed(model, inputs, answers["greedy"], cache, options)
    return answers


def resumed(model, inputs, tokens, cache, options):
    """Generate on from an answer and its cache, as the next turn of a conversation does."""
    added = tokens.shape[1] - inputs["input_ids"].shape[1]
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, added), value=1)
    return model.generate(tokens, attention_mask=mask, past_key_values=cache, **options).sequences


def with_plain_positions(_, input_ids, **_unused):
    batch, seq_len = input_ids.shape
    positions = torch.arange(seq_len).expand(3, batch, seq_len)
    return positions, torch.zeros((batch, 1), dtype=torch.int64)


def must_not_be_called(*_, **_unused):
    raise AssertionError("transformers' own get_rope_index was called")


@EACH
def test_logits_and_tokens_are_the_same_when_patched(model_type, layout, monkeypatch):
    model, inputs = tiny_model(model_type), inputs_of(model_type, layout)
    expected = outputs(model, inputs)
    with patched(model):
        monkeypatch.setattr(type(model.model), "get_rope_index", must_not_be_called)
        got = outputs(model, inputs)
        monkeypatch.undo()
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(got[name], value), name


@EACH
def test_other_positions_give_other_logits(model_type, layout, monkeypatch):
    """The comparison above would show a wrong position."""
    model, inputs = tiny_model(model_type), inputs_of(model_type, layout)
    expected = model(**inputs).logits
    monkeypatch.setattr(type(model.model), "get_rope_index", with_plain_positions)
    assert not torch.equal(model(**inputs).logits, expected)


def test_every_shared_family_is_among_them():
    shared = {
        model_type
        for model_type, family in FAMILIES.items()
        if "transformers" in family.rules and family.own_rule is None
    }
    assert shared == set(LAYOUTS)
