"""In every process of an engine: which of vecrope's functions was called, a line to a file.

Python imports this module when it starts, where `PYTHONPATH` names its folder. `VECROPE_CALLS`
names the file. A line tells the function and whether the engine started the process.
"""

import functools
import importlib.abc
import importlib.machinery
import json
import multiprocessing
import os
import sys
from pathlib import Path

# By the module that others take the function from.
FUNCTIONS = {
    "vecrope.forms.eager": "positions_of_groups",
    "vecrope.rope_index": "rope_index_of",
}


def noted(function):
    @functools.wraps(function)
    def note_and_call(*args, **kwargs):
        child = multiprocessing.parent_process() is not None
        with Path(os.environ["VECROPE_CALLS"]).open("a") as file:
            file.write(json.dumps({"function": function.__name__, "child": child}) + "\n")
        return function(*args, **kwargs)

    return note_and_call


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name not in FUNCTIONS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            function = FUNCTIONS[name]
            setattr(module, function, noted(getattr(module, function)))

        spec.loader.exec_module = exec_module
        return spec


if "VECROPE_CALLS" in os.environ:
    sys.meta_path.insert(0, _Finder())
