"""Names of vLLM's models."""

from oracles import families_of

from vecrope.integrations.vllm import models

ALL = [(module, name) for module, classes in models.CLASSES.items() for name in classes]

GROUP = [(1, 1, 1, 2)]
ANSWER = [[0, 1, 1, 3], [0, 1, 1, 3], [0, 1, 2, 3]]


def answer(owner, *arguments):
    position_ids, delta = owner().get_mrope_input_positions(*arguments)
    return position_ids.tolist(), delta


# vLLM itself


FAMILIES = [
    *(name for name in families_of("vllm") if name not in ("qwen3_asr", "minicpmv4_6")),
    "bailing_moe_v3_vl",
]
