"""Puts vecrope's answers in place of the methods of vLLM's models, also of those imported later."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch import Tensor

from vecrope.integrations.after_import import AfterImport
from vecrope.integrations.fingerprint import fingerprint
from vecrope.integrations.refusals import Refusals
from vecrope.integrations.vllm.features import has_groups
from vecrope.integrations.vllm.models import CLASSES, Model

# A child of vLLM's logger, whose level, format and place it shares.
_logger = logging.getLogger("vllm.vecrope")

_METHOD = "get_mrope_input_positions"
# vLLM's own methods, by class, while ours are in their place.
_originals: dict[type, Callable[..., Any]] = {}
_refusals = Refusals("vLLM", _logger)


def register() -> None:
    """Put vecrope in place of the methods of vLLM's models, those that will be imported later too.

    vLLM calls this in each of its processes. It imports no model, and a second call does nothing.

    A method is replaced if its code, and that of the methods that it calls, is one that the answers
    were compared with: those of vLLM 0.20.2 to 0.33, whichever release they are found in. Another
    is left as it is. The log says which, once for each class, when its module is imported. Models
    that inherit a method inherit the replacement.

    vecrope numbers a prompt of 4 groups and more (MiniCPM-V 4.7: 24), where a group is an image, a
    separate frame or a video that is one block. With fewer, vLLM's own method is about as fast or
    faster, and answers. vLLM's method also answers what vecrope refuses: `refusals` counts these
    prompts, and the log names each fault once. What is not replaced: Isaac's method, which is
    faster; the Transformers backend; and the positions that vLLM computes anew where it prunes
    videos.

    The environment variable `VLLM_PLUGINS` turns plugins off: if it is set, vLLM loads those alone
    whose names it lists, separated by commas.
    """
    if not _finder.is_watching:
        _finder.start()


def unregister() -> None:
    """Put vLLM's own methods back. Does nothing where `register` has done nothing."""
    _finder.stop()
    while _originals:
        owner, original = _originals.popitem()
        setattr(owner, _METHOD, original)
    _refusals.clear()


def refusals() -> dict[str, int]:
    """Return how many prompts vecrope refused in this process, by their fault."""
    return _refusals.counts()


def replacement(original: Callable[..., Any], model: Model) -> Callable[..., Any]:
    """Return the method that stands for vLLM's own: it answers, or has vLLM's own answer."""

    @functools.wraps(original)
    def method(self: Any, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        if has_groups(mm_features, model.min_groups, separate_frames=model.separate_frames):
            try:
                return model.answer(self, input_tokens, mm_features)
            except (TypeError, ValueError) as error:
                _refusals.note(error)
        own: tuple[Tensor, int] = original(self, input_tokens, mm_features)
        return own

    return method


def _replace_methods(module: ModuleType) -> None:
    for name, model in CLASSES[module.__name__].items():
        owner = getattr(module, name, None)
        original = getattr(owner, "__dict__", {}).get(_METHOD)
        if owner is None or original is None:
            _logger.warning("vecrope leaves %s as it is: it has no %s of its own", name, _METHOD)
        elif not _is_known(original, owner, module, model):
            _logger.warning(
                "vecrope leaves %s as it is: its %s is none of those that vecrope's answers were "
                "compared with. A vecrope whose changelog names your vLLM may know it.",
                name,
                _METHOD,
            )
        else:
            _originals[owner] = original
            setattr(owner, _METHOD, replacement(original, model))
            _logger.info(
                "vecrope numbers the prompts of %s that have %d images, frames or video blocks "
                "and more; VLLM_PLUGINS='' turns it off",
                name,
                model.min_groups,
            )


def _is_known(original: Any, owner: type, module: ModuleType, model: Model) -> bool:
    try:
        helpers = [_find(name, owner, module) for name in model.helpers]
    except AttributeError:
        return False
    return fingerprint(original, *helpers) in model.fingerprints


def _find(name: str, owner: type, module: ModuleType) -> Any:
    """Return a method of a class, or a function of its module, or a method of a class there."""
    if hasattr(owner, name):
        return getattr(owner, name)
    return functools.reduce(getattr, name.split("."), module)


_finder = AfterImport(CLASSES, _replace_methods)
