"""The answer to what does not fit, where nothing can be raised."""

import triton
import triton.language as tl

from vecrope.forms.triton.constants import ARGUMENTS
from vecrope.forms.triton.kernels.workspace import faults_of


@triton.jit(
    do_not_specialize=["num_positions", "num_rows"], do_not_specialize_on_alignment=ARGUMENTS
)
def invalidate(positions, deltas, work, num_positions, num_rows, BLOCK: tl.constexpr):
    """Write -1 to every position and the least number to every delta if there is any fault."""
    faults = faults_of(work)
    if (tl.load(faults) != 0) | (tl.load(faults + 1) != 0) | (tl.load(faults + 2) != 0):
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        tl.store(positions + at, tl.full((BLOCK,), -1, tl.int64), mask=at < num_positions)
        tl.store(deltas + at, tl.full((BLOCK,), -(2**63), tl.int64), mask=at < num_rows)
