"""The codes by which the eager form tells placeholders apart, which keep a few bits of an id."""

from dataclasses import replace

import pytest
import torch
from support import spec_of

from vecrope.forms.eager import eager_rope_index
from vecrope.forms.eager.runs import bytes_of_ids
from vecrope.forms.static import static_rope_index
from vecrope.inputs import Inputs

SPEC = spec_of("qwen2_vl", "transformers")


@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("distance", [1, 252, 253, 254, 255, 2**15, 65531, 65534, 2**17])
@pytest.mark.parametrize("image", [0, 1000, 2**31 - 2])
def test_text_whose_low_bits_are_those_of_a_placeholder_is_text(image, distance, dtype, is_masked):
    video = image - distance if image > distance else image + distance
    spec = replace(SPEC, image_token_id=image, video_token_id=video, vision_start_token_id=None)
    ids = []
    for token in (image, video):
        for bits in (8, 16):
            near = [token + step + turns * 2**bits for turns in (-1, 0, 1) for step in range(-2, 3)]
            ids += [other for other in near if 0 <= other < 2**31 and other not in (image, video)]
        ids += [token] * 2
    ids = torch.tensor([ids + ids[:3]], dtype=dtype)
    mask = None
    if is_masked:
        mask = torch.ones_like(ids, dtype=torch.bool)
        mask[0, :2].fill_(0)
    grid = torch.tensor([[1, 2, 4]])
    inputs = Inputs(ids, image_grid_thw=grid, video_grid_thw=grid, attention_mask=mask)
    # Asked itself: where tokens and grids seem not to fit, a call goes on to the static form.
    eager = eager_rope_index(inputs, spec)
    assert all(map(torch.equal, eager, static_rope_index(inputs, spec, validate=True)))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("distance", [1, 253, 254, 255, 256, 2**17])
@pytest.mark.parametrize("first", [0, 1000, 2**31 - 2**18])
def test_no_other_id_has_the_byte_of_a_given_one(first, distance, dtype):
    given = [first + distance, first, first + distance // 2 + 2 * distance]
    near = {token + step + turns for token in given for step in range(-2, 3) for turns in (0, 2**8)}
    ids = [*(token for token in near if 0 <= token < 2**31), 2**31 - 1, 0]
    found, codes = bytes_of_ids(torch.tensor(ids, dtype=dtype), given)
    assert len({*codes}) == len(given)
    for token, byte in zip(ids, found, strict=True):
        assert (byte in codes) == (token in given)
        assert token not in given or byte == codes[given.index(token)]
