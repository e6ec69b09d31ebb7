"""The eager form: for a CPU, where values can be read.

The grids, read on the host, say how many placeholders there are and how they are cut into groups
(`items`). The tokens say where the placeholders stand (`find`). Positions are one cumulative sum of
ones, with corrections at lines, at first tokens and behind groups (`write`).
"""

from vecrope.forms.eager.rope_index import eager_rope_index

__all__ = ["eager_rope_index"]
