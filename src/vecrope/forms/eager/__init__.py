"""The eager form: for a CPU, where values can be read.

The grids, read on the host, say how many placeholders there are and how they are cut into groups
(`items`). The tokens say where they stand (`runs`), and what does not fit (`groups`). Positions are
one cumulative sum of ones, with corrections at lines, at first tokens and behind groups (`write`).
"""

from vecrope.forms.eager.from_groups import Group, positions_of_groups
from vecrope.forms.eager.rope_index import eager_rope_index

__all__ = ["Group", "eager_rope_index", "positions_of_groups"]
