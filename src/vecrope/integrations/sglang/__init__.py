"""SGLang's functions, and `install`, which puts them in place of those that are installed.

The source is `sglang/srt/layers/rotary_embedding/mrope_rope_index.py` of SGLang 0.5.23, whose
names, arguments and answers they keep. Importing this package does not import SGLang. Import it
under another name than the real package's: `from vecrope.integrations import sglang as ours`.
"""

from vecrope.integrations.sglang.ernie45 import get_rope_index_ernie45
from vecrope.integrations.sglang.glm4v import get_rope_index_glm4v
from vecrope.integrations.sglang.installing import Installation, install, refusals, uninstall
from vecrope.integrations.sglang.qwen import get_rope_index
from vecrope.integrations.sglang.qwen3_omni import get_rope_index_qwen3_omni

__all__ = [
    "Installation",
    "get_rope_index",
    "get_rope_index_ernie45",
    "get_rope_index_glm4v",
    "get_rope_index_qwen3_omni",
    "install",
    "refusals",
    "uninstall",
]
