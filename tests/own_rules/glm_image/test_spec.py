import pytest
from transformers import GlmImageConfig

from tests.own_rules.glm_image.calls import each_convention
from vecrope import (
    MRopeSpec,
)
from vecrope.families.rules import GlmImage

# Configurations


@each_convention
def test_a_live_configuration_is_understood(spec):
    config = GlmImageConfig()
    got = MRopeSpec.from_config(config, convention=spec.convention)
    assert got == MRopeSpec.for_model("glm_image", convention=spec.convention)
    assert got.image_token_id == config.image_token_id
    assert got.own_rule == GlmImage(config.image_start_token_id, config.image_end_token_id)


@pytest.mark.parametrize(
    ("ids", "error", "match"),
    [
        pytest.param((1, 1), ValueError, "must differ, got 1 for both", id="equal"),
        pytest.param(("1", 2), TypeError, "image_start_token_id must be an int", id="start"),
        pytest.param((1, True), TypeError, "image_end_token_id must be an int", id="end"),
    ],
)
def test_wrong_markers_are_refused(ids, error, match):
    with pytest.raises(error, match=match):
        GlmImage(*ids)
