"""The method of a model of transformers after `patch`, as its forward calls it: types given."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

import vecrope
from bench.answers import Answer, tensor_arguments
from bench.prompts import Workload
from bench.provider import Provider
from bench.upstreams import TRANSFORMERS_CLASSES


def patched_provider() -> Provider:
    """Return `get_rope_index` of a patched model of the installed transformers."""

    def prepare(workload: Workload) -> Callable[[], Answer]:
        model = _patched_model(workload.model_type)
        arguments = tensor_arguments(workload)
        arguments["mm_token_type_ids"] = workload.mm_token_type_ids
        return lambda: model.get_rope_index(workload.input_ids, **arguments)

    return Provider(
        "vecrope-patched",
        vecrope.__version__,
        "transformers",
        prepare,
        families=tuple(TRANSFORMERS_CLASSES),
        touching=True,
    )


@cache
def _patched_model(model_type: str) -> Any:
    """Return a patched model of one layer without memory for its parameters."""
    import transformers

    from vecrope.integrations.transformers import patch

    model_class = getattr(transformers, TRANSFORMERS_CLASSES[model_type])
    config = model_class.config_class()
    config.text_config.num_hidden_layers = 1
    config.vision_config.depth = 1
    with torch.device("meta"):
        model = model_class(config)
    patch(model)
    return model
