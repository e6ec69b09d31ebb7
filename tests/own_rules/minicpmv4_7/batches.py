"""Batches of MiniCPM-V 4.7 of fixed shapes."""

import pytest
from own_support import minicpm_spec

from vecrope.testing import Prompt

UPSTREAMS = ("transformers", "sglang", "vllm")
SPECS = {upstream: minicpm_spec(upstream) for upstream in UPSTREAMS}
each_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)

# Tracing


ROW = "tt(III)<II>n<II>n(I)t(VV)(VV)nt"
NEXT = "t(VV)n(VVV)ttt(I)t(II)<I><I>t"


def batch(spec, rows, images, videos):
    """Build a prompt of which no two sizes are equal, or 0, 1 or 2: those are compiled apart."""
    seq_len = max(map(len, rows)) + 1
    return Prompt.from_symbols(
        spec,
        [row.rjust(seq_len, "t") for row in rows],
        mask=[("1" * len(row)).rjust(seq_len, "0") for row in rows],
        target_sizes=images + [[0, 0]] * (len(rows) + 7 - len(images)),
        target_sizes_videos=[[0, 0]] * (len(rows) + 13 - len(videos)) + videos,
    )


def batches(spec):
    first = [[4, 12], [4, 8], [4, 8], [4, 4]], [[4, 8], [8, 4]]
    second = [[4, 4], [4, 8], [4, 4], [4, 4]], [[4, 8], [4, 12]]
    yield batch(spec, [ROW, "ttt", "n"], *first)
    yield batch(spec, ["t", NEXT, "tt", ""], *second)
    yield batch(spec, [ROW, "t" + NEXT, *"ttn"], first[0] + second[0], first[1] + second[1])


def arguments_of(prompt, *, by_types):
    arguments = prompt.arguments()
    if not by_types:
        arguments["mm_token_type_ids"] = None
    return arguments
