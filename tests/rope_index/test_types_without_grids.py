"""A type that says image where no grids are given is refused, whatever the ids say."""

import pytest
import torch

from vecrope import MRopeSpec, get_rope_index


@pytest.mark.parametrize("form", ["eager", "static"])
@pytest.mark.parametrize(("code", "kind"), [(1, "image"), (2, "video")])
def test_types_of_media_need_grids(code, kind, form):
    spec = MRopeSpec.for_model("qwen2_vl", convention="transformers")
    ids, types = torch.tensor([[5, 6]]), torch.tensor([[0, code]])
    with pytest.raises(ValueError, match=rf"1 {kind} token.*|{kind}_grid_thw"):
        get_rope_index(ids, spec, mm_token_type_ids=types, form=form)
