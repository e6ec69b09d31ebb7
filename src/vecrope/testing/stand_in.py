"""What a method of a model is called on where the model has no part in its answer."""

from __future__ import annotations

from inspect import getattr_static
from typing import Any

__all__ = ["StandIn"]


class StandIn:
    """Has a model's configuration and its class's methods, no weights, and takes what is written.

    Args:
        cls: the class of the model.
        config: its configuration.
        **attributes: what else the method reads off the model.
    """

    def __init__(self, cls: type, config: Any, **attributes: Any) -> None:
        self._cls = cls
        self.config = config
        vars(self).update(attributes)

    def __getattr__(self, name: str) -> Any:
        value = getattr_static(self._cls, name)
        return value.__get__(self, self._cls) if hasattr(value, "__get__") else value
