"""Puts vecrope's answers in place of the methods of vLLM's models, also of those imported later."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from torch import Tensor

from vecrope.integrations.vllm.models import CLASSES, Answer

_logger = logging.getLogger(__name__)

# What the answers are proven equal to.
_RELEASE = "0.33"
_METHOD = "get_mrope_input_positions"
# vLLM's own methods, by class, while ours are in their place.
_originals: dict[type, Callable[..., Any]] = {}


def register() -> None:
    """Put vecrope in place of the methods of vLLM's models, those that will be imported later too.

    vLLM calls this in each of its processes. It imports no model, and a second call does nothing. A
    prompt that vecrope refuses is answered by vLLM's own method, as ever. With a vLLM of another
    release than 0.33 there is a warning, and nothing is changed.
    """
    version = import_module("vllm").__version__
    if version != _RELEASE and not version.startswith(f"{_RELEASE}."):
        _logger.warning(
            "vecrope leaves vLLM %s as it is: its answers are proven equal to those of vLLM %s. "
            "Install vllm==%s.*, or a vecrope whose changelog names your version.",
            version,
            _RELEASE,
            _RELEASE,
        )
        return
    if _finder in sys.meta_path:
        return
    sys.meta_path.insert(0, _finder)
    for name in CLASSES:
        if name in sys.modules:
            _replace_methods(sys.modules[name])


def unregister() -> None:
    """Put vLLM's own methods back. Does nothing where `register` has done nothing."""
    if _finder in sys.meta_path:
        sys.meta_path.remove(_finder)
    while _originals:
        owner, original = _originals.popitem()
        setattr(owner, _METHOD, original)


def _replace_methods(module: ModuleType) -> None:
    for name, answer in CLASSES[module.__name__].items():
        owner = getattr(module, name, None)
        original = getattr(owner, "__dict__", {}).get(_METHOD)
        if owner is None or original is None:
            _logger.warning("vecrope finds no %s.%s in %s", name, _METHOD, module.__name__)
            continue
        _originals[owner] = original
        setattr(owner, _METHOD, _method(original, answer))


def _method(original: Callable[..., Any], answer: Answer) -> Callable[..., Any]:
    @wraps(original)
    def method(self: Any, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        try:
            return answer(self, input_tokens, mm_features)
        except ValueError:
            own: tuple[Tensor, int] = original(self, input_tokens, mm_features)
            return own

    return method


class _AfterImport(MetaPathFinder):
    """Finds the modules of the classes as Python would, and lets `_replace_methods` follow."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in CLASSES:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            _replace_methods(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


_finder = _AfterImport()
