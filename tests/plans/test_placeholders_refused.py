"""Runs of placeholders that are refused, and in which words."""

import re

import pytest
import torch
from oracles import spec_of

from tests.plans.placeholder_cases import (
    IMAGE,
    QWEN,
    VIDEO,
    each_function,
    integers,
    runs,
)

PICTURE = integers([[1, 4, 4]])


GOOD = runs((1, 4, IMAGE), image_grid_thw=PICTURE)


TWO = runs((1, 4, IMAGE, 0), (2, 4, IMAGE, 1), image_grid_thw=PICTURE.repeat(2, 1))


REFUSED = {
    "no spec": (8, GOOD | {"spec": "qwen2_vl"}, TypeError, "spec must be an MRopeSpec, got 'q"),
    "a family of its own rule": (
        8,
        GOOD | {"spec": spec_of("glm_image", "sglang")},
        ValueError,
        "glm_image has no plan from placeholders: it is numbered by a rule of its own",
    ),
    "a dtype of positions": (
        8,
        GOOD | {"dtype": torch.float32},
        TypeError,
        "dtype must be torch.int64 or torch.int32, got torch.float32",
    ),
    "a bool for a number": (True, GOOD, TypeError, "num_tokens must be an int, got True"),
    "a float among numbers": (
        [8, 8.0],
        TWO,
        TypeError,
        "num_tokens must be an int, got 8.0",
    ),
    "a tensor of numbers": (
        integers([8, 8]),
        TWO,
        TypeError,
        "num_tokens must be an int or a sequence of ints, got Tensor",
    ),
    "a negative number": ([8, -1], TWO, ValueError, "num_tokens must be at least 0, got -1"),
    "no prompt": (
        [],
        TWO,
        ValueError,
        "num_tokens must hold a number for each prompt, got none",
    ),
    "several prompts without rows": (
        [8, 8],
        GOOD,
        ValueError,
        "rows must be given for 2 prompts, got None",
    ),
    **{
        f"{name} in a list": (
            [8, 8],
            TWO | {name: TWO[name].tolist()},
            TypeError,
            f"{name} must be a tensor, got list",
        )
        for name in ("offsets", "lengths", "modalities", "rows")
    },
    **{
        f"{name} of 16 bits": (
            [8, 8],
            TWO | {name: TWO[name].short()},
            TypeError,
            f"{name} must be int64 or int32, got torch.int16",
        )
        for name in ("offsets", "lengths", "modalities", "rows")
    },
    **{
        f"one of {name} too few": (
            [8, 8],
            TWO | {name: TWO[name][:1]},
            ValueError,
            f"{name} must have shape (R,) as offsets (2,), got (1,)",
        )
        for name in ("lengths", "modalities", "rows")
    },
    "offsets of two axes": (
        8,
        GOOD | {"offsets": GOOD["offsets"][None]},
        ValueError,
        "offsets must have shape (R,) as offsets (1, 1), got (1, 1)",
    ),
    "a grid of floats": (
        8,
        GOOD | {"image_grid_thw": PICTURE.float()},
        TypeError,
        "image_grid_thw must be of a signed integer dtype, uint8 or bool, got torch.float32",
    ),
    "a grid of two sides": (
        8,
        GOOD | {"image_grid_thw": PICTURE[:, 1:]},
        ValueError,
        "image_grid_thw must have shape (num_images, 3), got (1, 2)",
    ),
    "seconds of no video": (
        8,
        GOOD | {"second_per_grid_ts": [1.0]},
        ValueError,
        "second_per_grid_ts must have shape (0,), one for each row of video_grid_thw, got (1,)",
    ),
    "seconds that are infinite": (
        8,
        runs((1, 4, VIDEO), video_grid_thw=PICTURE, second_per_grid_ts=[float("inf")]),
        ValueError,
        "second_per_grid_ts must be finite and not negative, got inf for video 0",
    ),
    "a grid that cannot be merged": (
        8,
        GOOD | {"image_grid_thw": integers([[1, 3, 4]])},
        ValueError,
        "image_grid_thw row 0 must have a height and width divisible by spatial_merge_size 2",
    ),
    "a row too high": (
        [8, 8],
        TWO | {"rows": integers([0, 2])},
        ValueError,
        "rows must ascend from 0 to 1, got 2 at run 1",
    ),
    "a negative row": (
        [8, 8],
        TWO | {"rows": integers([-1, 1])},
        ValueError,
        "rows must ascend from 0 to 1, got -1 at run 0",
    ),
    "rows that go back": (
        [8, 8],
        TWO | {"rows": integers([1, 0])},
        ValueError,
        "rows must ascend from 0 to 1, got 0 at run 1",
    ),
    "another row than the only one": (
        8,
        GOOD | {"rows": integers([1])},
        ValueError,
        "rows must ascend from 0 to 0, got 1 at run 0",
    ),
    "a modality of sound": (
        [8, 8],
        TWO | {"modalities": integers([1, 3])},
        ValueError,
        "modalities must hold 1 or 2, got 3 at run 1",
    ),
    "a modality of text": (
        8,
        GOOD | {"modalities": integers([0])},
        ValueError,
        "modalities must hold 1 or 2, got 0 at run 0",
    ),
    "a modality that is one in 8 bits": (
        8,
        GOOD | {"modalities": integers([257])},
        ValueError,
        "modalities must hold 1 or 2, got 257 at run 0",
    ),
    "a block that bytes would measure wrongly": (
        32,
        runs((1, 4, VIDEO), video_grid_thw=integers([[1, 52, 20]], dtype=torch.uint8)),
        ValueError,
        "row 0, video 0: its grid (1, 52, 20) needs 260 tokens, got 4",
    ),
    "an unknown modality among others": (
        12,
        runs((1, 4, IMAGE), (6, 4, 3), image_grid_thw=PICTURE),
        ValueError,
        "modalities must hold 1 or 2, got 3 at run 1",
    ),
    "a second row of one prompt": (
        12,
        runs((1, 4, IMAGE, 0), (6, 4, IMAGE, 1), image_grid_thw=PICTURE.repeat(2, 1)),
        ValueError,
        "rows must ascend from 0 to 0, got 1 at run 1",
    ),
    "frames that touch where they may not": (
        12,
        runs((1, 4, VIDEO), (5, 4, VIDEO), video_grid_thw=integers([[2, 4, 4]]))
        | {"spec": spec_of("glm4v", "vllm")},
        ValueError,
        "row 0, video 0: its grid (2, 4, 4) needs something between its frames",
    ),
    "a run before its prompt": (
        8,
        GOOD | {"offsets": integers([-1])},
        ValueError,
        "row 0, run 0 of placeholders must lie between tokens 0 and 8 and hold one at least, "
        "got offset -1 and length 4",
    ),
    "a run beyond its prompt": (
        [8, 5],
        TWO,
        ValueError,
        "row 1, run 1 of placeholders must lie between tokens 0 and 5 and hold one at least, "
        "got offset 2 and length 4",
    ),
    "a run over the one before": (
        12,
        runs((1, 4, IMAGE), (4, 4, IMAGE), image_grid_thw=PICTURE.repeat(2, 1)),
        ValueError,
        "row 0, run 1 of placeholders must lie between tokens 5 and 12 and hold one at least, "
        "got offset 4 and length 4",
    ),
    "a run over the one before in the second prompt": (
        [12, 12],
        runs((1, 4, IMAGE, 0), (1, 4, IMAGE, 1), (4, 4, IMAGE, 1))
        | {"image_grid_thw": PICTURE.repeat(3, 1)},
        ValueError,
        "row 1, run 2 of placeholders must lie between tokens 5 and 12 and hold one at least, "
        "got offset 4 and length 4",
    ),
    "rows that descend behind the first": (
        [8, 8, 8],
        runs((1, 4, IMAGE, 0), (1, 4, IMAGE, 2), (1, 4, IMAGE, 1))
        | {"image_grid_thw": PICTURE.repeat(3, 1)},
        ValueError,
        "rows must ascend from 0 to 2, got 1 at run 2",
    ),
    "a run of nothing": (
        [8, 8],
        TWO | {"lengths": integers([4, 0])},
        ValueError,
        "row 1, run 1 of placeholders must lie between tokens 0 and 8 and hold one at least, "
        "got offset 2 and length 0",
    ),
    "a run of nothing behind another of one prompt": (
        8,
        runs((1, 4, IMAGE), (6, 0, IMAGE), image_grid_thw=PICTURE),
        ValueError,
        "row 0, run 1 of placeholders must lie between tokens 5 and 8 and hold one at least, "
        "got offset 6 and length 0",
    ),
    "a run whose end wraps": (
        [8, 8],
        runs((1, 4, IMAGE, 0), (2**31 - 2, 4, IMAGE, 1), dtype=torch.int32)
        | {"image_grid_thw": PICTURE.repeat(2, 1)},
        ValueError,
        "row 1, run 1 of placeholders must lie between tokens 0 and 8 and hold one at least, "
        "got offset 2147483646 and length 4",
    ),
    "an image cut short": (
        [8, 8],
        TWO | {"lengths": integers([3, 4])},
        ValueError,
        "row 0, image 0: its grid (1, 4, 4) needs 4 tokens, got 3 in one run; was the prompt "
        "truncated inside the image?",
    ),
    "an image without a run": (
        8,
        GOOD | {"image_grid_thw": PICTURE.repeat(2, 1)},
        ValueError,
        "image_grid_thw row 1 (1, 4, 4) is left over: expected 8 image tokens in all, got 4",
    ),
    "a run without an image": (
        8,
        GOOD | {"image_grid_thw": None},
        ValueError,
        "row 0 holds image tokens beyond the last grid: expected 0 for the 0 rows of "
        "image_grid_thw, got 4 in all",
    ),
}


@each_function
@pytest.mark.parametrize(
    ("num_tokens", "arguments", "error", "message"), REFUSED.values(), ids=REFUSED.keys()
)
def test_refused(num_tokens, arguments, error, message, function):
    arguments = {"spec": QWEN, **arguments}
    with pytest.raises(error, match=re.escape(message)):
        function(num_tokens, **arguments)


@each_function
@pytest.mark.parametrize(("num_tokens", "arguments"), [(8, GOOD), ([8, 8], TWO)])
def test_what_is_refused_differs_from_what_is_not(num_tokens, arguments, function):
    assert function(num_tokens, QWEN, **arguments) is not None
