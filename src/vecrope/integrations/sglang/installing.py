"""The functions put in place of those of an SGLang that is installed, and back."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

from vecrope.integrations.fingerprint import fingerprint
from vecrope.integrations.refusals import Refusals
from vecrope.integrations.sglang.ernie45 import get_rope_index_ernie45
from vecrope.integrations.sglang.glm4v import get_rope_index_glm4v
from vecrope.integrations.sglang.known import FINGERPRINTS, HELPERS, MODEL_TYPES
from vecrope.integrations.sglang.qwen import get_rope_index
from vecrope.integrations.sglang.qwen3_omni import get_rope_index_qwen3_omni

_logger = logging.getLogger(__name__)

_PACKAGE = "sglang.srt.layers.rotary_embedding"
_FUNCTIONS: tuple[Callable[..., Any], ...] = (
    get_rope_index,
    get_rope_index_ernie45,
    get_rope_index_glm4v,
    get_rope_index_qwen3_omni,
)
_PICTURES_ONLY = "QwenVLImageProcessor._compute_image_only_mrope_positions_from_offsets"
# SGLang's own functions and what stands in their place, by name.
_swapped: dict[str, tuple[Any, Any]] = {}
_refusals = Refusals("SGLang", _logger)
# What was replaced, until a log takes it: SGLang loads plugins before it sets its logging up.
_unsaid: list[str] = []


class Installation(NamedTuple):
    """What `install` has done in this process.

    Attributes:
        replaced: the functions that are vecrope's now.
        left: those that are SGLang's own, each with the reason.
    """

    replaced: tuple[str, ...]
    left: dict[str, str]


def install(*, strict: bool = False) -> Installation:
    """Put the functions of this package in place of SGLang's, in this process.

    SGLang calls this in each of its processes, through the entry point `vecrope` of the group
    `sglang.srt.plugins` (from 0.5.12 on; before, call it at the top of the script that launches the
    server). To turn that off, set the environment variable `SGLANG_PLUGINS` to the names of the
    plugins to load, or to `none` where that is no plugin's name.

    A function is replaced if its code is one that the answers were compared with: those of SGLang
    0.5.3 to 0.5.23, whichever release they are found in. Up to 0.5.9 they are static methods of
    `MRotaryEmbedding`, from 0.5.10 on functions that these fetch at every call; so the positions
    that the scheduler computes where a request has none are replaced, too. A model type that the
    installed function does not know is left to it. What SGLang imports later finds the replaced
    functions where it looks. A second call changes `strict` alone.

    What is not replaced, in any release: from 0.5.14 on or a little before, requests with pictures
    alone of `qwen3_vl`, `qwen3_vl_moe`, `qwen3_5`, `qwen3_5_moe`, `qwen4_exp`, `intern_s2_preview`,
    `interns2_mobius` and `cosmos3_omni` do not call these functions: their positions come from
    `QwenVLImageProcessor._compute_image_only_mrope_positions_from_offsets`. Nor are `mimo_v2` and
    `glm_image`.

    Args:
        strict: raise for a prompt that vecrope refuses. Otherwise SGLang's own function answers it;
            `refusals` counts these prompts, and the log names each fault once.

    Returns:
        What was replaced and what was left. It is also logged, once, at level INFO: now, or at the
        first request where the level is not enabled yet.

    Raises:
        ImportError: if SGLang is not installed.
    """
    import_module("sglang")
    owner = _owner()
    uninstall()
    left = {_PICTURES_ONLY: "it numbers pictures from their places, without these functions"}
    for ours in _FUNCTIONS:
        name = ours.__name__
        original = vars(owner).get(name)
        if original is None:
            left[name] = "this SGLang has none"
            continue
        known = _fingerprint(owner, name)
        if known not in FINGERPRINTS[name]:
            left[name] = "it is none of those that vecrope's answers were compared with"
            continue
        new = _replacement(getattr(owner, name), ours, MODEL_TYPES.get(known), strict)
        if isinstance(original, staticmethod):
            new = staticmethod(new)
        _swapped[name] = original, new
        _swap(owner, name, original, new)
    done = Installation(tuple(_swapped), left)
    replaced = ", ".join(done.replaced) or "functions: none"
    reasons = "; ".join(f"{name} ({reason})" for name, reason in left.items())
    _unsaid[:] = [f"vecrope answers for SGLang's {replaced}. Left as they are: {reasons}"]
    _say()
    return done


def uninstall() -> None:
    """Put SGLang's own functions back. Does nothing where `install` has done nothing."""
    while _swapped:
        name, (original, new) = _swapped.popitem()
        _swap(_owner(), name, new, original)
    _unsaid.clear()
    _refusals.clear()


def refusals() -> dict[str, int]:
    """Return how many prompts vecrope refused in this process, by their fault."""
    return _refusals.counts()


def _say() -> None:
    if _unsaid and _logger.isEnabledFor(logging.INFO):
        _logger.info("%s", _unsaid.pop())


def _owner() -> Any:
    """Return the module of SGLang's functions, or up to 0.5.9 the class whose methods they are."""
    package = import_module(_PACKAGE)
    if not hasattr(package, "__path__"):
        return package.MRotaryEmbedding
    return import_module(f"{_PACKAGE}.mrope_rope_index")


def _fingerprint(owner: Any, name: str) -> str:
    """Return the fingerprint of a function with its helpers, or nothing where it cannot be read."""
    helpers = [getattr(owner, helper) for helper in HELPERS[name] if hasattr(owner, helper)]
    try:
        return fingerprint(getattr(owner, name), *helpers)
    except (OSError, TypeError):
        return ""


def _replacement(
    original: Callable[..., Any],
    ours: Callable[..., Any],
    model_types: frozenset[str] | None,
    strict: bool,
) -> Any:
    @functools.wraps(original)
    def function(*args: Any, **kwargs: Any) -> Any:
        _say()
        if model_types is not None:
            model_type = kwargs["model_type"] if "model_type" in kwargs else args[4]
            if model_type not in model_types:
                return original(*args, **kwargs)
        try:
            return ours(*args, **kwargs)
        except (TypeError, ValueError) as error:
            if strict:
                raise
            _refusals.note(error)
        return original(*args, **kwargs)

    return function


def _swap(owner: Any, name: str, old: Any, new: Any) -> None:
    """Let the name, and every name of a loaded module of SGLang for it, stand for the new one."""
    setattr(owner, name, new)
    for module_name, module in list(sys.modules.items()):
        if module_name.split(".")[0] != "sglang" or not isinstance(module, ModuleType):
            continue
        for attribute, value in list(vars(module).items()):
            if value is old:
                setattr(module, attribute, new)
