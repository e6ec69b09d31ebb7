"""Releases of transformers: their methods, taken out of the released files, and the table of them.

`python -m tests.integrations.transformers.releases FOLDER` runs each release that lies unpacked in
a folder of its version (`pip download --no-deps transformers==X`, `unzip`), and writes
`known.json`. A method is put into a class of its own, with the methods and functions that it
reaches, so that neither the release's requirements nor a second process are needed.
"""

import ast
import importlib.util
import itertools
import json
import re
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy
import torch
from torch import nn

from vecrope.integrations.fingerprint import fingerprint
from vecrope.integrations.transformers import known
from vecrope.integrations.transformers.reached import helpers_of

TABLE = Path(known.__file__).with_name("known.json")


def methods_of(release, folder):
    """Yield (model type, class) for every method that a release has."""
    for path in sorted(Path(release).glob("transformers/models/*/modeling_*.py")):
        source = path.read_text(encoding="utf-8")
        if "def get_rope_index" not in source:
            continue
        module = load(source, f"transformers.models.{path.parent.name}.{path.stem}", folder)
        for name, cls in vars(module).items():
            if isinstance(cls, type) and "get_rope_index" in vars(cls):
                yield model_type_of(path.parent.name, name), cls


def model_type_of(family, class_name):
    if family.endswith(("omni", "omni_moe")) and "cosmos" not in family:
        return f"{family}_talker" if "Talker" in class_name else f"{family}_thinker"
    return family


def load(source, name, folder):
    """Execute the classes that have the method, less all else of them, and the functions."""
    tree = ast.parse(source)
    kept = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            node.decorator_list = []
            kept.append(node)
        elif isinstance(node, ast.ClassDef):
            functions = [each for each in node.body if isinstance(each, ast.FunctionDef)]
            if not any(each.name == "get_rope_index" for each in functions):
                continue
            reached = {"get_rope_index"}
            for _ in range(len(functions)):
                for each in functions:
                    if each.name in reached:
                        reached |= {
                            found.attr for found in ast.walk(each)
                            if isinstance(found, ast.Attribute)
                        }
            node.body = [each for each in functions if each.name in reached]
            node.bases, node.decorator_list = [ast.parse("nn.Module").body[0].value], []
            kept.append(node)
    kept = [ast.unparse(each) for each in kept]
    header = "from __future__ import annotations\nimport itertools\nimport numpy as np\n"
    header += "import torch\nfrom torch import nn\nimport torch.nn.functional as F\n\n"
    path = Path(folder) / f"{name}.py"
    path.write_text(header + "\n\n".join(kept), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fingerprint_of(cls):
    method = cls.get_rope_index
    return fingerprint(method, *helpers_of(method, cls))
