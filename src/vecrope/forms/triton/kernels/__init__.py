"""The static form as Triton kernels; `vecrope.forms.triton.launch` launches them.

Each program takes a block of one row, twice: to sum it up in a few numbers, and to write its
positions, for which it sums up those of all blocks before it. A placeholder's rank, counted so,
gives its item, and the spans of all groups of a lower rank and the text before it in the row give
the position at which its group starts: there is no table of segments, and nothing of the prompt's
length is written but the positions. A group is what shares one running position: an image, a
separate frame of a video, or a video that is one block.

A plan takes one pass more, which numbers its entries before they are written. What is read off a
plan, or moved in one, is found by a search among its entries, each by one kernel or two.

One set of kernels serves every family that shares the rule: what distinguishes them is constants,
by which Triton compiles each its own.

What names a place in the workspace is a function, not a constant: Triton compares every global with
its value at compile time, at every launch.
"""

from vecrope.forms.triton.constants import MAX_TOKENS
from vecrope.forms.triton.kernels.expand import expand_columns, expand_rows, expand_step
from vecrope.forms.triton.kernels.invalidate import invalidate
from vecrope.forms.triton.kernels.positions import write
from vecrope.forms.triton.kernels.select import add_begins, choose_rows, copy_entries
from vecrope.forms.triton.kernels.summaries import mark, summarise

__all__ = [
    "MAX_TOKENS",
    "add_begins",
    "choose_rows",
    "copy_entries",
    "expand_columns",
    "expand_rows",
    "expand_step",
    "invalidate",
    "mark",
    "summarise",
    "write",
]
