"""Modules of an upstream, seen as soon as they are imported."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from itertools import dropwhile
from types import ModuleType


class AfterImport(MetaPathFinder):
    """Calls a function with each of some modules, at once or when it is imported.

    Args:
        names: of the modules, which the finders behind this one find.
        then: takes the module, right after it was executed.
    """

    def __init__(self, names: Collection[str], then: Callable[[ModuleType], None]) -> None:
        self._names = names
        self._then = then

    @property
    def is_watching(self) -> bool:
        """Whether imports are watched."""
        return self in sys.meta_path

    def start(self) -> None:
        """Watch imports, and see the modules that are imported already."""
        sys.meta_path.insert(0, self)
        for name in self._names:
            if name in sys.modules:
                self._then(sys.modules[name])

    def stop(self) -> None:
        """Watch imports no longer. Does nothing where they are not watched."""
        if self.is_watching:
            sys.meta_path.remove(self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the module's spec, whose loader calls the function as well."""
        if fullname not in self._names:
            return None
        behind = list(dropwhile(lambda finder: finder is not self, sys.meta_path))[1:]
        found = (finder.find_spec(fullname, path, target) for finder in behind)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            # A loader may be that of other modules as well.
            if self.is_watching and module.__name__ == fullname:
                self._then(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
