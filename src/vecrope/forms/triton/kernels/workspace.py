"""Where the numbers of blocks and items lie in the workspace, and sums over blocks."""

import triton
import triton.language as tl


@triton.jit
def block_rows(work, num_blocks):
    """Return the rows of the workspace of a number a block, and the item table that follows them.

    They are: the index of the last marker times two, plus one for a video start, or by the count of
    markers video starts less video ends; placeholders before the first marker, whose kind the
    blocks before decide; image placeholders, video placeholders and unmasked tokens, of 10 bits
    each; and four that `load_block` reads. `NUM_FAULTS` numbers of 64 bits stand before them.
    """
    rows = work + 6
    blocks, items = rows + 3 * num_blocks, rows + 7 * num_blocks
    return rows, rows + num_blocks, rows + 2 * num_blocks, blocks, items


@triton.jit
def three_counts(image, video, other):
    """Return three numbers of 0 or 1 in one, to be added up over a block."""
    return image.to(tl.int32) + (video.to(tl.int32) << 10) + (other.to(tl.int32) << 20)


@triton.jit
def faults_of(work):
    """Return the numbers of 64 bits at the start of the workspace."""
    return work.to(tl.pointer_type(tl.int64))


@triton.jit
def item_rows(items, num_items):
    """Return the rows of the item table, each of a number an item.

    They are: the rank behind its last placeholder and that of its first; the columns of a frame;
    the tokens of a frame and of a group; by how much a group moves the running position, and all
    groups of all items before have.
    """
    return (
        items,
        items + num_items,
        items + 2 * num_items,
        items + 3 * num_items,
        items + 4 * num_items,
        items + 5 * num_items,
        items + 6 * num_items,
    )


@triton.jit
def sum_of_blocks(column, start, stop, CHUNK: tl.constexpr):
    """Return the sum of a row of the workspace from one block up to another."""
    total = tl.zeros((CHUNK,), tl.int32)
    for first in range(start, stop, CHUNK):
        at = first + tl.arange(0, CHUNK)
        total += tl.load(column + at, mask=at < stop, other=0)
    return tl.sum(total, 0)
