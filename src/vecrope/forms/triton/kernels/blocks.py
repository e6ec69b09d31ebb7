"""Which tokens a program takes: a block of one row, or of one packed sequence."""

import triton
import triton.language as tl


@triton.jit
def _bound(bounds, number, sizes, num_tokens, exists):
    """Return the indices at which sequences begin, kept within the tokens."""
    bound = tl.load(bounds + number, mask=exists, other=0).to(tl.int64)
    bound = tl.minimum(tl.maximum(bound, 0), num_tokens)
    if sizes is not None:
        size = tl.load(sizes)
        bound = tl.where(number >= size >> 32, size & 0x7FFFFFFF, bound)
    return bound.to(tl.int32)


@triton.jit
def block_of(
    block, bounds, sizes, num_tokens, seq_len, num_rows, BLOCK: tl.constexpr, CHUNK: tl.constexpr
):
    """Return the row of a block, the row's first block, and where the row begins and ends.

    A row's blocks begin where it does, and each has at least one. Packed sequences have fewer
    blocks than programs: a program that is left over has the row `num_rows` and no token.
    """
    if bounds is None:
        blocks_in_row = tl.cdiv(seq_len, BLOCK)
        row = block // blocks_in_row
        first = row * blocks_in_row
        begin = row * seq_len
        end = begin + seq_len
    else:
        row = tl.zeros((), tl.int32)
        first = tl.zeros((), tl.int32)
        blocks_so_far = tl.zeros((), tl.int32)
        for start in range(0, num_rows, CHUNK):
            number = start + tl.arange(0, CHUNK)
            exists = number < num_rows
            begins = _bound(bounds, number, sizes, num_tokens, exists)
            ends = _bound(bounds, number + 1, sizes, num_tokens, exists)
            blocks = tl.maximum(tl.cdiv(ends - begins, BLOCK), 1)
            blocks = tl.where(exists, blocks, 0)
            is_before = exists & (blocks_so_far + tl.cumsum(blocks, 0) <= block)
            row += tl.sum(is_before.to(tl.int32), 0)
            first += tl.sum(tl.where(is_before, blocks, 0), 0)
            blocks_so_far += tl.sum(blocks, 0)
        exists = row < num_rows
        begin = _bound(bounds, row, sizes, num_tokens, exists)
        end = tl.where(exists, _bound(bounds, row + 1, sizes, num_tokens, exists), begin)
    return row, first, begin, end


@triton.jit
def store_block(blocks, num_blocks, block, row, first, begin, end):
    """Write what `block_of` returns for a block of packed sequences to the workspace."""
    at = blocks + block
    tl.store(at, row)
    tl.store(at + num_blocks, first)
    tl.store(at + 2 * num_blocks, begin)
    tl.store(at + 3 * num_blocks, end)


@triton.jit
def load_block(blocks, num_blocks, block):
    """Return what `store_block` has written.

    It is not looked for among the bounds once more: a compiler takes what a function is given, to
    return an index, for written where that index is.
    """
    at = blocks + block
    begin, end = tl.load(at + 2 * num_blocks), tl.load(at + 3 * num_blocks)
    return tl.load(at), tl.load(at + num_blocks), begin, end


@triton.jit
def places_of(block, first, begin, BLOCK: tl.constexpr):
    """Return the places of a block's tokens in the batch."""
    return begin + (block - first) * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def load_tokens(
    ids,
    mask,
    bounds,
    sizes,
    row,
    begin,
    end,
    at,
    IGNORE_MASK: tl.constexpr,
):
    """Return the tokens at these places of the batch, and which exist and are kept.

    Also return which have a mask that is neither 0 nor 1.
    """
    inside = at < end
    token = tl.load(ids + at, mask=inside, other=-1)
    kept = inside
    if sizes is not None and bounds is None:
        # The rows in use in the upper half, the tokens of each in the lower.
        size = tl.load(sizes)
        kept &= at < tl.where(row < size >> 32, begin + (size & 0x7FFFFFFF), 0)
    wrong = inside & (at < 0)
    if mask is not None:
        code = tl.load(mask + at, mask=inside, other=0)
        wrong = (code != 0) & (code != 1)
        if not IGNORE_MASK:
            kept &= code != 0
    return token, inside, kept, wrong


@triton.jit
def check_bounds(bounds, sizes, num_tokens, num_rows, CHUNK: tl.constexpr):
    """Return how many sequences begin or end where they must not."""
    if sizes is not None:
        size = tl.load(sizes)
        num_rows, num_tokens = (size >> 32).to(tl.int32), (size & 0x7FFFFFFF).to(tl.int32)
    wrong = (tl.load(bounds) != 0).to(tl.int32)
    wrong += (tl.load(bounds + num_rows) != num_tokens).to(tl.int32)
    for first in range(0, num_rows, CHUNK):
        number = first + tl.arange(0, CHUNK)
        exists = number < num_rows
        begins = tl.load(bounds + number, mask=exists, other=0)
        ends = tl.load(bounds + number + 1, mask=exists, other=0)
        wrong += tl.sum((ends < begins).to(tl.int32), 0)
    return wrong
