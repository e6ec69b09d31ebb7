"""The reference: M-RoPE positions, one token after the other, in plain Python lists.

To be checked by eye. Nothing of the library is used here, so that the two can only agree by both
being right. `get_rope_index` is the rule that most families share; a module for each family with a
rule of its own has a function of the same name. `rows` is the loop that all of them go through.
"""

from vecrope.testing.reference import bailing, glm_image, hunyuan_vl, isaac, minicpmv4_7, omni
from vecrope.testing.reference.rows import IMAGE, TEXT, VIDEO, Answer, Refusal
from vecrope.testing.reference.shared import get_rope_index, token_types

__all__ = [
    "IMAGE",
    "TEXT",
    "VIDEO",
    "Answer",
    "Refusal",
    "bailing",
    "get_rope_index",
    "glm_image",
    "hunyuan_vl",
    "isaac",
    "minicpmv4_7",
    "omni",
    "token_types",
]
