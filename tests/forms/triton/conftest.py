from dataclasses import replace

import numpy as np
import pytest
import torch


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


@pytest.fixture(autouse=True)
def _within_arguments(monkeypatch):
    """Fail where a kernel reads or writes outside of its arguments, which a device may let pass."""
    interpreter = pytest.importorskip("triton.runtime.interpreter", reason="needs Triton")
    executor, builder = interpreter.GridExecutor, interpreter.interpreter_builder
    on_host = executor._init_args_hst
    ranges = []

    def remember(self, args, kwargs):
        args, kwargs = on_host(self, args, kwargs)
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
        ranges[:] = [addresses(tensor) for tensor in tensors if tensor.numel()]
        return args, kwargs

    def checked(access, pointers_at, mask_at):
        def call(*operands):
            pointers, mask = operands[pointers_at], operands[mask_at]
            size = max(pointers.get_element_ty().primitive_bitwidth // 8, 1)
            outside = np.broadcast_to(mask.data, pointers.data.shape)
            for begin, end in ranges:
                outside = outside & ((pointers.data < begin) | (pointers.data + size > end))
            if outside.any():
                raise IndexError("a kernel reads or writes outside of its arguments")
            return access(*operands)

        return call

    monkeypatch.setattr(executor, "_init_args_hst", remember)
    accesses = {"masked_load": (0, 1), "masked_store": (0, 2), "atomic_rmw": (1, 3)}
    for name, places in accesses.items():
        name = f"create_{name}"
        monkeypatch.setattr(builder, name, checked(getattr(builder, name), *places))


def addresses(tensor):
    """Return where the first element of a tensor begins, and where its last one ends."""
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    begin = tensor.data_ptr()
    return begin, begin + (last + 1) * tensor.element_size()
