"""M-RoPE position ids for vision-language models as one batched tensor pipeline.

Notation, used by every docstring:

    B   rows of a batch
    T   padded length of a row
    N   tokens in all, B times T where the input is padded
    S   segments: maximal runs of text, of one image or video, or of masked tokens
    I   items: grid rows, images before videos
"""

from vecrope.collate import (
    Dropped,
    collate,
    dummy_image,
    packing_obstacles,
    shard_batch,
    truncate,
)
from vecrope.forms.eager import positions_of_groups
from vecrope.own_rules.glm_image.decode import get_decode_position_ids
from vecrope.plans.extend import extend_plan
from vecrope.plans.placeholders import get_rope_index_from_placeholders, plan_from_placeholders
from vecrope.plans.plan import RopeIndexPlan
from vecrope.plans.rows import concatenate_plans
from vecrope.plans.shards import ShardLayout, shard_indices
from vecrope.registration import list_families, register_family
from vecrope.rope_index import explain_form, get_rope_index, plan_rope_index
from vecrope.runner import RopeIndexRunner, RunnerInputs
from vecrope.sequences import sequence_ids_from_position_ids
from vecrope.spec import Convention, MRopeSpec

__all__ = [
    "Convention",
    "Dropped",
    "MRopeSpec",
    "RopeIndexPlan",
    "RopeIndexRunner",
    "RunnerInputs",
    "ShardLayout",
    "collate",
    "concatenate_plans",
    "dummy_image",
    "explain_form",
    "extend_plan",
    "get_decode_position_ids",
    "get_rope_index",
    "get_rope_index_from_placeholders",
    "list_families",
    "packing_obstacles",
    "plan_from_placeholders",
    "plan_rope_index",
    "positions_of_groups",
    "register_family",
    "sequence_ids_from_position_ids",
    "shard_batch",
    "shard_indices",
    "truncate",
]

__version__ = "0.1.0"
