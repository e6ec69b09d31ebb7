"""A call as a program that is exported."""

import subprocess
from pathlib import Path

import pytest
import torch
from support import grid_tensor, kept
from torch._inductor.cpp_builder import get_cpp_compiler
from torch.export import Dim

from tests.forms.prompts import WARM_UP
from vecrope import get_rope_index


class RopeIndex(torch.nn.Module):
    def __init__(self, spec, **options):
        super().__init__()
        self.spec, self.options = spec, options

    def forward(self, input_ids, attention_mask, image_grid_thw, video_grid_thw):
        return get_rope_index(
            input_ids,
            self.spec,
            attention_mask=attention_mask,
            image_grid_thw=image_grid_thw,
            video_grid_thw=video_grid_thw,
            **self.options,
        )


def export(spec, device="cpu", **options):
    """Return a program for batches of all sizes of two rows and more."""
    rows, tokens = Dim("rows"), Dim("tokens")
    return torch.export.export(
        RopeIndex(spec, **options),
        export_arguments(WARM_UP, device),
        dynamic_shapes={
            "input_ids": {0: rows, 1: tokens},
            "attention_mask": {0: rows, 1: tokens},
            "image_grid_thw": {0: Dim("images")},
            "video_grid_thw": {0: Dim("videos")},
        },
    )


def export_arguments(prompt, device="cpu"):
    """Return the four tensors that the program takes, in its order."""
    none = grid_tensor([])
    tensors = (
        prompt.input_ids,
        kept(prompt).long(),
        none if prompt.image_grid_thw is None else prompt.image_grid_thw,
        none if prompt.video_grid_thw is None else prompt.video_grid_thw,
    )
    return tuple(tensor.to(device) for tensor in tensors)


def ahead_of_time(program, folder):
    """Return what AOTInductor makes of a program, read from the file that it writes."""
    skip_without_shared_runtime(folder)
    path = torch._inductor.aoti_compile_and_package(
        program,
        package_path=f"{folder}/program.pt2",
        inductor_configs={"aot_inductor.compile_wrapper_opt_level": "O0"},  # compiles sooner
    )
    return torch._inductor.aoti_load_package(path)


def skip_without_shared_runtime(folder):
    """Skip where the compiler puts the C++ runtime into each library: torch has one of its own.

    Between the two a library of AOTInductor crashes in `std::regex` as it is loaded, `x + 1` too.
    """
    compiler, library = get_cpp_compiler(), f"{folder}/runtime.so"
    code = "#include <string>\nstd::string text(int number) { return std::to_string(number); }"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-x", "c++", "-", "-o", library],
        input=code.encode(),
        check=True,
    )
    needed = Path(library).read_bytes()
    if b"libstdc++.so" not in needed and b"libc++.so" not in needed:
        pytest.skip(f"{compiler} links libstdc++ statically; set CXX to one that does not")
