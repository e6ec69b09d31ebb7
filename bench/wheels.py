"""Functions of an upstream, taken out of its wheel without installing it.

SGLang and vLLM need a GPU's worth of dependencies to be imported, but the functions that compute
positions need torch or numpy only. They are compiled from the wheel's own source, unchanged.
"""

from __future__ import annotations

import ast
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

_ANNOTATIONS_AS_STRINGS = annotations.compiler_flag


@dataclass(frozen=True)
class Wheel:
    """A wheel file, or the folder that it is installed or unpacked in.

    Raises:
        ValueError: if there is no such file or folder, or if it is not a wheel of `distribution`.
    """

    path: Path
    distribution: str

    def __post_init__(self) -> None:
        if not self.path.exists():
            raise ValueError(
                f"{self.path} does not exist; a wheel of {self.distribution} is needed"
            )
        if not self.path.is_dir() and not zipfile.is_zipfile(self.path):
            raise ValueError(f"{self.path} must be a wheel or a folder")
        if not self.version:
            raise ValueError(f"{self.path} must hold {self.distribution}, it has no metadata of it")

    @property
    def version(self) -> str:
        """The version that the wheel's metadata folder names."""
        if self.path.is_dir():
            names = [entry.name for entry in self.path.glob("*.dist-info")]
        else:
            with zipfile.ZipFile(self.path) as archive:
                names = [PurePosixPath(name).parts[0] for name in archive.namelist()]
        pattern = re.compile(rf"{re.escape(self.distribution)}-(.+)\.dist-info")
        found = (pattern.fullmatch(name) for name in names)
        return next((match[1] for match in found if match), "")

    def has(self, member: str) -> bool:
        """Say whether the wheel has a file."""
        try:
            self.source(member)
        except ValueError:
            return False
        return True

    def source(self, member: str) -> str:
        """Return the text of one file of the wheel.

        Raises:
            ValueError: if the wheel has no such file.
        """
        try:
            if self.path.is_dir():
                return (self.path / member).read_text(encoding="utf-8")
            with zipfile.ZipFile(self.path) as archive:
                return archive.read(member).decode()
        except (KeyError, FileNotFoundError):
            raise ValueError(f"{self.path} has no file {member}") from None


def load(wheel: Wheel, member: str, *names: str, **namespace: Any) -> dict[str, Any]:
    """Compile definitions of a file of a wheel, and nothing else of that file.

    Args:
        wheel: the wheel.
        member: path of the file in it.
        *names: of top-level functions and classes, or `"Class.method"`: the bare function, without
            its decorators.
        **namespace: what the definitions refer to. Annotations are not evaluated.

    Returns:
        The definitions, by the last part of their names.

    Raises:
        ValueError: if the wheel has no such file, or the file no such definition.
    """
    tree = ast.parse(wheel.source(member))
    nodes = [_find(tree, name, f"{wheel.path}: {member}") for name in names]
    module = ast.Module(body=nodes, type_ignores=[])
    scope = {"__name__": __name__, **namespace}
    exec(compile(module, f"{wheel.path}/{member}", "exec", _ANNOTATIONS_AS_STRINGS), scope)
    return {node.name: scope[node.name] for node in nodes}


def _find(tree: ast.Module, name: str, where: str) -> Any:
    node: Any = tree
    for part in name.split("."):
        node = next((child for child in node.body if getattr(child, "name", None) == part), None)
        if node is None:
            raise ValueError(f"{where} defines no {name}")
    if "." in name:
        node.decorator_list = []
    return node
