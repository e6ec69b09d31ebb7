"""The method that stands on a patched instance."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import Module

_Method = Callable[..., tuple[Tensor, Tensor]]


class BoundMethod:
    """A function bound to a model. A pickled model comes back without it, a copy with its own."""

    def __init__(self, function: _Method, model: Module, replaced: _Method | None) -> None:
        # For `inspect.signature`, a method as the model had it.
        functools.update_wrapper(self, function.__get__(model))
        self.__func__ = function
        self.__self__ = model
        self.replaced = replaced

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Answer as the patched method does."""
        return self.__func__(self.__self__, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> BoundMethod:
        model = memo.get(id(self.__self__), self.__self__)
        return BoundMethod(self.__func__, model, self.replaced)

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial, (_of_class, self.__self__)


def is_of_class(method: object) -> bool:
    """Say whether a method of an instance is what a patched one was pickled as."""
    return isinstance(method, functools.partial) and method.func is _of_class


def _of_class(model: Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """Call the method of a model's class, whatever it is by then."""
    return type(model).get_rope_index(model, *args, **kwargs)  # type: ignore[attr-defined,no-any-return]
