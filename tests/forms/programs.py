"""A call as a program that is exported."""

import torch
from support import grid_tensor, kept
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
    path = torch._inductor.aoti_compile_and_package(
        program,
        package_path=f"{folder}/program.pt2",
        inductor_configs={"aot_inductor.compile_wrapper_opt_level": "O0"},  # compiles sooner
    )
    return torch._inductor.aoti_load_package(path)
