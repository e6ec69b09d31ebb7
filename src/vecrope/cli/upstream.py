"""The upstream's own function for a prompt, where it is installed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

from vecrope.cli.prompt import Prompt
from vecrope.spec import MRopeSpec
from vecrope.testing.reference import token_types
from vecrope.testing.rules import type_rules_of
from vecrope.testing.stand_in import StandIn


def find_upstream(prompt: Prompt) -> tuple[str, Callable[[], Any]] | None:
    """Return what the prompt's upstream is called, and a call of its function; None: not at hand.

    It is transformers', if it is installed and has the family with the ids of the prompt's spec.
    """
    spec = prompt.spec
    if spec.convention != "transformers" or prompt.attention_mask is not None:
        return None
    try:
        import transformers
        from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES
    except ImportError:
        return None
    # What transformers says of a default configuration is not of this prompt.
    logging.disable(logging.WARNING)
    try:
        config = transformers.AutoConfig.for_model(spec.model_type)
        if MRopeSpec.from_config(config, convention="transformers") != spec:
            return None
        model_class: Any = getattr(transformers, str(MODEL_MAPPING_NAMES[spec.model_type]))
        function = model_class.get_rope_index
    except (AttributeError, KeyError, ValueError):
        return None
    finally:
        logging.disable(logging.NOTSET)
    types = prompt.mm_token_type_ids
    if types is None:
        rules = type_rules_of(spec)
        types = torch.tensor([token_types(row, **rules) for row in prompt.input_ids.tolist()])
    arguments = prompt.arguments() | {"mm_token_type_ids": types}
    if arguments["second_per_grid_ts"] is None:
        del arguments["second_per_grid_ts"]
    model = StandIn(model_class, config, spatial_merge_size=spec.spatial_merge_size)
    name = f"transformers {transformers.__version__}, its own function"
    return name, lambda: function(model, prompt.input_ids, **arguments)
