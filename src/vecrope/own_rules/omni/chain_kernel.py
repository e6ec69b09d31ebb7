"""The chain of rounded sums as one Triton program over the items."""

import triton
import triton.language as tl


@triton.jit
def follow(steps, reach, positions, num_items):
    """Write the positions (I, 4) of `vecrope.own_rules.omni.bases.chain`, of its arguments."""
    position = tl.zeros((), tl.float32)
    for item in range(num_items):
        goes_on = tl.load(steps + item)
        markers = tl.load(steps + 2 * num_items + item)
        mark = tl.where(goes_on != 0, position, 0.0) + tl.load(steps + num_items + item)
        block = mark + markers
        last_frame = block + tl.load(reach + item)
        visual = block + tl.load(reach + num_items + item)
        audio = block + tl.load(reach + 2 * num_items + item)
        end = tl.where(last_frame > audio, visual, audio) + 1.0
        position = (end + 1.0) + (markers - 1.0)
        tl.store(positions + 4 * item, mark)
        tl.store(positions + 4 * item + 1, block)
        tl.store(positions + 4 * item + 2, end)
        tl.store(positions + 4 * item + 3, position)
