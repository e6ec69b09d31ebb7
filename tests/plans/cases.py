"""Plans of prompts, and what they have to answer."""

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import strategies as st
from oracles import spec_of
from packings import packings
from support import fitting, kept, rope_index
from torch.utils import _pytree as pytree

from vecrope import (
    get_rope_index,
    plan_rope_index,
)
from vecrope.plans.plan import RopeIndexPlan
from vecrope.testing import Prompt

# Frames apart or in one block, spaced by their number or in time; padding skipped or numbered;
# deltas of padded and of valid lengths; blocks that reach further than they move the position.
SPECS = {
    "glm4v-sglang": spec_of("glm4v", "sglang"),
    "glm4v-transformers": spec_of("glm4v", "transformers"),
    "qwen2_5_vl-transformers": spec_of("qwen2_5_vl", "transformers"),
    "qwen2_5_vl-sglang": spec_of("qwen2_5_vl", "sglang"),
    "qwen3_vl-vllm": spec_of("qwen3_vl", "vllm"),
}


each_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())


QWEN = spec_of("qwen2_vl", "transformers")


PACED = SPECS["qwen2_5_vl-transformers"]


BEYOND = 9


GLM_IMAGE = spec_of("glm_image", "transformers")


integers = torch.tensor


@dataclass
class Case:
    """A plan, the answer it has to give, and each of its rows with the tokens decoded after it."""

    plan: RopeIndexPlan
    whole: torch.Tensor  # (3, B, T) or (3, N)
    deltas: torch.Tensor  # (B, 1)
    answer: tuple[torch.Tensor, torch.Tensor]  # of get_rope_index
    dense: torch.Tensor  # (3, rows, the longest row and BEYOND)
    lengths: list[int]

    @property
    def most(self):
        return self.dense.shape[2]


def case_of(plan, whole, deltas, answer, rows, next_positions):
    """Extend rows (3, L) of any lengths by what is decoded after them, up to one length."""
    lengths = [row.shape[1] for row in rows]
    most = max(lengths, default=0) + BEYOND
    extended = [
        torch.cat((row, torch.arange(most - row.shape[1]).expand(3, -1) + after), 1)
        for row, after in zip(rows, next_positions, strict=True)
    ]
    dense = torch.stack(extended, 1).to(whole.dtype)
    return Case(plan, whole, deltas, answer, dense, lengths)


def padded_case(prompt, **options):
    whole, deltas = prompt.expected()
    lengths = torch.full_like(deltas, whole.shape[2])
    if prompt.spec.delta_length == "valid":
        lengths = kept(prompt).sum(1, keepdim=True)
    return case_of(
        rope_index(prompt, plan_rope_index, **options),
        whole,
        deltas,
        rope_index(prompt),
        whole.unbind(1),
        (lengths + deltas).view(-1).tolist(),
    )


def packed_case(packing, spec, *, between, **options):
    """Take the sequences of a packing, with the padding between them or without."""
    answers = [part.expected() for part in packing.parts]
    deltas = torch.cat([own for _, own in answers])
    after = [own[0].shape[2] + int(own[1]) for own in answers]
    arguments = packing.arguments()
    rows = [own.squeeze(1) for own, _ in answers]
    if between:
        tokens = packing.input_ids
        whole = torch.full((3, *tokens.shape), spec.padding_value, dtype=rows[0].dtype)
        for (row, columns), own in zip(packing.places, rows, strict=True):
            whole[:, row, columns] = own
        width = tokens.shape[1]
        starts = [row * width + columns.start for row, columns in packing.places]
        bounds = [0, *starts[1:], tokens.numel()]
        rows = whole.flatten(1).split(integers(bounds).diff().tolist(), 1)
    else:
        tokens = torch.cat([part.input_ids[0] for part in packing.parts])
        del arguments["sequence_ids"]
        bounds = [0, *(own.shape[1] for own in rows)]
        arguments["cu_seqlens"] = integers(bounds).cumsum(0)
        whole = torch.cat(rows, 1)
    plan = plan_rope_index(tokens, spec, **arguments, **options)
    answer = get_rope_index(tokens, spec, **arguments)
    return case_of(plan, whole, deltas, answer, rows, after)


@st.composite
def cases(draw, spec):
    """Draw a plan of padded rows, of packed sequences or of rows of sequences, in either form."""
    options = draw(st.sampled_from([{}, {"max_groups": 400}]))
    layouts = ["padded", "packed"] + ["between"] * (spec.mask_rule == "skip")
    layout = draw(st.sampled_from(layouts))
    if layout == "padded":
        prompt = draw(fitting(spec))
        if draw(st.booleans()):
            prompt = replace(prompt, input_ids=prompt.input_ids.int())
        return padded_case(prompt, **options)
    packing = draw(packings(spec, hostile=spec.mask_rule == "skip"))
    return packed_case(packing, spec, between=layout == "between", **options)


def drawn_integers(draw, shape, highest, dtypes=(torch.int64,)):
    """Draw a tensor of integers from 0 to `highest`, in one of the dtypes that hold them."""
    size = torch.Size(shape).numel()
    values = draw(st.lists(st.integers(0, highest), min_size=size, max_size=size))
    fitting_dtypes = [dtype for dtype in dtypes if torch.iinfo(dtype).max >= highest]
    return integers(values, dtype=draw(st.sampled_from(fitting_dtypes))).reshape(shape)


INDEX_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


shapes = st.lists(st.integers(0, 3), max_size=3)


FRAMES_IN_TIME = Prompt.from_symbols(PACED, [f"t<{26 * 'V'}>t"], video_grid_thw=[[26, 2, 2]])


def of_seconds(seconds):
    prompt = replace(FRAMES_IN_TIME, second_per_grid_ts=seconds)
    plan = rope_index(prompt, plan_rope_index)
    assert torch.equal(plan.position_ids(), prompt.expected()[0])
    return plan


def example(spec=QWEN, rows=("tIItt", "IItVV"), **options):
    rows = [row.replace("V", "I") if spec.video_token_id is None else row for row in rows]
    prompt = Prompt.from_symbols(
        spec, rows, image_grid_thw=[[1, 2, 4], [1, 4, 2]], video_grid_thw=[[2, 2, 2]]
    )
    return rope_index(prompt, plan_rope_index, **options)


def every_way(plan, index, rows, computed, scheduled):
    return (
        plan.slice(1, 9),
        plan.at(index, rows, validate=False),
        plan.at(index, validate=False),
        plan.decode(2, start=computed),
        plan.step(computed, scheduled, num_tokens=6, validate=False),
        plan.position_ids(),
        plan.rope_deltas,
    )


def read_off(plan, steps):
    """Return the positions of a plan, read in every way that kernels know."""
    width = plan._width
    computed, scheduled = steps
    rows = torch.arange(len(plan), device=plan.device).flip(0)
    index = torch.arange(width + 2, device=plan.device)
    return (
        plan.position_ids(text_positions=True),
        plan.rope_deltas,
        plan.next_positions,
        plan.slice(1, width + 3),
        plan.at(index.expand(len(plan), -1)),
        plan.at(index.unsqueeze(1), rows),
        plan.step(computed, scheduled),
        plan.shard(1, 2, "zigzag", pad_to_multiple_of=4, text_positions=True),
        plan.shard(0, 2, pad_to_multiple_of=2),
    )


CALLS = [
    (integers([[0, 4, 7], [3, 1, 0]]), integers([[1], [0]]), integers([3, 0]), integers([4, 2])),
    (integers([[9, 0, 1], [2, 2, 5]]), integers([[0], [1]]), integers([0, 6]), integers([1, 3])),
]


def examples(spec):
    rows = ("tIItt", "IItVV"), ("VVIIt", "tttII")
    return [example(spec, own, max_groups=12) for own in rows]


def tensors_of(tree):
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


PLAN = example()
