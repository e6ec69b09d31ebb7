"""The functions swapped in an SGLang that is installed, and back."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

from vecrope.integrations.sglang.ernie45 import get_rope_index_ernie45
from vecrope.integrations.sglang.glm4v import get_rope_index_glm4v
from vecrope.integrations.sglang.qwen import get_rope_index
from vecrope.integrations.sglang.qwen3_omni import get_rope_index_qwen3_omni

# What they are proven equal to.
_VERSIONS = ("0.5.23",)
_HOME = "sglang.srt.layers.rotary_embedding.mrope_rope_index"
_FUNCTIONS: tuple[Callable[..., Any], ...] = (
    get_rope_index,
    get_rope_index_ernie45,
    get_rope_index_glm4v,
    get_rope_index_qwen3_omni,
)
# SGLang's own functions, by name, while ours are in their place.
_originals: dict[str, Any] = {}


def install() -> None:
    """Put the functions of this package in place of SGLang's, in this process.

    They take their places in the module that defines them, from which `MRotaryEmbedding` fetches
    them at every call, and in every loaded module of SGLang that holds one of them by name. What
    SGLang imports later finds them where it looks. A second call does nothing.

    Call it in each process that numbers prompts: in SGLang those that run the multimodal
    processors. Such a place is the top of the script that launches the server, or a
    `sitecustomize` module.

    Raises:
        ImportError: if SGLang is not installed.
        RuntimeError: for another version than those that the answers are proven equal to.
    """
    version = import_module("sglang").__version__
    if version not in _VERSIONS:
        raise RuntimeError(
            f"SGLang {version} is installed, and these functions are proven equal to those of "
            f"{' and '.join(_VERSIONS)} alone: install sglang=={_VERSIONS[-1]}, or a vecrope whose "
            "changelog names your version"
        )
    home = import_module(_HOME)
    if _originals:
        return
    _originals.update({ours.__name__: getattr(home, ours.__name__) for ours in _FUNCTIONS})
    for ours in _FUNCTIONS:
        _swap(_originals[ours.__name__], ours)


def uninstall() -> None:
    """Put SGLang's own functions back. Does nothing where `install` has done nothing."""
    for ours in _FUNCTIONS:
        if ours.__name__ in _originals:
            _swap(ours, _originals.pop(ours.__name__))


def _swap(old: Any, new: Any) -> None:
    """Let every name of a loaded module of SGLang that stands for the one stand for the other."""
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] != "sglang" or not isinstance(module, ModuleType):
            continue
        for attribute, value in list(vars(module).items()):
            if value is old:
                setattr(module, attribute, new)
