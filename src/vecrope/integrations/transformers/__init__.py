"""`get_rope_index` of transformers' models, answered by vecrope: patched in, and out again.

Importing this package does not import transformers.
"""

from vecrope.integrations.transformers.patching import patch, patched, unpatch

__all__ = ["patch", "patched", "unpatch"]
