"""The functions put in place of those of an SGLang that is installed, and back."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial, wraps
from importlib import import_module
from inspect import signature
from types import ModuleType
from typing import Any, NamedTuple

from vecrope.integrations.after_import import AfterImport
from vecrope.integrations.fingerprint import fingerprint
from vecrope.integrations.refusals import Refusals
from vecrope.integrations.sglang import pictures
from vecrope.integrations.sglang.ernie45 import get_rope_index_ernie45
from vecrope.integrations.sglang.glm4v import get_rope_index_glm4v
from vecrope.integrations.sglang.known import FINGERPRINTS, HELPERS
from vecrope.integrations.sglang.qwen import get_rope_index, is_left
from vecrope.integrations.sglang.qwen3_omni import get_rope_index_qwen3_omni

_logger = logging.getLogger(__name__)

_PACKAGE = "sglang.srt.layers.rotary_embedding"
_FUNCTIONS: tuple[Callable[..., Any], ...] = (
    get_rope_index,
    get_rope_index_ernie45,
    get_rope_index_glm4v,
    get_rope_index_qwen3_omni,
)
_PICTURES = f"{pictures.OWNER}.{pictures.METHOD}"
# What was replaced, by name: where it stands, SGLang's own and ours; and what was not, and why.
_swapped: dict[str, tuple[Any, Any, Any]] = {}
_left: dict[str, str] = {}
_refusals = Refusals("SGLang", _logger)
# What was replaced, until a log takes it: SGLang loads plugins before it sets its logging up.
_unsaid: list[str] = []


class Installation(NamedTuple):
    """What `install` has done in this process.

    Attributes:
        replaced: the functions that are vecrope's now.
        left: those that are SGLang's own, each with the reason.
        later: those of a module that SGLang has not imported yet. When it does, they are replaced,
            or left, and the log says which.
    """

    replaced: tuple[str, ...]
    left: dict[str, str]
    later: tuple[str, ...]


def install(*, strict: bool = False) -> Installation:
    """Put the functions of this package in place of SGLang's, in this process.

    SGLang calls this in each of its processes, through the entry point `vecrope` of the group
    `sglang.srt.plugins` (from 0.5.11 on; before, call it at the top of the script that launches the
    server). To turn that off, set the environment variable `SGLANG_PLUGINS` to the names of the
    plugins to load, or to `none` where that is no plugin's name.

    A function is replaced if its code is one that the answers were compared with: those of SGLang
    0.5.3 to 0.5.23, whichever release they are found in. Up to 0.5.9 they are static methods of
    `MRotaryEmbedding`, from 0.5.10 on functions that these fetch at every call; so the positions
    that the scheduler computes where a request has none are replaced, too. A model type that the
    installed function does not know is left to it. What SGLang imports later finds the replaced
    functions where it looks. A second call changes `strict` alone.

    From 0.5.13 on, requests with images alone of `qwen3_vl` and of what is numbered as it do not
    call these functions: their positions come from
    `QwenVLImageProcessor._compute_image_only_mrope_positions_from_offsets`, which is replaced in
    the same way, as soon as SGLang imports its module. What is not replaced, in any release: the
    processors of `mimo_v2`, `glm_image`, `minicpmv4_7` and Bailing, which number by functions of
    their own; and requests with one video and nothing else of `qwen2_5_vl` and `paddleocr_vl` that
    have fewer than 8,192 tokens, for which SGLang's function is faster.

    Args:
        strict: raise for a prompt that vecrope refuses. Otherwise SGLang's own function answers it;
            `refusals` counts these prompts, and the log names each fault once.

    Returns:
        What was replaced and what was left. It is also logged at level INFO: now, or at the first
        request where the level is not enabled yet, and when the module of later is imported.

    Raises:
        ImportError: if SGLang is not installed.
    """
    import_module("sglang")
    owner = _owner()
    uninstall()
    for ours in _FUNCTIONS:
        name, make = ours.__name__, partial(replacement, ours=ours, strict=strict)
        _replace(name, owner, HELPERS[name], FINGERPRINTS[name], make)
    _pictures.start()
    later = () if {*_swapped, *_left} >= {_PICTURES} else (_PICTURES,)
    _unsaid[:] = [_summary()]
    _say()
    return Installation(tuple(_swapped), dict(_left), later)


def uninstall() -> None:
    """Put SGLang's own functions back. Does nothing where `install` has done nothing."""
    _pictures.stop()
    while _swapped:
        name, (owner, original, new) = _swapped.popitem()
        _put(owner, name, new, original)
    _left.clear()
    _unsaid.clear()
    _refusals.clear()


def refusals() -> dict[str, int]:
    """Return how many prompts vecrope refused in this process, by their fault."""
    return _refusals.counts()


def _say() -> None:
    if _unsaid and _logger.isEnabledFor(logging.INFO):
        with suppress(IndexError):  # another thread was first
            _logger.info("%s", _unsaid.pop())


def _owner() -> Any:
    """Return the module of SGLang's functions, or up to 0.5.9 the class whose methods they are."""
    package = import_module(_PACKAGE)
    if not hasattr(package, "__path__"):
        return package.MRotaryEmbedding
    return import_module(f"{_PACKAGE}.mrope_rope_index")


def _replace_pictures(module: ModuleType) -> None:
    """Replace the method of SGLang's processor, whose module is imported by now."""
    owner, make = getattr(module, pictures.OWNER, None), pictures.replacement
    _replace(_PICTURES, owner, pictures.HELPERS, pictures.MODEL_TYPES, make)
    _unsaid[:] = [_summary()]
    _say()


_pictures = AfterImport((pictures.MODULE,), _replace_pictures)


def _summary() -> str:
    replaced = ", ".join(_swapped) or "functions: none"
    reasons = "; ".join(f"{name} ({reason})" for name, reason in _left.items()) or "none"
    return f"vecrope answers for SGLang's {replaced}. Left as they are: {reasons}"


def _replace(
    name: str,
    owner: Any,
    helpers: Sequence[str],
    known: Mapping[str, Any],
    make: Callable[[Any, Any], Any],
) -> None:
    """Replace a function of a module or a class if its code is known, or note why it is left.

    Args:
        name: of the function, behind that of its class.
        owner: the module or class; None: there is none.
        helpers: what it calls, where they are there.
        known: by fingerprint, the model types that the function numbers.
        make: returns what takes its place, given the function and these.
    """
    attribute = name.rpartition(".")[2]
    original = None if owner is None else vars(owner).get(attribute)
    if original is None:
        _left[name] = "this SGLang has none"
        return
    function = getattr(owner, attribute)
    found = [getattr(owner, helper) for helper in helpers if hasattr(owner, helper)]
    code = fingerprint(function, *found) or ""
    if code not in known:
        _left[name] = "it is none of those that vecrope's answers were compared with"
        return
    new = make(function, known[code])
    if isinstance(original, staticmethod):
        new = staticmethod(new)
    _swapped[name] = owner, original, new
    _put(owner, name, original, new)


def replacement(
    original: Callable[..., Any],
    model_types: frozenset[str] | None,
    *,
    ours: Callable[..., Any],
    strict: bool,
) -> Any:
    """Return the function that stands for SGLang's own: it answers, or has SGLang's own answer.

    Args:
        original: SGLang's.
        model_types: those that the original numbers; None: it does not ask for one.
        ours: of the same signature.
        strict: whether to raise for what vecrope refuses.
    """
    names = tuple(signature(ours).parameters)

    @wraps(original)
    def function(*args: Any, **kwargs: Any) -> Any:
        _say()
        if model_types is not None:
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            if given["model_type"] not in model_types or is_left(given):
                return original(*args, **kwargs)
        try:
            return ours(*args, **kwargs)
        except (TypeError, ValueError) as error:
            if strict:
                raise
            _refusals.note(error)
        return original(*args, **kwargs)

    return function


def _put(owner: Any, name: str, old: Any, new: Any) -> None:
    """Let the name, and every name of a loaded module of SGLang for it, stand for the new one."""
    setattr(owner, name.rpartition(".")[2], new)
    for module_name, module in list(sys.modules.items()):
        if module_name.split(".")[0] != "sglang" or not isinstance(module, ModuleType):
            continue
        for attribute, value in list(vars(module).items()):
            if value is old:
                setattr(module, attribute, new)
