"""`truncate` drops what the cut touches, entirely."""

import pytest
import torch
from oracles import spec_of

from vecrope import collate, get_rope_index, truncate
from vecrope.testing import Prompt

QWEN = spec_of("qwen2_5_vl", "transformers")
GLM = spec_of("glm4v", "transformers")
START, STOP = 151652, 151653


def sample_of(spec, row, *, images=None, videos=None, seconds=None):
    prompt = Prompt.from_symbols(spec, [row], image_grid_thw=images, video_grid_thw=videos)
    ids = prompt.input_ids[0]
    sample = {"input_ids": ids, "labels": torch.arange(len(ids)), "length": len(ids)}
    sample["mm_token_type_ids"] = prompt.mm_token_type_ids[0]
    for kind, grids in (("image", prompt.image_grid_thw), ("video", prompt.video_grid_thw)):
        if grids is not None:
            name = "pixel_values" if kind == "image" else "pixel_values_videos"
            sample[f"{kind}_grid_thw"] = grids
            sample[name] = torch.arange(float(grids.prod(1).sum()))[:, None]
    if seconds is not None:
        sample["second_per_grid_ts"] = seconds
    return sample


ROW = "tt<II>t<VVVV>t<I>tt"
MEDIA = {"images": [[1, 2, 4], [1, 2, 2]], "videos": [[2, 2, 4]], "seconds": [0.5]}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("max_length", range(1, len(ROW) + 1))
def test_every_cut_of_a_prompt(max_length, side):
    """What remains is the longest part of the row that has no cut inside an item."""
    prompt = Prompt.from_symbols(QWEN, [ROW])
    start, stop = (int(prompt.input_ids[0, ROW.index(marker)]) for marker in "<>")
    sample = sample_of(QWEN, ROW, **MEDIA)
    got, dropped = truncate(
        sample, QWEN, max_length, side, start_token_ids=[start], end_token_ids=[stop]
    )
    part = ROW[:max_length] if side == "right" else ROW[-max_length:]
    while part.count("<") != part.count(">") or not balanced(part):
        part = part[:-1] if side == "right" else part[1:]
    cut = slice(len(part)) if side == "right" else slice(len(ROW) - len(part), None)
    for name in ("input_ids", "labels", "mm_token_type_ids"):
        assert torch.equal(got[name], sample[name][cut])
    images, videos = part.count("<I"), part.count("<V")
    first = 0 if side == "right" else 2 - images
    assert dropped.tokens == len(ROW) - len(part)
    assert (dropped.images, dropped.videos) == (2 - images, 1 - videos)
    assert got.get("second_per_grid_ts", []) == [0.5] * videos
    assert len(got.get("video_grid_thw", [])) == videos
    assert len(got.get("pixel_values_videos", [])) == 16 * videos
    grids = sample["image_grid_thw"][first : first + images]
    assert got.get("image_grid_thw", grids[:0]).tolist() == grids.tolist()
    pixels = [*range(8)] * (first == 0 and images > 0)
    pixels += [*range(8, 12)] * (first + images == 2 and images > 0)
    assert got.get("pixel_values", torch.empty(0, 1))[:, 0].tolist() == pixels
    assert got["length"] == len(ROW)
    if part:
        collate([got], QWEN, pad_token_id=0, extra="drop")


def balanced(part):
    depth = 0
    for symbol in part:
        depth += (symbol == "<") - (symbol == ">")
        if depth < 0 or (depth == 0 and symbol in "IV"):
            return False
    return depth == 0


def test_a_clip_of_frames_goes_with_its_markers_and_times():
    sample = sample_of(GLM, "t[<II>t<II>t]tt", videos=[[2, 2, 4]])
    got, dropped = truncate(sample, GLM, 13)
    assert (len(got["input_ids"]), dropped.videos) == (13, 0)
    got, dropped = truncate(sample, GLM, 8)
    assert (len(got["input_ids"]), dropped.videos) == (1, 1)
    assert got.keys() == {"input_ids", "labels", "mm_token_type_ids", "length"}
    got, _ = truncate(sample, GLM, 8, "left")
    assert len(got["input_ids"]) == 2


def test_a_clip_goes_with_its_sound():
    spec = spec_of("qwen2_5_omni", "transformers")
    rule, image, video = spec.own_rule, spec.image_token_id, spec.video_token_id
    audio, start = rule.audio_token_id, spec.vision_start_token_id
    ids = [1, start, image, STOP, 2, start, rule.audio_start_token_id]
    ids += [video, video, audio, audio, rule.audio_start_token_id + 1, STOP, 3]
    sample = {
        "input_ids": ids,
        "image_grid_thw": [[1, 2, 2]],
        "video_grid_thw": [[1, 2, 4]],
        "video_second_per_grid": [1.0],
        "feature_attention_mask": torch.ones((1, 8), dtype=torch.int64),
        "input_features": torch.ones((1, 4, 8)),
        "use_audio_in_video": True,
    }
    assert get_rope_index(
        torch.tensor([ids]), spec, image_grid_thw=torch.tensor([[1, 2, 2]]),
        video_grid_thw=torch.tensor([[1, 2, 4]]), audio_seqlens=torch.tensor([8]),
        second_per_grids=torch.tensor([1.0]), use_audio_in_video=True,
    )  # fmt: skip
    ends = [rule.audio_start_token_id + 1, STOP]
    got, dropped = truncate(sample, spec, 10, end_token_ids=ends)
    assert got.keys() == {"input_ids", "image_grid_thw", "use_audio_in_video"}
    assert got["input_ids"].tolist() == ids[:5]
    assert (dropped.images, dropped.videos, dropped.audios) == (0, 1, 1)
    got, dropped = truncate(sample, spec, 12, "left", end_token_ids=ends)
    assert got["input_ids"].tolist() == ids[4:]
    assert (dropped.images, dropped.audios, len(got["input_features"])) == (1, 0, 1)


def test_a_sample_without_a_label_left_is_reported():
    sample = {"input_ids": [1, 2, 3, 4], "labels": [-100, -100, -100, 4]}
    assert truncate(sample, QWEN, 3)[1].no_label_left
    assert not truncate(sample, QWEN, 4)[1].no_label_left


def test_truncate_is_refused():
    sample = {"input_ids": [7, QWEN.image_token_id], "image_grid_thw": [[1, 2, 4]]}
    with pytest.raises(ValueError, match="was the prompt truncated inside the image"):
        truncate(sample, QWEN, 1)
    with pytest.raises(TypeError, match="max_length must be an int, got '4'"):
        truncate(sample, QWEN, "4")
    with pytest.raises(ValueError, match="side must be 'left' or 'right', got 'top'"):
        truncate(sample, QWEN, 4, "top")


@pytest.mark.parametrize(
    ("max_length", "side", "tokens", "sources"),
    [
        (11, "right", 11, [0, 1]),
        (10, "right", 10, [0, 1]),
        (9, "right", 9, [0, 1]),
        (8, "right", 5, [0]),
        (4, "right", 1, []),
        (9, "left", 6, [1]),
        (3, "left", 2, []),
    ],
)
def test_sources_go_with_their_pixels_and_targets_stay(max_length, side, tokens, sources):
    spec = spec_of("glm_image", "transformers")
    start, end = spec.own_rule.image_start_token_id, spec.own_rule.image_end_token_id
    image = spec.image_token_id
    ids = [7, start, image, image, end, start, image, image, end, 8, start]
    grids = [[1, 1, 2], [1, 2, 1], [1, 3, 3]]
    pixels = torch.arange(4.0)[:, None]
    sample = {"input_ids": ids, "image_grid_thw": grids, "pixel_values": pixels}
    got, dropped = truncate(sample, spec, max_length, side)
    assert len(got["input_ids"]) == tokens
    assert dropped.images == 2 - len(sources)
    assert got["image_grid_thw"].tolist() == [grids[at] for at in (*sources, 2)]
    kept = [pixel for at in sources for pixel in (2.0 * at, 2.0 * at + 1)]
    assert got.get("pixel_values", pixels[:0])[:, 0].tolist() == kept
    if start in got["input_ids"][-1:]:
        collate([got], spec, pad_token_id=0)
