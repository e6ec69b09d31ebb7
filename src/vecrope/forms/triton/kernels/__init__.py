"""The static form as Triton kernels; `vecrope.forms.triton.launch` launches them.

Each program takes a block of one row, twice: to sum it up in a few numbers, and to write its
positions, for which it sums up those of all blocks before it. A placeholder's rank, counted so,
gives its item, and the spans of all groups of a lower rank and the text before it in the row give
the position at which its group starts: there is no table of segments, and nothing of the prompt's
length is written but the positions. A group is what shares one running position: an image, or a
frame of a video.

What names a place in the workspace is a function, not a constant: Triton compares every global with
its value at compile time, at every launch.
"""

from vecrope.forms.triton.constants import MAX_TOKENS
from vecrope.forms.triton.kernels.positions import write
from vecrope.forms.triton.kernels.summaries import mark, summarise

__all__ = ["MAX_TOKENS", "mark", "summarise", "write"]
