from dataclasses import replace

import pytest


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    # So that a row of a few tokens has several blocks, and these several chunks.
    monkeypatch.setattr("vecrope.forms.triton.constants.BLOCK", 8)
    monkeypatch.setattr("vecrope.forms.triton.constants.CHUNK", 4)


@pytest.fixture(autouse=True)
def _quick_interpreter(monkeypatch):
    """Leave out what the interpreter does for nothing, which is two thirds of its time."""
    interpreter = pytest.importorskip("triton.runtime.interpreter", reason="needs Triton")
    # It computes whether sums overflow, and without its debug option asserts nothing of it.
    builder = interpreter.interpreter_builder
    monkeypatch.setattr(builder, "options", replace(builder.options, sanitize_overflow=False))
    # It replaces Triton's functions by its own for each function that a kernel calls.
    patch_lang, tl = interpreter._patch_lang, interpreter.tl
    compiled = {module: module.full for module in (tl, tl.core)}

    def patch_once(function):
        # What Triton's own functions call stands in another module.
        module = tl.core if function.__module__.startswith("triton.") else tl
        if module.full is compiled[module]:
            return patch_lang(function)
        return interpreter._LangPatchScope()

    monkeypatch.setattr(interpreter, "_patch_lang", patch_once)
