"""Specs and calls of glm_image."""

from types import MethodType, SimpleNamespace

import pytest
import torch
from own_support import (
    END,
    SPECS,
    START,
    ids_of,
)
from transformers.models.glm_image.modeling_glm_image import GlmImageModel

from vecrope import (
    get_decode_position_ids,
)

TRANSFORMERS, SGLANG = SPECS["glm_image, transformers"], SPECS["glm_image, sglang"]


each_convention = pytest.mark.parametrize(
    "spec", [TRANSFORMERS, SGLANG], ids=lambda s: s.convention
)


def decode(prompt, **changes):
    arguments = {**prompt.arguments(), **changes}
    return get_decode_position_ids(spec=prompt.spec, **arguments)


def decode_of(rows, spec=TRANSFORMERS, **arguments):
    tensors = {
        name: torch.tensor(value) if isinstance(value, list) else value
        for name, value in arguments.items()
    }
    return get_decode_position_ids(ids_of(*rows), spec, **tensors)


# transformers, live


def transformers_answers(prompt):
    """Return what `get_rope_index` returns, and what it keeps: the decode positions."""
    model = SimpleNamespace(
        config=SimpleNamespace(image_start_token_id=START, image_end_token_id=END)
    )
    model.get_vision_position_ids = MethodType(GlmImageModel.get_vision_position_ids, model)
    answer = GlmImageModel.get_rope_index(model, **prompt.arguments())
    return answer, model._cached_decode_position_ids
