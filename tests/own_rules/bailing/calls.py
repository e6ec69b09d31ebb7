"""Specs of bailing_moe_v3_vl."""

import pytest
from own_support import (
    IMAGE,
    SPECS,
)

from vecrope import MRopeSpec

BLOCKS, FRAMES = SPECS["bailing"], SPECS["bailing with timestamps"]


VLLM = MRopeSpec.for_model("bailing_moe_v3_vl", convention="vllm", image_token_id=IMAGE)


each_spec = pytest.mark.parametrize("spec", [BLOCKS, FRAMES], ids=["blocks", "frames"])
